"""Representation: features of a trained model, and the models that are fine-tuned from it (Section 6, Table 6b).

`features` gives the tokens of any layer. `backbone` is the plain ViT form of a trained model, `classifier` puts a
linear head on it (Table 12), and `layer_decay` makes its parameter groups. Open `features` first.
"""

from .backbone import Backbone
from .classifier import Classifier, ClassifierConfig, check_labels
from .features import Condition, features, layer_features
from .layer_decay import LayerGroup, layer_groups

__all__ = [
    "Backbone",
    "Classifier",
    "ClassifierConfig",
    "Condition",
    "LayerGroup",
    "check_labels",
    "features",
    "layer_features",
    "layer_groups",
]
