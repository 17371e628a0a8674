"""Fine-tunes of a trained model: classification (Table 12) and captioning (Table 13).

`base` is common to both: the weights that they start from, and their cost. `classification` and `captioning` are
the tasks. `validation` measures a model on held-out rows, on all ranks together. Open `base` first.
"""

from .captioning import Captioning
from .classification import Classification

__all__ = ["Captioning", "Classification"]
