"""What the paper compares CausalFusion with."""

from .dit import DiT, DiTConfig
from .dit_release import export_dit, import_dit

__all__ = ["DiT", "DiTConfig", "export_dit", "import_dit"]
