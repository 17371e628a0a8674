"""Number of workers on a cluster that loses and gains nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

from ...assemble import Job
from ...config.schema import Experiment
from ..cluster.resources import Resources, workers_that_fit
from ..runs.exit_status import GaveUp
from ..runs.signals import StopRequest

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


def wait_for_workers(
    job: Job,
    wanted: Experiment,
    *,
    resources: Callable[[], Resources],
    stop: StopRequest,
    asking: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Job:
    """Wait until the cluster holds all workers, or go on with fewer if the experiment allows it.

    Args:
        job: the job of the attempt before.
        wanted: the experiment with all of its workers.
        resources: returns the resources of the cluster, used or not.
        stop: requests to stop, which end the wait.
        asking: asks the cluster for room while it is waited for, if it can grow.

    Raises:
        GaveUp: not even the fewest workers allowed fit.
    """
    limits = wanted.supervision
    deadline = time.monotonic() + limits.resource_seconds
    with ExitStack() as stack:
        told = False
        while True:
            fits = workers_that_fit(wanted, resources())
            if fits == wanted.train.num_workers or stop.reason is not None:
                return job.model_copy(update={"experiment": wanted})
            if time.monotonic() >= deadline:
                break
            if not told:
                told = True
                stack.enter_context(asking())
                logger.warning(
                    f"{fits} of {wanted.train.num_workers} workers fit on the cluster; waiting up to "
                    f"{limits.resource_seconds:.0f} s for more"
                )
            time.sleep(min(_POLL_SECONDS, limits.resource_seconds))
    fewest = limits.min_workers or wanted.train.num_workers
    if fits < fewest:
        raise GaveUp(
            f"run {wanted.name!r} stops: {fits} workers of {wanted.train.cpus_per_worker:g} CPUs and "
            f"{wanted.train.gpus_per_worker:g} GPUs fit on the cluster; at least {fewest} "
            f"are wanted\n  add nodes and give the same command, or allow fewer: supervision.min_workers=…"
        )
    logger.warning(f"going on with {fits} of {wanted.train.num_workers} workers")
    return job.model_copy(update={"experiment": with_workers(wanted, fits)})


def with_workers(experiment: Experiment, workers: int) -> Experiment:
    """Return the experiment with another number of workers and the same global batch."""
    train = experiment.train.model_copy(update={"num_workers": workers})
    return experiment.model_copy(update={"train": train})
