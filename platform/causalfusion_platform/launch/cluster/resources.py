"""CPUs and GPUs of the cluster, and how many workers, trials, sampling actors and encoders fit on them.

Amounts are added up over all nodes. Ray itself places each worker on one node: one that is larger than any node
passes here and waits there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from ...config.errors import NotNow, UserError
from ...config.schema import Experiment
from ...data.encode.resources import PipelineResources
from ...ray_private import ClusterNode, alive_nodes, draining_nodes

# A trial's own process only waits for its workers. A whole CPU for it would deadlock two cores: the trial holds
# the CPU that its workers wait for.
TRIAL_CPUS = 0.01
# A sampling actor computes on one thread, or on a GPU. It reserves less than a CPU: other processes need one too.
SAMPLING_CPUS = 0.5

_CONNECT_SECONDS = 2.0
_UNIT = 10_000  # Ray counts in 1/10000 of a CPU or GPU: sums of fractions exceed what they equal in other units


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs in Ray's own unit, so that sums and quotients are exact."""

    cpu_units: int = 0
    gpu_units: int = 0

    @classmethod
    def of(cls, cpus: float, gpus: float = 0.0) -> Self:
        """Return so many CPUs and GPUs."""
        return cls(round(cpus * _UNIT), round(gpus * _UNIT))

    @property
    def cpus(self) -> float:
        """Number of CPUs."""
        return self.cpu_units / _UNIT

    @property
    def gpus(self) -> float:
        """Number of GPUs."""
        return self.gpu_units / _UNIT

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpu_units + other.cpu_units, self.gpu_units + other.gpu_units)

    def __mul__(self, count: int) -> Resources:
        return Resources(self.cpu_units * count, self.gpu_units * count)

    def fits(self, each: Resources, beside: Resources | None = None) -> int:
        """Return how many of `each`, which takes some CPU or GPU, fit next to one of `beside`."""
        beside = beside or Resources()
        kinds = (
            (self.cpu_units - beside.cpu_units, each.cpu_units),
            (self.gpu_units - beside.gpu_units, each.gpu_units),
        )
        return min(max(free, 0) // wanted for free, wanted in kinds if wanted)


def cluster_resources() -> Resources:
    """Return the resources, used or not, of the nodes that answer and are not being taken back.

    Ray notices the death of a node after tens of seconds. Until then it would place workers there.
    """
    draining = draining_nodes()
    nodes = [node for node in alive_nodes() if node.id not in draining]
    with ThreadPoolExecutor(max_workers=32) as pool:
        answering = [node for node, answers in zip(nodes, pool.map(_answers, nodes), strict=True) if answers]
    return _sum(answering)


def _answers(node: ClusterNode) -> bool:
    try:
        with socket.create_connection((node.address, node.port), _CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _sum(nodes: Iterable[ClusterNode]) -> Resources:
    each = (Resources.of(node.resources.get("CPU", 0.0), node.resources.get("GPU", 0.0)) for node in nodes)
    return sum(each, Resources())


def training_resources(experiment: Experiment) -> tuple[Resources, Resources]:
    """Return what one worker of a training takes, and what a task that reads its data takes."""
    train = experiment.train
    return Resources.of(train.cpus_per_worker, train.gpus_per_worker), Resources.of(experiment.data.cpus_per_task)


def check_training(experiment: Experiment, have: Resources) -> None:
    """Check that a cluster holds all workers of a training and, beside them, a task that reads data.

    Ray would wait for more resources for ever, without a message.

    Raises:
        UserError: it does not. The message says how many workers fit.
    """
    train, (worker, reader) = experiment.train, training_resources(experiment)
    need = worker * train.num_workers + reader
    if need.cpu_units > have.cpu_units:
        fit = have.fits(Resources(worker.cpu_units), reader)
        raise NotNow(
            f"train.num_workers={train.num_workers} × train.cpus_per_worker={train.cpus_per_worker:g} plus "
            f"{reader.cpus:g} for reading data are {need.cpus:g} CPUs, but the cluster has {have.cpus:g}\n"
            f"  allowed: train.num_workers up to {fit}, or fewer train.cpus_per_worker (fractions are fine)"
        )
    if need.gpu_units > have.gpu_units:
        raise NotNow(
            f"train.num_workers={train.num_workers} × train.gpus_per_worker={train.gpus_per_worker:g} exceed the "
            f"cluster's {have.gpus:g} GPUs\n  set train.gpus_per_worker=0 to train on CPUs"
        )


def workers_that_fit(experiment: Experiment, have: Resources) -> int:
    """Return how many workers of a training fit, at most all of them, such that they divide the global batch.

    Rows that are mixed in pairs are an even number on each worker.
    """
    train, finetune = experiment.train, experiment.finetune
    pairs = experiment.task == "classification" and finetune is not None and finetune.augment.mixes
    fit = min(have.fits(*training_resources(experiment)), train.num_workers)
    while fit and train.global_batch_size % (fit * (train.micro_batch_size or (2 if pairs else 1))):
        fit -= 1
    return fit


def trials_that_fit(experiments: Iterable[Experiment], have: Resources) -> int:
    """Return how many trials of a sweep fit at once: of each its workers, a task that reads, and its own process.

    Raises:
        UserError: not even one of the experiments fits.
    """
    fits = []
    for experiment in experiments:
        check_training(experiment, have)
        worker, reader = training_resources(experiment)
        fits.append(have.fits(worker * experiment.train.num_workers + reader + Resources.of(TRIAL_CPUS)))
    return max(
        1, min(fits)
    )  # the trial's own process may not fit beside the rest: Ray then runs one trial all the same


def sampling_actors(wanted: int | None, have: Resources) -> tuple[int, int]:
    """Return the number of sampling actors, and the GPUs of each: 1 where there are GPUs.

    Args:
        wanted: number of actors. None: one for each GPU, or for each CPU on a cluster without GPUs.

    Raises:
        UserError: this number of actors does not fit.
    """
    cpus, gpus = have.cpus, int(have.gpus)
    fit = have.fits(Resources.of(SAMPLING_CPUS, 1 if gpus else 0))
    if wanted is not None and not 1 <= wanted <= fit:
        one = f"{SAMPLING_CPUS:g} CPUs and a GPU each" if gpus else f"{SAMPLING_CPUS:g} CPUs each"
        raise UserError(
            f"--workers {wanted}, but the cluster has {cpus:g} CPUs and {gpus} GPUs\n  allowed: 1 to {fit}, {one}"
        )
    return wanted or max(1, min(fit, gpus or int(cpus))), 1 if gpus else 0


def encoding_resources(encoders: int | None) -> PipelineResources:
    """Divide a cluster's CPUs and GPUs between reading and encoding, so that neither waits for ever for a CPU.

    Args:
        encoders: number of encoders. None: one per GPU, or one per node on a cluster without GPUs.

    Raises:
        UserError: this number of encoders does not fit.
    """
    nodes = [node for node in alive_nodes() if node.resources.get("CPU")]
    have = _sum(nodes)
    if encoders is not None and encoders < 1:
        raise UserError(f"--encoders must be at least 1, got {encoders}")
    if not nodes:
        raise UserError("no node of the cluster has CPUs to decode images with\n  add nodes with CPUs: ray start")
    if have.gpus:
        count = encoders or int(have.gpus)
        if count > have.gpus:
            raise UserError(f"--encoders {count}, but the cluster has {have.gpus:g} GPUs, one for each")
        # A GPU takes the images that a few CPUs decode; the last 2 CPUs stay for Ray and for writing.
        return PipelineResources(
            encoders=count,
            gpus_per_encoder=1,
            cpus_per_encoder=0.5,
            threads=1,
            decoders=max(1, int(have.cpus - 0.5 * count) - 2),
            cpus_per_decoder=min(1.0, have.cpus / 4),
        )
    count = encoders or len(nodes)
    per_node = -(-count // len(nodes))
    smallest = min(node.resources["CPU"] for node in nodes)
    if per_node > smallest:
        raise UserError(f"--encoders {count}, but {len(nodes)} nodes have {have.cpus:g} CPUs")
    # An encoder computes with all of its node's CPUs. It reserves fewer: tasks decode and write beside it.
    return PipelineResources(
        encoders=count,
        gpus_per_encoder=0,
        cpus_per_encoder=0.6 * smallest / per_node,
        threads=max(1, int(smallest / per_node)),
        decoders=max(1, int(have.cpus)),
        cpus_per_decoder=0.25,
    )
