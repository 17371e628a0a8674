"""AdamW that asks for leave before it changes a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from causalfusion import Model

from ..config.schema import Experiment


class GuardedAdamW(torch.optim.AdamW):
    """AdamW whose `step` does nothing, to weights, moments and step counters, where `allow()` says False.

    With ZeRO 1–3 DeepSpeed clips the gradients of its partitions and knows their norm. With ZeRO 0 the gradients
    are whole and this optimizer does both, so that the norm is known before the verdict at every stage.

    Args:
        parameters: what is optimised.
        clip_norm: largest gradient norm, 0: no clipping; None: gradients come clipped.
        settings: those of `torch.optim.AdamW`.
    """

    steps_made: int = 0
    """Calls of `step` that were allowed."""
    allow: Callable[[], bool] | None = None
    """The verdict on a step; must be the same on all ranks. None: every step is made."""
    clock: Callable[[], int] | None = None
    """A number that is new at each step of the engine, which may step its partitions one by one: the verdict is
    asked for once per number. None: once per call."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, clip_norm: float | None = None, **settings: Any
    ) -> None:
        super().__init__(parameters, **settings)
        self.clip_norm = clip_norm
        self._verdict: tuple[int, bool] | None = None
        if clip_norm is not None:
            self._global_grad_norm: Tensor | float = 0.0  # the name under which DeepSpeed's optimizers keep it

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make the step, if it is allowed."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_norm is not None:
            self._global_grad_norm = norm = _shared_norm([p.grad for p in parameters])
        if not self._allowed():
            return None
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self.steps_made += 1
        loss: float | None = super().step(closure)
        return loss

    def _allowed(self) -> bool:
        if self.allow is None:
            return True
        if self.clock is None:
            return self.allow()
        now = self.clock()
        if self._verdict is None or self._verdict[0] != now:
            self._verdict = (now, self.allow())
        return self._verdict[1]


def _shared_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of gradients that all ranks hold: the same number on each of them."""
    norm = nn.utils.get_total_norm(gradients)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(norm)
        norm = norm / torch.distributed.get_world_size()
    return norm


def set_hyperparameters(optimizer: Any, experiment: Experiment) -> None:
    """Give an optimizer that was loaded the experiment's own β, ε and weight decay: a checkpoint brings its own."""
    optim = experiment.optim
    for group in optimizer.param_groups:
        group.update(betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)


def build_optimizer(model: Model, experiment: Experiment) -> GuardedAdamW:
    """Return AdamW over all parameters (Tables 9 and 10)."""
    optim = experiment.optim
    return GuardedAdamW(
        model.parameters(),
        clip_norm=optim.clip_grad_norm if experiment.train.zero_stage == 0 else None,
        lr=experiment.learning_rate,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )
