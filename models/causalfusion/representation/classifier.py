"""Image classifier that is fine-tuned from a trained model (Table 12, Appendix C).

Shapes: B images, L image tokens, D width, K residual branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..config import check_types
from ..model import CONFIGS, Model, ModelConfig
from .backbone import Backbone
from .drop_path import branch_draws
from .features import Condition, check_condition

_MOST_CLASSES = 10_000_000
NORM_EPS = 1e-6
"""ε of a head's new layer norm, that of MAE's `fc_norm`."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier: the model that it is fine-tuned from, and its head.

    Raises:
        ValueError: a value is out of range, or the backbone lacks the condition.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    architecture: Literal["classifier"] = "classifier"
    """Kind of model."""
    backbone: ModelConfig
    """The trained model."""
    num_classes: int
    """Number of classes, the outputs of the head."""
    drop_path: float = 0.0
    """Rate of the last block's drop path in [0, 1), of the others linear from 0 at the first (Table 12: 0.1)."""
    condition: Condition = "none"
    """Condition of a DiT's blocks: `none` is the zero vector, `null` time 0 and the null class."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", backbone_config(self.backbone))
        check_types(self)
        check_condition(self.backbone, self.condition)
        if not 1 <= self.num_classes <= _MOST_CLASSES:
            raise ValueError(f"num_classes must lie in [1, {_MOST_CLASSES:,}], got {self.num_classes!r:.30}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")


def backbone_config(given: Any) -> ModelConfig:
    """Return the configuration of a backbone, which a file of settings holds as fields by name.

    Raises:
        ValueError: it is not one of a known model.
    """
    if not isinstance(given, dict):
        if not isinstance(given, ModelConfig):
            raise ValueError(f"backbone must be the configuration of a model, got {given!r:.100}")
        return given
    name = given.get("architecture", "causalfusion")
    if not isinstance(name, str) or name not in CONFIGS:
        raise ValueError(f"unknown architecture of the backbone: {name!r:.100}; known: {', '.join(CONFIGS)}")
    try:
        return CONFIGS[name](**given)
    except TypeError as error:
        raise ValueError(f"backbone: {error!s:.200}") from error


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check that a head has an output for each label.

    Raises:
        ValueError: it does not.
    """
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(
            f"labels of a head of {num_classes} classes lie in [0, {num_classes - 1}], got {int(outside[0])}"
        )


class Classifier(nn.Module):
    """Plain ViT of a trained model, a layer norm and a linear layer on the averaged output tokens.

    The norm is new, and stands behind the average (MAE's `fc_norm`). The model's own final norm is dropped.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.hidden_size
        self.backbone = Backbone(config.backbone, drop_path=config.drop_path, condition=config.condition)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    @property
    def backbone_depth(self) -> int:
        """Number of blocks."""
        return self.backbone.depth

    def load_backbone(self, model: Model) -> None:
        """Copy the weights of a trained model, usually EMA weights. The head is left as it is.

        Raises:
            ValueError: the model has another configuration than the backbone.
        """
        self.backbone.load(model)

    def draw(self, seed: int, indices: Sequence[int]) -> Tensor:
        """Draw the numbers of drop path: (B, K) on the CPU. Sample i draws the same ones in any batch.

        Args:
            seed: of the run.
            indices: position of each sample in the stream of training.
        """
        return branch_draws(seed, indices, self.backbone.depth)

    def forward(self, latents: Tensor, drawn_BK: Tensor | None = None) -> Tensor:
        """Return logits: (B, classes).

        Args:
            latents: (B, channels, height, width) in the model's scale.
            drawn_BK: result of `draw`, for drop path. Read in training mode alone.

        Raises:
            ValueError: the latents do not fit the model, or drop path has no draws in training mode.
        """
        if self.training and self.config.drop_path and drawn_BK is None:
            raise ValueError("drop path needs draws in training mode: give the result of draw(seed, indices)")
        drops = drawn_BK if self.training and self.config.drop_path else None
        tokens: Tensor = self.backbone(latents, drops)
        logits: Tensor = self.head(self.norm(tokens.mean(dim=1)))
        return logits
