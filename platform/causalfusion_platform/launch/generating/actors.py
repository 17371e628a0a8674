"""Who generates the parts of sample sets: actors of Ray, or this process."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, Self

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from ...config.errors import UserError
from ...sampling.part_maker import PartMaker
from ...sampling.pixels import Pixels
from ...sampling.sample_set import SamplePlan
from ..cluster.failures import user_error_in
from ..cluster.resources import SAMPLING_CPUS, cluster_resources, sampling_actors
from ..cluster.session import ray_session
from ..runs.signals import StopRequest

logger = logging.getLogger(__name__)

Take = Callable[[int, Pixels], None]
"""Called with a part's number and its images (n, H, W, 3)."""

_LOSSES = 3
"""Workers lost with one part, or at their start one after the other, that end it."""
_START_SECONDS = 1800.0
"""Longest wait for a first worker: weights may have to come over a slow network."""
_POLL_SECONDS = 0.5


class Generators(Protocol):
    """Makes the parts of any number of sample sets, one set after the other."""

    began: float
    """When the first part of the newest set was begun, by `time.perf_counter`: models were loaded by then."""

    def start(self) -> None:
        """Start what makes the parts; nothing if that has been done.

        Raises:
            UserError: there is no room for it.
        """

    def make(self, plan: SamplePlan, parts: Sequence[int], take: Take, stop: StopRequest) -> None:
        """Make parts and hand each over, in any order; on request stop after those that are under way.

        Raises:
            UserError: something given is wrong, or workers are lost again and again.
        """


class LocalGenerator:
    """This process: for debugging, and for a machine with one GPU."""

    def __init__(self) -> None:
        self.maker: PartMaker | None = None
        self.began = 0.0

    def start(self) -> None: ...

    def make(self, plan: SamplePlan, parts: Sequence[int], take: Take, stop: StopRequest) -> None:
        self.maker = _maker_of(plan, self.maker, "cuda" if torch.cuda.is_available() else "cpu")
        self.began = time.perf_counter()
        for part in parts:
            if stop.reason is not None:
                return
            take(part, self.maker.make(plan, part))


class RayGenerators:
    """A pool of actors, each with a model; Ray is started, and ended, if there is none yet."""

    def __init__(self, workers: int | None = None) -> None:
        """Take the number of actors; default: one a GPU, or one a CPU where there are no GPUs."""
        self.wanted = workers
        self.count = self.gpus = 0
        self.began = 0.0
        self.idle: list[Any] = []
        self.session = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.idle:
            _end(actor)
        self.session.close()

    def start(self) -> None:
        if not self.count:
            self.session.enter_context(ray_session())
            self.count, self.gpus = sampling_actors(self.wanted, cluster_resources())

    def make(self, plan: SamplePlan, parts: Sequence[int], take: Take, stop: StopRequest) -> None:
        waiting, losses, self.began = deque(parts), Counter[int | None](), 0.0
        under_way: dict[Any, tuple[Any, int | None]] = {}  # what is awaited: its actor and part; None: it opens

        def open_one() -> None:
            actor = self.idle.pop() if self.idle else self._new_actor()
            under_way[actor.open.remote(plan)] = actor, None

        for _ in range(min(self.count, len(parts))):
            open_one()
        heard = time.monotonic()
        try:
            while any(part is not None for _, part in under_way.values()) or (waiting and stop.reason is None):
                ready, _ = ray.wait(list(under_way), timeout=_POLL_SECONDS)
                making = any(part is not None for _, part in under_way.values())
                if not ready and not making and time.monotonic() - heard > _START_SECONDS:
                    raise UserError(
                        f"no worker has started within {_START_SECONDS:.0f} s: the cluster has no room, or the "
                        f"weights take longer to load\n  see what it holds: ray status; ask for fewer: --workers N"
                    )
                for reference in ready:
                    heard = time.monotonic()
                    actor, part = under_way.pop(reference)
                    try:
                        images = ray.get(reference)
                    except RayTaskError as error:
                        _end(actor)
                        raise _fault_in(error, plan) from error
                    except RayError as error:  # the process, its node, or what it had made is gone
                        _end(actor)
                        losses[part] += 1
                        _check_losses(losses[part], part, plan, error)
                        logger.warning(
                            f"a worker that was to {_what(part, plan)} was lost ({type(error).__name__})"
                        )
                        if part is not None:
                            waiting.appendleft(part)
                        open_one()
                        continue
                    losses[None] = 0
                    if part is not None:
                        take(part, images)
                    if waiting and stop.reason is None:
                        part = waiting.popleft()
                        self.began = self.began or time.perf_counter()
                        under_way[actor.make.remote(plan, part)] = actor, part
                    else:
                        self.idle.append(actor)
        finally:
            for actor, _ in under_way.values():
                _end(actor)

    def _new_actor(self) -> Any:
        options = {"num_cpus": SAMPLING_CPUS, "num_gpus": self.gpus}
        return ray.remote(Worker).options(**options).remote("cuda" if self.gpus else "cpu")


class Worker:
    """The actor: a model that stays loaded while sets of it are made."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.maker: PartMaker | None = None

    def open(self, plan: SamplePlan) -> None:
        """Load the model of a plan, unless it is there."""
        self.maker = _maker_of(plan, self.maker, self.device)

    def make(self, plan: SamplePlan, part: int) -> Pixels:
        """Return the images of a part."""
        assert self.maker is not None
        return self.maker.make(plan, part)


def _maker_of(plan: SamplePlan, maker: PartMaker | None, device: str) -> PartMaker:
    return maker if maker is not None and maker.serves(plan) else PartMaker(plan, device)


def _check_losses(count: int, part: int | None, plan: SamplePlan, error: RayError) -> None:
    if count < _LOSSES:
        return
    reason = " ".join(str(error).split(".")[0].split()) or type(error).__name__
    raise UserError(
        f"{_LOSSES} workers that were to {_what(part, plan)} died, one after the other: {reason}\n"
        f"  often the memory is too small: ask for fewer --workers, or in another folder for a smaller --batch-size"
    ) from error


def _fault_in(error: RayTaskError, plan: SamplePlan) -> Exception:
    """Return what is to be raised for what a worker raised."""
    fault = user_error_in(error)
    if fault is not None:
        return fault
    if "out of memory" in str(error).lower():
        return UserError(
            f"a worker's GPU has no memory for {plan.batch_size} samples at once\n"
            f"  ask for fewer, in another folder: --batch-size {max(plan.batch_size // 2, 1)}"
        )
    bare: Exception = error
    return bare


def _what(part: int | None, plan: SamplePlan) -> str:
    if part is None:
        return "load the model"
    numbers = plan.part(part)
    return f"generate samples {numbers[0]} to {numbers[-1]}"


def _end(actor: Any) -> None:
    with contextlib.suppress(RayError, ValueError):  # it may be gone, and so may Ray
        ray.kill(actor)
