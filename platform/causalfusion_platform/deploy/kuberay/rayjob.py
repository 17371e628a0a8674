"""The RayJob of a command."""

from __future__ import annotations

import shlex

from ..cluster_file import ClusterFile
from ..workload import Workload
from .documents import Tree, document, run_labels
from .pods import submitter_pod
from .raycluster import RAY_VERSION, fixed_cluster, queue_label


def run_job(cluster: ClusterFile, workload: Workload) -> Tree:
    """Return a RayJob with a Ray cluster of its own.

    After the loss of the head or the driver it starts again with a new Ray cluster, and the run continues.

    Raises:
        UserError: the command does not fit on the cluster.
    """
    spec = {
        **_command(cluster, workload),
        "backoffLimit": cluster.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": cluster.deadlines.after_seconds,
        **({"suspend": True} if cluster.queue is not None else {}),
        "rayClusterSpec": fixed_cluster(cluster, workload),
        "submitterPodTemplate": submitter_pod(cluster, workload),
    }
    labels = {**run_labels(cluster, workload), **queue_label(cluster)}
    return document("RayJob", RAY_VERSION, workload.name, cluster.namespace, labels, spec=spec)


def sweep_job(cluster: ClusterFile, workload: Workload) -> Tree:
    """Return the RayJob that submits a sweep to the RayCluster of its name, which outlives it.

    The operator does not repeat such a job. Deleted and applied again, the sweep continues.
    """
    spec = {
        **_command(cluster, workload),
        "clusterSelector": {"ray.io/cluster": workload.name},
        "submitterPodTemplate": submitter_pod(cluster, workload),
    }
    labels = run_labels(cluster, workload)
    return document("RayJob", RAY_VERSION, workload.name, cluster.namespace, labels, spec=spec)


def _command(cluster: ClusterFile, workload: Workload) -> Tree:
    return {
        # The submitter's shell and the head's each read this line once, hence the quotes.
        "entrypoint": shlex.join(["causalfusion", *workload.arguments]),
        "submissionMode": "K8sJobMode",
        "preRunningDeadlineSeconds": cluster.deadlines.pending_seconds,
        "activeDeadlineSeconds": cluster.deadlines.run_seconds,
    }
