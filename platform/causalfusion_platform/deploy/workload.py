"""The command that a cluster is to run, and the nodes that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..config.commands import command
from ..config.compose import compose_experiment
from ..config.errors import UserError
from ..config.files import HOME_VARIABLE
from ..config.schema import Experiment
from ..launch.cluster.resources import Resources, training_resources
from .cluster_file import ClusterFile, Group, MlflowDeployment, ObjectStorage, dns_label

VERBS = ("train", "sweep")
TRACKING = "MLFLOW_TRACKING_URI"
_TRACKING_OVERRIDE = f"tracking.uri=${{oc.env:{TRACKING}}}"


@dataclass(frozen=True)
class Demand:
    """Resources that a command needs at once."""

    workers: int
    """Workers of a run, or of all concurrent trials."""
    least_workers: int
    """Workers with which it also runs (supervision.min_workers)."""
    worker: Resources
    """CPUs and GPUs of one worker."""
    reading: Resources
    """CPUs for tasks that read data."""


@dataclass(frozen=True)
class Workload:
    """A `causalfusion` command for a cluster."""

    arguments: tuple[str, ...]
    """The command line without its first word, with the overrides that the cluster needs."""
    experiment: Experiment
    """As the cluster's nodes compose it."""
    name: str
    """OWNER-RUN, the name of the job."""

    @property
    def is_sweep(self) -> bool:
        """True for `sweep`, which runs many trials on a cluster that grows with them."""
        return self.arguments[0] == "sweep"

    @property
    def demand(self) -> Demand:
        """Resources that the command needs at once."""
        experiment = self.experiment
        worker, reader = training_resources(experiment)
        sweep = experiment.sweep if self.is_sweep else None
        trials = (sweep.max_concurrent or 1) if sweep is not None else 1
        readers = 0 if experiment.data.in_memory else experiment.data.concurrency * trials
        return Demand(
            workers=experiment.train.num_workers * trials,
            least_workers=experiment.supervision.min_workers or experiment.train.num_workers,
            worker=worker,
            reading=reader * readers,
        )


def read_workload(cluster: ClusterFile, arguments: Sequence[str]) -> Workload:
    """Compose the experiment of a command as the cluster's nodes will.

    Args:
        cluster: the cluster.
        arguments: such as ["train", "quickstart", "name=first"].

    Raises:
        UserError: the verb cannot run on a cluster, the experiment does not compose, or its name is not one.
    """
    words = list(arguments)
    example = command("cluster", "render", "FILE", "--", "train", "quickstart", "name=first")
    if len(words) < 2 or words[0] not in VERBS:
        found = repr(" ".join(words) or "nothing")
        allowed = " or ".join(VERBS)
        raise UserError(f"the command after -- is {found:.120}; allowed: {allowed}\n  such as: {example}")
    options = [word for word in words[2:] if word.startswith("-")]
    if "--local" in options:
        raise UserError("--local runs without Ray, in one process: leave it out on a cluster")
    overrides = [word for word in words[2:] if not word.startswith("-")]
    given = {word.partition("=")[0] for word in overrides}
    if cluster.mlflow is not None and "tracking.uri" not in given:
        overrides.append(_TRACKING_OVERRIDE)
    if isinstance(cluster.storage, ObjectStorage) and "runs" not in given:
        overrides.append(f"runs={cluster.storage.url}")
    with _as_on_a_node(cluster):
        experiment = compose_experiment(words[1], overrides).experiment
    name = f"{cluster.owner}-{experiment.name}"
    try:
        dns_label(name)
    except ValueError as error:
        raise UserError(
            f"the job's name is OWNER-RUN, {error}\n  choose another name of the run: name=…, or a shorter owner"
        ) from None
    if words[0] == "sweep" and experiment.sweep is None:
        raise UserError(f"{words[1]} has no section sweep\n  see: {command('config', 'show', words[1])}")
    return Workload((words[0], words[1], *options, *overrides), experiment, name)


def tracking_uri(cluster: ClusterFile) -> str | None:
    """Return the address of the cluster's MLflow server, as its nodes see it. None: it has none."""
    if cluster.mlflow is None:
        return None
    if isinstance(cluster.mlflow, MlflowDeployment):
        return f"http://causalfusion-mlflow.{cluster.namespace}.svc.cluster.local:5000"
    return cluster.mlflow.uri


def workers_of_node(group: Group, demand: Demand) -> int:
    """Return how many workers fit on a node of a group."""
    gpus = group.gpu.count if group.gpu is not None else 0
    return Resources.of(group.cpus, gpus).fits(demand.worker)


@contextmanager
def _as_on_a_node(cluster: ClusterFile) -> Iterator[None]:
    """Compose with the environment of a node, and restore this process's."""
    changes: Mapping[str, str | None] = {HOME_VARIABLE: cluster.home, TRACKING: tracking_uri(cluster)}
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
