"""What the paper compares CausalFusion with: `dit`, the AdaLN-zero Diffusion Transformer of Table 1."""

from .dit import DiT, DiTConfig

__all__ = ["DiT", "DiTConfig"]
