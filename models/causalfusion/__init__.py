"""CausalFusion: diffusion and autoregression in one decoder-only transformer.

The reference implementation of "Causal Diffusion Transformers for Generative Modeling" (arXiv 2412.12095). It
needs torch and diffusers only, and works in a notebook.
"""

from .config import CausalFusionConfig
from .diffusion import DiffusionConfig
from .objective import Draws, Loss, Objective, ObjectiveConfig, draw
from .presets import PRESETS, preset
from .sample import SamplingConfig, sample
from .transformer import CausalFusion
from .weights import load_weights, save_weights

__all__ = [
    "PRESETS",
    "CausalFusion",
    "CausalFusionConfig",
    "DiffusionConfig",
    "Draws",
    "Loss",
    "Objective",
    "ObjectiveConfig",
    "SamplingConfig",
    "draw",
    "load_weights",
    "preset",
    "sample",
    "save_weights",
]
