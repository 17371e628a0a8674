"""Render a cluster file and a command into the files of its target."""

from __future__ import annotations

from collections.abc import Callable

from .cluster_file import ClusterFile
from .workload import Workload

Renderer = Callable[[ClusterFile, Workload], dict[str, str]]


def render(cluster: ClusterFile, workload: Workload) -> dict[str, str]:
    """Return the files of a target by name, in the order in which they are applied.

    The same arguments give the same bytes.
    """
    return _renderer(cluster.target)(cluster, workload)


def _renderer(target: str) -> Renderer:
    if target == "kuberay":
        from .kuberay.render import render_kuberay

        return render_kuberay
    if target == "slurm":
        from .slurm.render import render_slurm

        return render_slurm
    from .launcher.render import render_launcher

    return render_launcher
