"""The files of a command for Kubernetes, by name, in the order of applying."""

from __future__ import annotations

from ...config.commands import command
from ..cluster_file import ClusterFile
from ..workload import Workload
from .documents import Tree, text
from .fetch import fetch_documents
from .mlflow import mlflow_documents
from .network_policies import run_policies, shared_policies
from .raycluster import autoscaler_rights, is_scaling, sweep_cluster
from .rayjob import run_job, sweep_job
from .storage import home_documents

HOME, SHARED_NETWORK, MLFLOW = "1-home.yaml", "2-network.yaml", "3-mlflow.yaml"
KEPT = (HOME, SHARED_NETWORK, MLFLOW)
"""Files of a namespace, which outlive runs. Deleting `1-home.yaml` deletes its runs."""
RUN_NETWORK, AUTOSCALER, CLUSTER, JOB = (
    "4-run-network.yaml",
    "5-autoscaler.yaml",
    "6-raycluster.yaml",
    "7-rayjob.yaml",
)
FETCH = "fetch.yaml"

_PURPOSES = {
    HOME: "The volume of runs and shards. It outlives runs.",
    SHARED_NETWORK: "Network policies of the namespace: no traffic but name resolution, and MLflow's.",
    MLFLOW: "MLflow with a login, and its Postgres. They outlive runs.",
    RUN_NETWORK: "Network policies of this run.",
    AUTOSCALER: "Service account of the autoscaler.",
    CLUSTER: "Ray cluster of the sweep.",
    JOB: "The run. Needs the KubeRay operator 1.7 or newer.",
}


def render_kuberay(cluster: ClusterFile, workload: Workload) -> dict[str, str]:
    """Return the files of a command. The same arguments give the same bytes.

    Raises:
        UserError: the command does not fit on the cluster.
    """
    scaling = is_scaling(cluster, workload)
    job = sweep_job(cluster, workload) if workload.is_sweep else run_job(cluster, workload)
    files: dict[str, list[Tree]] = {
        HOME: home_documents(cluster),
        SHARED_NETWORK: shared_policies(cluster),
        MLFLOW: mlflow_documents(cluster),
        RUN_NETWORK: run_policies(cluster, workload, autoscaler=scaling),
        AUTOSCALER: autoscaler_rights(cluster, workload) if scaling else [],
        CLUSTER: [sweep_cluster(cluster, workload)] if workload.is_sweep else [],
        JOB: [job],
    }
    made = command("cluster", "render", "FILE", "--", *workload.arguments[:2])
    header = f"{{purpose}}\nRendered by `{made}`. Change the cluster file, and render again."
    return {
        name: text(header.format(purpose=_PURPOSES[name]), documents)
        for name, documents in files.items()
        if documents
    }


def render_fetch(cluster: ClusterFile) -> dict[str, str]:
    """Return the file of a pod from which `kubectl cp` copies results. Empty for a bucket."""
    header = "A pod that only mounts the volume, to copy results from it with `kubectl cp`. It ends after an hour."
    return {FETCH: text(header, documents)} if (documents := fetch_documents(cluster)) else {}
