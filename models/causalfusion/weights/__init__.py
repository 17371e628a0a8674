"""Weights: this project's folders (safetensors and JSON), and checkpoint formats of other code.

`folder` reads and writes our own format. `release` and `dit_release` convert the authors' and DiT's checkpoints.
`vae` converts autoencoders. `checkpoint_file` reads pickled files without running code. `cast` copies a model in
another type. Open `folder` first.
"""

from .cast import cast_copy
from .dit_release import export_dit, import_dit
from .folder import load_class_names, load_diffusion, load_weights, save_weights
from .release import export_release, import_release

__all__ = [
    "cast_copy",
    "export_dit",
    "export_release",
    "import_dit",
    "import_release",
    "load_class_names",
    "load_diffusion",
    "load_weights",
    "save_weights",
]
