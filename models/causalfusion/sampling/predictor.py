"""Predictions of one model during sampling, under classifier-free guidance.

Shapes: B samples, N tokens of one AR step, P numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..model import Context, Model
from ..text.prompts import Prompts

Prediction = Callable[[Tensor, Tensor, float | None], Tensor]
"""Predicts ε, x_0 or v of one AR step, (B, N, P), from x_t (B, N, P), t (1,) and the guidance scale or None."""


class Predictor(Protocol):
    """Model with the condition and the finished tokens of a batch of samples."""

    def at(self, positions_BN: Tensor) -> Prediction:
        """Return the prediction of the tokens of one AR step, given their raster positions."""

    def append(self, x_BNP: Tensor, positions_BN: Tensor) -> None:
        """Add the finished tokens of an AR step, as clean tokens."""


class DirectPredictor:
    """Predictor that calls the model. Under guidance one batched forward pass serves both branches."""

    def __init__(self, model: Model, condition: Tensor | Prompts, num_tokens: int, guided: bool) -> None:
        self.dtype, self.guided = model.dtype, guided
        if guided:
            condition = with_null(condition, model.config.null_class)
        self.context: Context = model.context(condition, num_tokens)

    def at(self, positions_BN: Tensor) -> Prediction:
        """Return the prediction of the tokens of one AR step, given their raster positions."""
        return partial(self._predict, positions_BN)

    def _predict(self, positions_BN: Tensor, x_BNP: Tensor, t: Tensor, scale: float | None) -> Tensor:
        rows = x_BNP.to(self.dtype)
        if scale is None:
            return self.context.predict(rows, positions_BN, t).to(x_BNP.dtype)
        return guide(self.context.predict(_twice(rows), _twice(positions_BN), t).to(x_BNP.dtype), scale)

    def append(self, x_BNP: Tensor, positions_BN: Tensor) -> None:
        """Add the finished tokens of an AR step to both branches, as clean tokens."""
        rows = x_BNP.to(self.dtype)
        if self.guided:
            rows, positions_BN = _twice(rows), _twice(positions_BN)
        self.context.append(rows, positions_BN)


def with_null(condition: Tensor | Prompts, null_class: int) -> Tensor | Prompts:
    """Return the condition of both branches: that of each sample, then as many without one."""
    if isinstance(condition, Prompts):
        return condition.with_null(null_class)
    return torch.cat([condition, torch.full_like(condition, null_class)])


def guide(both: Tensor, scale: float) -> Tensor:
    """Return ε_null + w (ε_class − ε_null) of the predictions of both branches."""
    conditional, unconditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
