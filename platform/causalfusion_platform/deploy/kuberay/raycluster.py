"""The Ray cluster of a run, and that of a sweep, which grows and shrinks with its trials."""

from __future__ import annotations

from ..cluster_file import ClusterFile
from ..placement import capacity, place
from ..workload import Workload
from .documents import Tree, document, run_labels
from .pods import container_security, head_pod, resources, worker_pod

RAY_VERSION = "ray.io/v1"
QUEUE = "kueue.x-k8s.io/queue-name"
IDLE_SECONDS = 120
"""Seconds after which the autoscaler gives an idle node back."""

# The head schedules and runs the driver. The workers do all other work.
_HEAD = {"num-cpus": "0", "num-gpus": "0"}


def fixed_cluster(cluster: ClusterFile, workload: Workload) -> Tree:
    """Return a Ray cluster with the nodes of all workers of a command, as `rayClusterSpec`.

    Raises:
        UserError: they do not fit.
    """
    placed = place(cluster, workload.demand)
    group = _group(cluster, workload, placed.group, placed.nodes, placed.nodes, placed.nodes)
    return _spec(cluster, head_pod(cluster, workload), [group])


def scaling_cluster(cluster: ClusterFile, workload: Workload) -> Tree:
    """Return a Ray cluster that grows with the trials of a sweep, over every group that holds a worker.

    Raises:
        UserError: the trials that run at once fit on no group.
    """
    demand = workload.demand
    place(cluster, demand)
    groups = []
    for name, group in cluster.groups.items():
        suits = bool(demand.worker.gpus) == (group.gpu is not None)
        if suits and capacity(group).fits(demand.worker):
            least = group.min_nodes
            groups.append(_group(cluster, workload, name, least, least, group.max_nodes, autoscaler=True))
    spec = _spec(cluster, head_pod(cluster, workload, workload.name), groups)
    options = {
        "version": "v2",
        "upscalingMode": "Default",
        "idleTimeoutSeconds": IDLE_SECONDS,
        "imagePullPolicy": "IfNotPresent",
        "resources": resources(0.5, 1),
        "securityContext": container_security(),
    }
    return {
        "rayVersion": spec.pop("rayVersion"),
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": options,
        **spec,
    }


def is_scaling(cluster: ClusterFile, workload: Workload) -> bool:
    """Return True where the autoscaler runs: for sweeps. Kueue admits only clusters of a fixed size."""
    return workload.is_sweep and cluster.queue is None


def sweep_cluster(cluster: ClusterFile, workload: Workload) -> Tree:
    """Return the RayCluster of a sweep."""
    spec = (scaling_cluster if is_scaling(cluster, workload) else fixed_cluster)(cluster, workload)
    labels = {**run_labels(cluster, workload), **queue_label(cluster)}
    if cluster.queue is not None:
        spec = {"suspend": True, **spec}
    return document("RayCluster", RAY_VERSION, workload.name, cluster.namespace, labels, spec=spec)


def autoscaler_rights(cluster: ClusterFile, workload: Workload) -> list[Tree]:
    """Return the service account of the autoscaler and its rights: this RayCluster, and the namespace's pods."""
    name, labels = workload.name, run_labels(cluster, workload)
    version = "rbac.authorization.k8s.io/v1"
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "resourceNames": [name], "verbs": ["get", "patch"]},
    ]
    subject = {"kind": "ServiceAccount", "name": name, "namespace": cluster.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    account = document("ServiceAccount", "v1", name, cluster.namespace, labels)
    return [
        {**account, "automountServiceAccountToken": False},
        document("Role", version, name, cluster.namespace, labels, rules=rules),
        document("RoleBinding", version, name, cluster.namespace, labels, roleRef=role, subjects=[subject]),
    ]


def queue_label(cluster: ClusterFile) -> Tree:
    """Return the label by which Kueue takes a document into a queue."""
    return {QUEUE: cluster.queue} if cluster.queue is not None else {}


def _spec(cluster: ClusterFile, head: Tree, groups: list[Tree]) -> Tree:
    return {
        "rayVersion": cluster.ray_version,
        # The operator makes a random token in a Secret, and passes it to every pod.
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"serviceType": "ClusterIP", "rayStartParams": dict(_HEAD), "template": head},
        "workerGroupSpecs": groups,
    }


def _group(
    cluster: ClusterFile,
    workload: Workload,
    name: str,
    nodes: int,
    least: int,
    most: int,
    *,
    autoscaler: bool = False,
) -> Tree:
    return {
        "groupName": name,
        "replicas": nodes,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": worker_pod(cluster, workload, name, autoscaler=autoscaler),
    }
