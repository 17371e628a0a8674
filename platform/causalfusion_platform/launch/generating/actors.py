"""Actors of Ray, or this process, generate the parts of sample sets and write them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from ...config.errors import UserError
from ...sampling.part_maker import PartMaker
from ...sampling.parts import SamplePart, write_part
from ...sampling.sample_set import SamplePlan, check_begun
from ..cluster.failures import user_error_in
from ..cluster.growth import wait_for_room
from ..cluster.resources import SAMPLING_CPUS, Resources, cluster_resources, sampling_actors
from ..cluster.session import ray_session
from ..runs.signals import StopRequest

logger = logging.getLogger(__name__)

Take = Callable[[SamplePart], None]
"""Called with a part that has been written."""

_LOSSES = 3
"""Number of workers lost with one part, or at the start of one actor, that ends the generation."""
_ROOM_SECONDS = 300.0
"""Longest wait for nodes of a cluster that can grow, as `supervision.resource_seconds` of a training."""
_START_SECONDS = 1800.0
"""Longest wait for a first worker, in seconds: weights may have to come over a slow network."""
_POLL_SECONDS = 0.5


class Generators(Protocol):
    """Makes the parts of any number of sample sets, one set after the other."""

    began: float
    """Start of the first part of the newest set, by `time.perf_counter`: models were loaded by then."""

    def start(self) -> None:
        """Start the processes that make the parts, unless they are started.

        Raises:
            UserError: it does not fit on the cluster.
        """

    def make(self, plan: SamplePlan, folder: Path, parts: Sequence[int], take: Take, stop: StopRequest) -> None:
        """Make parts, in any order. On request, stop after those that are under way.

        Args:
            folder: the set's folder, to which the parts are written.
            parts: numbers of those to make.
            take: called with each part as soon as it is written.

        Raises:
            UserError: an argument is wrong, or workers are lost again and again.
        """


class LocalGenerator:
    """This process: for debugging, and for a machine with one GPU."""

    def __init__(self) -> None:
        self.maker: PartMaker | None = None
        self.began = 0.0

    def start(self) -> None: ...

    def make(self, plan: SamplePlan, folder: Path, parts: Sequence[int], take: Take, stop: StopRequest) -> None:
        self.maker = _maker_of(plan, self.maker, "cuda" if torch.cuda.is_available() else "cpu")
        self.began = time.perf_counter()
        for part in parts:
            if stop.reason is not None:
                return
            take(write_part(folder, part, self.maker.make(plan, part)))


class RayGenerators:
    """Ray actors, each with a model. A local Ray is started and ended unless one is there.

    Each actor writes its parts itself, so the set's folder must lie on storage that all nodes share. Ray starts a
    lost actor again, and its part goes to the actor that is free first. Ray's own retry would wait for the same
    actor, even if its node is gone for good.
    """

    def __init__(self, workers: int | None = None) -> None:
        """Take the number of actors. Default: one per GPU, or one per CPU on a cluster without GPUs."""
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
            one = Resources.of(SAMPLING_CPUS, 1 if cluster_resources().gpus else 0)
            self.count, self.gpus = wait_for_room(
                lambda have: sampling_actors(self.wanted, have), [one] * (self.wanted or 0), _ROOM_SECONDS
            )

    def make(self, plan: SamplePlan, folder: Path, parts: Sequence[int], take: Take, stop: StopRequest) -> None:
        waiting, losses, self.began = deque(parts), Counter[int](), 0.0
        under_way: dict[Any, tuple[Any, int | None]] = {}  # awaited result: its actor and part; None: it opens

        def open_set(actor: Any) -> None:
            under_way[actor.open.remote(plan, folder.absolute())] = actor, None

        def making() -> bool:
            return any(part is not None for _, part in under_way.values())

        for _ in range(min(self.count, len(parts))):
            open_set(self.idle.pop() if self.idle else self._new_actor())
        heard = time.monotonic()
        try:
            while making() or (waiting and stop.reason is None):
                ready, _ = ray.wait(list(under_way), timeout=_POLL_SECONDS)
                if not ready and not making() and time.monotonic() - heard > _START_SECONDS:
                    raise UserError(
                        f"no worker has started within {_START_SECONDS:.0f} s: the cluster is full, or the weights "
                        f"take longer to load\n  see what it holds: ray status; ask for fewer: --workers N"
                    )
                for reference in ready:
                    heard = time.monotonic()
                    actor, part = under_way[reference]
                    try:
                        written: SamplePart | None = ray.get(reference)
                    except RayTaskError as error:
                        raise _fault_in(error, plan) from error
                    except RayError as error:  # the actor's process or node is gone
                        if part is None:  # Ray has tried it again
                            raise _died_again(error, "load the model") from error
                        losses[part] += 1
                        if losses[part] == _LOSSES:
                            raise _died_again(error, _task(part, plan)) from error
                        name = type(error).__name__
                        logger.warning(f"a worker that was to {_task(part, plan)} was lost ({name})")
                        waiting.appendleft(part)
                        del under_way[reference]
                        open_set(actor)
                        continue
                    del under_way[reference]
                    if written is not None:
                        take(written)
                    if waiting and stop.reason is None:
                        part = waiting.popleft()
                        self.began = self.began or time.perf_counter()
                        under_way[actor.make.remote(plan, folder.absolute(), part)] = actor, part
                    else:
                        self.idle.append(actor)
        finally:
            for actor, _ in under_way.values():
                _end(actor)

    def _new_actor(self) -> Any:
        actor = ray.remote(SamplingActor).options(
            num_cpus=SAMPLING_CPUS,
            num_gpus=self.gpus,
            max_restarts=-1,
            # For all calls, not for `open` alone: calls to an actor that is being restarted would fail at once.
            max_task_retries=_LOSSES - 1,
        )
        return actor.remote("cuda" if self.gpus else "cpu")


class SamplingActor:
    """A model that stays loaded while sets of it are made, in a process of its own."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.maker: PartMaker | None = None

    def open(self, plan: SamplePlan, folder: Path) -> None:
        """Load the model of a plan, unless it is loaded.

        Raises:
            UserError: model or folder are not here as they are in the driver.
        """
        check_begun(folder, plan)
        self.maker = _maker_of(plan, self.maker, self.device)

    @ray.method(max_task_retries=0)  # type: ignore[untyped-decorator]
    def make(self, plan: SamplePlan, folder: Path, part: int) -> SamplePart:
        """Generate a part and write it. Made twice, it is the same file."""
        self.open(plan, folder)  # Ray may have started this actor again since
        assert self.maker is not None
        return write_part(folder, part, self.maker.make(plan, part))


def _maker_of(plan: SamplePlan, maker: PartMaker | None, device: str) -> PartMaker:
    return maker if maker is not None and maker.serves(plan) else PartMaker(plan, device)


def _died_again(error: RayError, task: str) -> UserError:
    reason = " ".join(str(error).split(".")[0].split()) or type(error).__name__
    return UserError(
        f"{_LOSSES} workers that were to {task} died, one after the other: {reason}\n"
        f"  often the memory is too small: ask for fewer --workers, or in another folder for a smaller --batch-size"
    )


def _fault_in(error: RayTaskError, plan: SamplePlan) -> Exception:
    """Return the error to raise in the driver for an error of a worker."""
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


def _task(part: int, plan: SamplePlan) -> str:
    numbers = plan.part(part)
    return f"generate samples {numbers[0]} to {numbers[-1]}"


def _end(actor: Any) -> None:
    with contextlib.suppress(RayError, ValueError):  # the actor may be gone, and so may Ray
        ray.kill(actor)
