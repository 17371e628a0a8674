"""Tell a job of a cluster, which a scheduler may start again by itself, from a command that a person has typed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ...config.schema import Experiment

_OF_JOBS = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
"""Variables that Ray sets in the driver of a submitted job, Slurm in a job, Kubernetes in a pod.

Ray sets RAY_JOB_ID in every worker, on a laptop too."""
LOCK_SECONDS = 600.0
"""Wait of a job for an earlier launch of the run, whose driver may live on for minutes after its node is lost."""


def is_scheduled(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether this process belongs to a job of a cluster."""
    return any(environ.get(name) for name in _OF_JOBS)


def lock_seconds(experiment: Experiment, environ: Mapping[str, str] = os.environ) -> float:
    """Return the longest wait for another launch, in seconds: `supervision.lock_seconds`, or that of this place."""
    given = experiment.supervision.lock_seconds
    if given is not None:
        return given
    return LOCK_SECONDS if is_scheduled(environ) else 0.0
