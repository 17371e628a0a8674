"""Representation: features of a trained model, and the models that are fine-tuned from it (Section 6, Table 6b).

`features` gives the tokens of any layer. `backbone` is the plain ViT form of a trained model. `classifier` puts a
linear head on it (Table 12), `captioner` an encoder and decoder of text (Table 13). `layer_decay` makes their
parameter groups, `folder` saves them. Open `features` first.
"""

from .backbone import Backbone
from .captioner import Captioner, CaptionerConfig, HeadDraws
from .classifier import Classifier, ClassifierConfig, check_labels
from .features import Condition, features, layer_features
from .folder import (
    is_captioner,
    load_captioner_tokenizer,
    load_finetuned,
    load_finetuned_config,
    save_finetuned,
)
from .layer_decay import LayerGroup, head_groups, layer_groups

__all__ = [
    "Backbone",
    "Captioner",
    "CaptionerConfig",
    "Classifier",
    "ClassifierConfig",
    "Condition",
    "HeadDraws",
    "LayerGroup",
    "check_labels",
    "features",
    "head_groups",
    "is_captioner",
    "layer_features",
    "layer_groups",
    "load_captioner_tokenizer",
    "load_finetuned",
    "load_finetuned_config",
    "save_finetuned",
]
