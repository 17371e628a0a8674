"""Moving averages of the fp32 weights, in fp32. Each rank averages the part that it steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from causalfusion.weights.checkpoint_file import report_mismatch
from causalfusion.weights.folder import WEIGHTS_FILE

from ..config.errors import UserError
from .ema_profiles import Profile


@dataclass(frozen=True)
class ParameterShard:
    """One rank's part of a parameter: elements [start, start + length) of it, flattened."""

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    """Shape of the whole parameter."""
    start: int
    length: int
    group: Any
    """Ranks that hold the other elements. None: this rank holds all, in the parameter's own shape."""

    def master(self) -> Tensor:
        """Return the fp32 weights of this part as they are now.

        They are looked up each time, since DeepSpeed links new ones when it loads or offloads its state.
        Its `safe_get_local_fp32_param` is not used, because it waits for a stream of the device.
        """
        parameter: Any = self.parameter
        weights: Tensor = parameter
        if hasattr(parameter, "ds_id") and parameter.requires_grad:
            optimizer = parameter._z3_optimizer
            index, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            weights = optimizer.fp32_partitioned_groups_flat[index].narrow(0, offset, self.length)
        elif hasattr(parameter, "ds_id"):
            weights = parameter.ds_tensor.narrow(0, 0, self.length)
        elif getattr(parameter, "_hp_mapping", None) is not None:
            weights = parameter._hp_mapping.hp_fragment
        return weights.detach().float()


def part_of(name: str, parameter: Any) -> ParameterShard:
    """Return the part of a parameter that this rank averages.

    Raises:
        UserError: the parameter is trained in less than fp32, and DeepSpeed keeps no fp32 master of it.
    """
    if hasattr(parameter, "ds_id"):  # ZeRO 3: equal parts, the last ones padded
        size, group = parameter.ds_tensor.ds_numel, parameter.ds_process_group
        start = min(size * torch.distributed.get_rank(group), parameter.ds_numel)
        return ParameterShard(
            name, parameter, parameter.ds_shape, start, min(size, parameter.ds_numel - start), group
        )
    if hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2: None where other ranks hold all of it
        address = parameter._hp_mapping and parameter._hp_mapping.lp_fragment_address
        start, length = (address.start, address.numel) if address else (0, 0)
        return ParameterShard(name, parameter, parameter.shape, start, length, parameter._dp_group)
    if parameter.requires_grad and parameter.element_size() < 4:
        raise UserError(
            f"the weights are {parameter.dtype} ({name}) with no fp32 master to average\n"
            f"  train with train.zero_stage=1, 2 or 3, or with fp32 weights"
        )
    return ParameterShard(name, parameter, parameter.shape, 0, parameter.numel(), None)


class Averages:
    """θ̄ ← d·θ̄ + (1 − d)·θ over every parameter, for several decays d at once.

    θ are the fp32 weights that the optimizer steps. With ZeRO 1–3 each rank averages the part that it steps, on
    the device that holds it. It holds 1 / (number of ranks) of every average. Build it after the engine.
    """

    def __init__(self, model: nn.Module, profiles: Sequence[Profile]) -> None:
        """Start every average at the present weights. The first of `profiles` is the main one.

        Raises:
            UserError: a parameter is trained in less than fp32 without an fp32 master.
        """
        self.profiles = tuple(profiles)
        names = [profile.name for profile in self.profiles]
        assert names and len(set(names)) == len(names), names
        self._all = [part_of(name, parameter) for name, parameter in model.named_parameters()]
        self._held = [part for part in self._all if part.length]
        masters = [part.master() for part in self._held]
        self._averages = {name: [master.clone() for master in masters] for name in names}
        self._home = masters[0].device if masters else None

    @property
    def main(self) -> str:
        """Name of the average that the run samples from."""
        return self.profiles[0].name

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update all averages with the weights after optimizer step `step`, counted from 1."""
        if not self._held:
            return
        masters = [part.master() for part in self._held]
        for profile in self.profiles:
            torch._foreach_lerp_(self._averages[profile.name], masters, 1 - profile.decay(step))

    @torch.no_grad()
    def full_state(self, profile: str | None = None) -> dict[str, Tensor]:
        """Return a whole average by its name, the main one by default: parameter → fp32 tensor.

        Every rank gets it, on the device of the weights that the optimizer steps. All ranks call it together.
        """
        held = dict(zip((part.name for part in self._held), self._averages[profile or self.main], strict=True))
        state = {}
        for part in self._all:
            if part.group is None:
                state[part.name] = held[part.name].clone()
                continue
            # The device of the collective, also where the weights are offloaded to the CPU.
            whole = torch.zeros(part.shape.numel(), device=part.parameter.device)
            if part.length:
                whole[part.start : part.start + part.length] = held[part.name]
            # One rank holds each number and the others 0. A sum of integers keeps its bits exactly.
            torch.distributed.all_reduce(whole.view(torch.int32), group=part.group)
            state[part.name] = whole.view(part.shape).to(self._home or whole.device)
        return state

    @torch.no_grad()
    def load(self, folders: Mapping[str, Path]) -> None:
        """Restore every average from whole ones, written with any number of ranks and any ZeRO stage.

        Args:
            folders: profile name → folder with `model.safetensors`, or that file itself. Those of other names
                are passed over. A rank reads only its own part of each file.

        Raises:
            UserError: there is none for a profile, or it does not hold these parameters.
        """
        for name in self._averages:
            if name not in folders:
                raise UserError(
                    f"the checkpoint holds no average {name}; it has {', '.join(sorted(folders)) or 'none'}\n"
                    f"  set optim.ema_decay, ema_more_decays and ema_power as they were, or start anew with "
                    f"another name=…"
                )
        for name, average in self._averages.items():
            file = folders[name] / WEIGHTS_FILE if folders[name].is_dir() else folders[name]
            self._load(file, average)

    def _load(self, file: Path, average: Sequence[Tensor]) -> None:
        wanted = {part.name: tuple(part.shape) for part in self._all}
        try:
            with safe_open(file, "pt") as stored:
                found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
                report_mismatch(wanted, found, file)
                for part, tensor in zip(self._held, average, strict=True):
                    # The file is mapped, so that only the copied elements are read.
                    flat = stored.get_tensor(part.name).view(-1)
                    tensor.copy_(flat[part.start : part.start + part.length].view(tensor.shape))
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"no average of this model in {file}: {error}") from error

    def finite(self) -> bool:
        """Return whether this rank's part of the main average is finite. Waits for the device."""
        if not self._held:
            return True
        largest = torch._foreach_norm(self._averages[self.main], float("inf"))
        return bool(torch.stack(largest).isfinite().all())
