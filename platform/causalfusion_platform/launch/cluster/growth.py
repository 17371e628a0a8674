"""Wait for a cluster that can grow: ask it for nodes, and look until they are there."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

from ...config.errors import NotNow, UserError
from ...config.schema import Experiment
from ...ray_private import AutoscalerView, autoscaler_view
from .resources import Resources, cluster_resources, training_resources

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 1.0
_TELL_SECONDS = 30.0
_VERDICT_SECONDS = 15.0
"""Time for an autoscaler to look at a demand, twice. It looks every five seconds."""


def training_demand(experiment: Experiment) -> list[Resources]:
    """Return what a training takes, each part on one node: its workers, and a task that reads data."""
    worker, reader = training_resources(experiment)
    return [worker] * experiment.train.num_workers + [reader]


def wait_for_room(
    fit: Callable[[Resources], T],
    demand: Sequence[Resources],
    seconds: float,
    *,
    enough: Callable[[T], bool] = lambda _: True,
) -> T:
    """Return what fits on the cluster. One that can grow is asked for nodes first, and given time to add them.

    Nothing is waited for on a cluster without an autoscaler.

    Args:
        fit: returns what fits on resources of a cluster, or raises UserError.
        demand: parts to ask room for, each on one node.
        seconds: longest wait.
        enough: says if what fits is all that is wanted. Less is taken at the end of the wait.

    Raises:
        NotNow: too little is there.
        UserError: the cluster cannot hold it at all.
    """
    found, have = _look(fit)
    if _is_enough(found, enough) or not demand or autoscaler_view() is None:
        return _taken(found)
    began = told = time.monotonic()
    why, kind = f"no more nodes came within {seconds:.0f} s", cast(type[UserError], NotNow)
    logger.info(f"the cluster has {_text(have)}; asking for more nodes, waiting up to {seconds:.0f} s for them")
    with demanded(demand):
        while (waited := time.monotonic() - began) < seconds:
            time.sleep(min(_POLL_SECONDS, seconds - waited))
            waited = time.monotonic() - began
            before = have
            found, have = _look(fit)
            if _is_enough(found, enough):
                return _taken(found)
            if waited > _VERDICT_SECONDS and _cannot_grow(autoscaler_view(), demand):
                why, kind = "its autoscaler has no more nodes of this kind to add", UserError
                break
            if have != before or time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                logger.info(f"waiting for nodes: the cluster has {_text(have)}, {waited:.0f} of {seconds:.0f} s")
    if isinstance(found, UserError):
        first, _, advice = str(found).partition("\n")
        raise kind(
            f"{first}: {why}\n{advice}\n  see what its autoscaler does: ray status; or wait longer: "
            f"supervision.resource_seconds=…"
        )
    logger.warning(f"going on with what the cluster has, {_text(have)}: {why}")
    return found


@contextlib.contextmanager
def asking_for(demand: Sequence[Resources]) -> Iterator[None]:
    """Ask a cluster that can grow for room inside. Nothing is done on another one."""
    with demanded(demand) if autoscaler_view() is not None else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def demanded(demand: Sequence[Resources]) -> Iterator[None]:
    """Hold a placement group for each part of a demand, which an autoscaler adds nodes for.

    Ray's `request_resources` has one demand for the whole cluster: that of another run would be lost. Groups are
    added up. They end with this process, however it ends.
    """
    from ray.util import placement_group, remove_placement_group

    groups = []
    try:
        for part in demand:
            groups.append(placement_group([_bundle(part)]))
        yield
    finally:
        for group in groups:
            remove_placement_group(group)


def _look(fit: Callable[[Resources], T]) -> tuple[T | UserError, Resources]:
    have = cluster_resources()
    try:
        return fit(have), have
    except UserError as error:
        return error, have


def _is_enough(found: T | UserError, enough: Callable[[T], bool]) -> bool:
    return not isinstance(found, UserError) and enough(found)


def _taken(found: T | UserError) -> T:
    if isinstance(found, UserError):
        raise found
    return found


def _cannot_grow(view: AutoscalerView | None, demand: Sequence[Resources]) -> bool:
    """Say whether an autoscaler has found no node for a part of the demand, and none is under way."""
    if view is None or view.nodes_under_way:
        return False
    return any(_bundle(part) in view.infeasible for part in set(demand))


def _bundle(part: Resources) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", part.cpus), ("GPU", part.gpus)) if amount}


def _text(have: Resources) -> str:
    return f"{have.cpus:g} CPUs and {have.gpus:g} GPUs"
