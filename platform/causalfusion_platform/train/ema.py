"""The exponential moving average of the weights, in fp32, sharded as DeepSpeed shards the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from causalfusion import Model


def local_part(parameter: nn.Parameter) -> Tensor:
    """Return what this rank holds of a parameter: its ZeRO-3 shard, else all of it."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data


class Ema:
    """θ̄ ← d·θ̄ + (1 − d)·θ over every parameter, d = the decay.

    With ZeRO 3 each rank averages its own shards; below that the weights are whole on every rank, and so is
    the average.
    """

    def __init__(self, model: Model, decay: float, *, warmup: bool) -> None:
        self.decay, self.warmup = decay, warmup
        self.parameters = dict(model.named_parameters())
        self.average = {name: local_part(p).detach().float().clone() for name, p in self.parameters.items()}

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the average only."""
        return any(hasattr(parameter, "ds_tensor") for parameter in self.parameters.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        current = [local_part(parameter).float() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    def load(self, average: dict[str, Tensor]) -> None:
        """Restore the average from what `average` held when it was saved."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    @torch.no_grad()
    def full_state(self) -> dict[str, Tensor]:
        """Return the whole average, name → tensor, on every rank. All ranks must call it together."""
        if not self.sharded:
            return {name: tensor.clone() for name, tensor in self.average.items()}
        from deepspeed.runtime.zero import GatheredParameters

        parameters = list(self.parameters.values())
        weights = [local_part(parameter).clone() for parameter in parameters]
        _write(parameters, self.average.values())
        try:
            with GatheredParameters(parameters):
                return {name: p.data.detach().float().clone() for name, p in self.parameters.items()}
        finally:
            _write(parameters, weights)


def _write(parameters: Iterable[nn.Parameter], values: Iterable[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        local_part(parameter).copy_(value)
