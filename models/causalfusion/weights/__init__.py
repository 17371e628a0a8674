"""Weights: folders for people (safetensors and JSON), and the checkpoint formats of others."""

from .folder import load_diffusion, load_weights, save_weights
from .release import export_release, import_release

__all__ = ["export_release", "import_release", "load_diffusion", "load_weights", "save_weights"]
