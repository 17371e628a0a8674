"""Check a cluster file, a command and the rendered files, without a cluster."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config.commands import command
from ..storage.objects import is_object_url
from .cluster_file import ClusterFile, ObjectStorage
from .launcher.rules import check_launcher
from .placement import Placement, capacity, place, price_per_hour
from .slurm.rules import check_script
from .workload import Workload


@dataclass(frozen=True)
class Checked:
    """Result of a check."""

    placement: Placement
    faults: tuple[str, ...]
    """Each says where, what, and what is allowed."""
    notes: tuple[str, ...]
    """What the files take: nodes, CPUs, price."""


def check(cluster: ClusterFile, workload: Workload, files: dict[str, str], schemas: Path | None = None) -> Checked:
    """Check that a command fits on a cluster and that its files hold to all rules.

    Args:
        cluster: the cluster.
        workload: the command.
        files: what `render` made of both.
        schemas: folder of CustomResourceDefinitions, for Kubernetes.

    Raises:
        UserError: the command does not fit.
    """
    placement = place(cluster, workload.demand)
    faults = [*_versions(cluster), *_storage(cluster, workload), *_of_target(cluster, workload, files, schemas)]
    return Checked(placement, tuple(faults), tuple(_notes(cluster, workload, placement)))


def _of_target(
    cluster: ClusterFile, workload: Workload, files: dict[str, str], schemas: Path | None
) -> Iterator[str]:
    if cluster.target == "kuberay":
        from .kuberay.rules import check_kuberay

        yield from check_kuberay(files, cluster, workload, schemas)
    elif cluster.target == "ray":
        for name, text in files.items():
            yield from check_launcher(name, text)
    else:
        for name, text in files.items():
            yield from check_script(name, text)


def _versions(cluster: ClusterFile) -> Iterator[str]:
    """Compare Ray's version in the image, here, and in the Dockerfile of a checkout."""
    here = importlib.metadata.version("ray")
    if cluster.ray_version != here:
        yield f"ray_version: the image has Ray {cluster.ray_version}, and here is {here}; jobs need the same"
    dockerfile = Path("cluster/Dockerfile")
    if dockerfile.is_file():
        found = re.search(r"^FROM rayproject/ray:([0-9.]+)", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
        if found and found[1] != here:
            yield f"{dockerfile}: its base has Ray {found[1]}, and here is {here}"


def _storage(cluster: ClusterFile, workload: Workload) -> Iterator[str]:
    """Check that runs and shards lie where all nodes see them."""
    experiment, home = workload.experiment, Path(cluster.home)
    for key, path in (("runs", experiment.runs), ("data.path", experiment.data.path)):
        if not isinstance(path, Path) or is_object_url(path):
            continue
        if isinstance(cluster.storage, ObjectStorage):
            yield f"{key}={path} is a folder, and the nodes share none: give {key}={cluster.storage.url}/…"
        elif not path.is_relative_to(home):
            yield f"{key}={path} is outside {home}, which is all that the nodes share: give a path below it"
    if cluster.mlflow is None and experiment.tracking.uri is None and cluster.target == "kuberay":
        yield (
            "mlflow: none is given, and SQLite's locks do not work on network file systems: "
            "give mlflow kind uri or deploy"
        )


def _notes(cluster: ClusterFile, workload: Workload, placement: Placement) -> Iterator[str]:
    demand, group = workload.demand, cluster.groups[placement.group]
    spare = capacity(group).cpus * placement.nodes - demand.worker.cpus * demand.workers
    yield (
        f"{placement.nodes} nodes of group {placement.group} for {demand.workers} workers, "
        f"{placement.workers_per_node} at most on a node"
    )
    yield f"{demand.reading.cpus:g} CPUs for reading data, of {spare:g} that the workers leave"
    hourly = price_per_hour(cluster, placement)
    if hourly:
        hours = cluster.deadlines.run_seconds / 3600
        yield f"price {hourly:.2f} per hour, at most {hourly * hours:.2f} in {hours:g} hours"


def explained(checked: Checked, cluster: ClusterFile) -> str:
    """Return the notes and faults as lines for a person."""
    lines = [*checked.notes]
    if checked.faults:
        lines.append(f"{len(checked.faults)} faults:")
        lines += [f"  {fault}" for fault in checked.faults]
        lines.append(f"  all keys of a cluster file: {command('cluster', 'schema')}")
    else:
        lines.append(f"no fault found for target {cluster.target}")
    return "\n".join(lines)
