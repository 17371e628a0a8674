"""Cluster files and commands whose rendered files the tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from causalfusion_platform.deploy.cluster_file import ClusterFile
from causalfusion_platform.deploy.kuberay.render import render_kuberay
from causalfusion_platform.deploy.read import read_cluster_file
from causalfusion_platform.deploy.workload import Workload, read_workload

REPOSITORY = Path(__file__).resolve().parents[4]
COMMITTED = REPOSITORY / "cluster" / "kubernetes.yaml"
RENDERED = REPOSITORY / "cluster" / "rendered" / "kuberay"
DIGEST = "sha256:" + "1" * 64

TRAIN = (
    "train",
    "quickstart",
    "name=first",
    "data.prepare=true",
    "train.num_workers=2",
    "train.cpus_per_worker=2",
    "train.gpus_per_worker=1",
)
SWEEP = ("sweep", "sweeps/gamma", "name=first-sweep", "train.gpus_per_worker=1", "train.cpus_per_worker=2")

GPU = {"cpus": 8, "memory_gib": 32, "gpu": {"kind": "NVIDIA-L4", "count": 1}, "max_nodes": 8}
BASE: dict[str, Any] = {
    "target": "kuberay",
    "owner": "ada",
    "namespace": "lab",
    "image": f"registry.example.org/causalfusion@{DIGEST}",
    "groups": {"gpu": GPU},
}
EVERYTHING: dict[str, Any] = BASE | {
    "groups": {
        "gpu": GPU | {"price_per_hour": 4, "labels": {"pool": "l4"}},
        "spot": GPU | {"price_per_hour": 1, "spot": True, "tolerated_taints": ["lab/spot"]},
    },
    "storage": {
        "kind": "s3",
        "url": "s3://bucket/runs",
        "endpoint": "https://s3.example.org:9000",
        "secret": "aws",
    },
    "network": {"interface": "eth1", "infiniband": True, "egress": ["10.0.0.0/8:8443"]},
    "mlflow": {
        "kind": "deploy",
        "artifacts": "s3://bucket/mlflow",
        "artifacts_secret": "aws",
        "artifacts_endpoint": "https://s3.example.org:9000",
        "postgres_image": f"docker.io/library/postgres@{DIGEST}",
    },
    "queue": "team-queue",
    "priority": "training",
    "image_pull_secret": "registry",
    "retries": 5,
    "deadlines": {"pending_seconds": 900, "run_seconds": 7200, "grace_seconds": 90, "after_seconds": 60},
}
NFS: dict[str, Any] = BASE | {
    "storage": {"kind": "nfs", "server": "10.1.2.3", "path": "/export/causalfusion"},
    "mlflow": {"kind": "uri", "uri": "http://mlflow.tools.svc.cluster.local:80", "secret": "login"},
}


def cluster_file(tree: dict[str, Any]) -> ClusterFile:
    """Return the cluster file of a tree."""
    return ClusterFile.model_validate(tree)


def committed() -> tuple[ClusterFile, Workload, dict[str, str]]:
    """Return the cluster file of the repository, the command of its rendered files, and what both render to."""
    cluster = read_cluster_file(str(COMMITTED))
    workload = read_workload(cluster, TRAIN)
    return cluster, workload, render_kuberay(cluster, workload)


def rendered(tree: dict[str, Any], words: tuple[str, ...]) -> tuple[ClusterFile, Workload, dict[str, str]]:
    """Return a cluster, a command, and what both render to."""
    cluster = cluster_file(tree)
    workload = read_workload(cluster, words)
    return cluster, workload, render_kuberay(cluster, workload)


def documents(files: dict[str, str]) -> dict[str, Any]:
    """Return the documents of files by `Kind/name`."""
    trees = [tree for text in files.values() for tree in yaml.safe_load_all(text)]
    return {f"{tree['kind']}/{tree['metadata']['name']}": tree for tree in trees}
