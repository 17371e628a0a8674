"""Room for the workers on a cluster that loses and gains nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ...assemble import Job
from ...config.schema import Experiment
from ..runs.exit_status import GaveUp
from ..runs.signals import StopRequest

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


def wait_for_workers(
    job: Job,
    wanted: Experiment,
    *,
    resources: Callable[[], dict[str, float]],
    stop: StopRequest,
) -> Job:
    """Wait until the cluster holds all workers; failing that, go on with fewer if the experiment allows it.

    Args:
        job: the job of the attempt before.
        wanted: the experiment with all of its workers.
        resources: returns what the cluster has, in all: {"CPU": …, "GPU": …}.
        stop: requests to stop, which end the wait.

    Raises:
        GaveUp: there is no room even for the fewest workers allowed.
    """
    limits = wanted.supervision
    deadline, told = time.monotonic() + limits.resource_seconds, False
    while True:
        fits = workers_that_fit(wanted, resources())
        if fits == wanted.train.num_workers or stop.reason is not None:
            return job.model_copy(update={"experiment": wanted})
        if time.monotonic() >= deadline:
            break
        if not told:
            told = True
            logger.warning(
                f"the cluster has room for {fits} of {wanted.train.num_workers} workers; waiting up to "
                f"{limits.resource_seconds:.0f} s for more"
            )
        time.sleep(min(_POLL_SECONDS, limits.resource_seconds))
    fewest = limits.min_workers or wanted.train.num_workers
    if fits < fewest:
        raise GaveUp(
            f"run {wanted.name!r} stops: the cluster has room for {fits} workers of "
            f"{wanted.train.cpus_per_worker:g} CPUs and {wanted.train.gpus_per_worker:g} GPUs; at least {fewest} "
            f"are wanted\n  add nodes and give the same command, or allow fewer: supervision.min_workers=…"
        )
    logger.warning(f"going on with {fits} of {wanted.train.num_workers} workers")
    return job.model_copy(update={"experiment": with_workers(wanted, fits)})


def workers_that_fit(experiment: Experiment, resources: dict[str, float]) -> int:
    """Return how many workers there is room for, at most all of them, such that they divide the global batch."""
    train, unit = experiment.train, 10_000  # Ray counts in 1/10000 of a CPU or GPU
    cpus = round(resources.get("CPU", 0.0) * unit) - round(experiment.data.cpus_per_task * unit)
    fits = max(cpus, 0) // round(train.cpus_per_worker * unit)
    if train.gpus_per_worker:
        fits = min(fits, round(resources.get("GPU", 0.0) * unit) // round(train.gpus_per_worker * unit))
    fits = min(fits, train.num_workers)
    while fits and train.global_batch_size % (fits * (train.micro_batch_size or 1)):
        fits -= 1
    return fits


def with_workers(experiment: Experiment, workers: int) -> Experiment:
    """Return the experiment with another number of workers; the global batch stays."""
    train = experiment.train.model_copy(update={"num_workers": workers})
    return experiment.model_copy(update={"train": train})
