"""Cluster files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from causalfusion_platform.deploy.cluster_file import ClusterFile
from causalfusion_platform.deploy.workload import Workload, read_workload

IMAGE = "registry.example.org/causalfusion@sha256:" + "a" * 64
COMMAND = ("train", "quickstart", "name=first", "data.prepare=true")


def tree(target: str = "slurm", **changes: Any) -> dict[str, Any]:
    """Return a cluster file as a tree, with some keys changed."""
    base: dict[str, Any] = {
        "target": target,
        "owner": "ada",
        "image": IMAGE,
        "groups": {"cpu": {"cpus": 4, "memory_gib": 8, "max_nodes": 4, "price_per_hour": 0.5}},
        "storage": {"kind": "nfs", "server": "10.0.0.9", "path": "/export/causalfusion"},
    }
    if target == "ray":
        base["launcher"] = {
            "provider": "aws",
            "region": "us-east-1",
            "instances": {"head": "m7i.large", "cpu": "c7i.xlarge", "gpu": "p5.48xlarge"},
        }
    return base | changes


def cluster(target: str = "slurm", **changes: Any) -> ClusterFile:
    """Return a valid cluster file."""
    return ClusterFile.model_validate(tree(target, **changes))


def workload(file: ClusterFile, *arguments: str) -> Workload:
    """Return a command on a cluster."""
    return read_workload(file, arguments or COMMAND)


def write(folder: Path, contents: dict[str, Any]) -> str:
    """Write a cluster file and return its path."""
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return str(path)
