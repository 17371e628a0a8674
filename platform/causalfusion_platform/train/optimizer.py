"""AdamW with a check before each step."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..config.schema import Experiment


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with settings of their own. They hold at every step, also after a checkpoint was loaded."""

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    """Factor on the learning rate of the step."""
    weight_decay: float | None = None
    """AdamW weight decay. None: `optim.weight_decay`."""


class GuardedAdamW(torch.optim.AdamW):
    """AdamW whose `step` does nothing, to weights, moments and step counters, where `allow()` says False.

    With ZeRO 1–3 DeepSpeed clips the gradients of its partitions and knows their norm. With ZeRO 0 the gradients
    are whole and this optimizer does both. So the norm is known before `allow` is called, at every stage.

    Args:
        parameters: those to optimise.
        clip_norm: largest gradient norm. 0: no clipping. None: gradients come clipped.
        settings: those of `torch.optim.AdamW`.
    """

    groups: tuple[ParameterGroup, ...] = (ParameterGroup(()),)
    """Its parameter groups, in the order of `param_groups`."""
    steps_made: int = 0
    """Calls of `step` that were allowed, or that the device decides on."""
    allow: Callable[[], bool] | None = None
    """Returns whether a step may be made, alike on all ranks. None: every step is made."""
    left_out: Callable[[], Tensor] | None = None
    """In place of `allow`: returns 1 on the device for a step that is left out, else 0, so that no host waits."""
    clock: Callable[[], int] | None = None
    """A number that is new at each step of the engine, which may step its partitions one by one.

    `allow` is called once per number. None: once per call."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        clip_norm: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(parameters, **settings)
        self.clip_norm = clip_norm
        self._verdict: tuple[int, bool] | None = None
        self.found_inf: Tensor | None = None
        if clip_norm is not None:
            self._global_grad_norm: Tensor | float = 0.0  # the name in DeepSpeed's optimizers

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make the step, if it is allowed."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_norm is not None:
            self._global_grad_norm = norm = _shared_norm([p.grad for p in parameters])
        left_out = None if self.left_out is None else self.left_out()
        if left_out is None and not self._allowed():
            return None
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self.steps_made += 1
        self.found_inf = left_out  # the fused kernel leaves a step out where this is 1
        return _plain_step(self, closure)

    def _allowed(self) -> bool:
        if self.allow is None:
            return True
        if self.clock is None:
            return self.allow()
        now = self.clock()
        if self._verdict is None or self._verdict[0] != now:
            self._verdict = (now, self.allow())
        return self._verdict[1]


@torch.no_grad()
def _plain_step(optimizer: torch.optim.AdamW, closure: Callable[[], float] | None) -> float | None:
    """Make AdamW's step without its decorators, which import torch's compiler: a second of CPU in each process."""
    loss: float | None = inspect.unwrap(torch.optim.AdamW.step)(optimizer, closure)
    return loss


def _shared_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of gradients that all ranks hold: the same number on each of them."""
    norm = nn.utils.get_total_norm(gradients)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(norm)
        norm = norm / torch.distributed.get_world_size()
    return norm


def set_learning_rate(engine: Any, rate: float) -> None:
    """Give each parameter group of an engine its share of a learning rate."""
    groups = engine.basic_optimizer.groups
    for settings, group in zip(engine.optimizer.param_groups, groups, strict=True):
        settings["lr"] = rate * group.lr_scale


def set_hyperparameters(engine: Any, experiment: Experiment) -> None:
    """Give a loaded engine the experiment's β and ε and each group's weight decay, in place of the checkpoint's."""
    optim, groups = experiment.optim, engine.basic_optimizer.groups
    for settings, group in zip(engine.optimizer.param_groups, groups, strict=True):
        settings.update(betas=optim.betas, eps=optim.eps, weight_decay=_decay(group, experiment))


def build_optimizer(
    model: nn.Module, experiment: Experiment, groups: Sequence[ParameterGroup] = ()
) -> GuardedAdamW:
    """Return AdamW over all parameters (Tables 9 and 10).

    Args:
        groups: parameters with settings of their own. Empty: all are one group.

    Raises:
        ValueError: a trained parameter is in no group or in two.
    """
    groups = tuple(groups) or (ParameterGroup(tuple(model.parameters())),)
    _check_groups(model, groups)
    optim = experiment.optim
    optimizer = GuardedAdamW(
        [
            {
                "params": list(group.parameters),
                "lr": experiment.learning_rate * group.lr_scale,
                "weight_decay": _decay(group, experiment),
            }
            for group in groups
        ],
        clip_norm=optim.clip_grad_norm if experiment.train.stage == 0 else None,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )
    optimizer.groups = groups
    return optimizer


def _decay(group: ParameterGroup, experiment: Experiment) -> float:
    return experiment.optim.weight_decay if group.weight_decay is None else group.weight_decay


def _check_groups(model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    counts = Counter(id(parameter) for group in groups for parameter in group.parameters)
    for name, parameter in model.named_parameters():
        count = counts.pop(id(parameter), 0)
        if count > 1 or (not count and parameter.requires_grad):
            raise ValueError(f"parameter {name} is in {count} parameter groups; put it into one")
    if counts:
        raise ValueError(f"{len(counts)} parameters of the groups are not the model's")
