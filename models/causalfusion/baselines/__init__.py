"""Baselines of the paper.

`dit` is the AdaLN-zero Diffusion Transformer of Table 1. `causalfusion.weights.dit_release` reads its released
checkpoints. Open `dit` first.
"""

from .dit import DiT, DiTConfig

__all__ = ["DiT", "DiTConfig"]
