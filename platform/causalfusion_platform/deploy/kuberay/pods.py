"""Pods of Ray and of the submitter.

Requests equal limits, so that Kubernetes does not evict a running job for memory.
"""

from __future__ import annotations

from ..cluster_file import ClusterFile, Group
from ..workload import Workload
from .documents import COMPONENT, INSTANCE, Tree, run_labels
from .environment import environment
from .hooks import drain_node, stop_driver
from .storage import home_volume

HEAD, WORKER, SUBMITTER = "ray-head", "ray-worker", "submitter"
GPU = "nvidia.com/gpu"
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}

_UID, _GID = 1000, 100
_SPOT_TAINTS = {"cloud.google.com/gke-spot": "true", "kubernetes.azure.com/scalesetpriority": "spot"}
_OBJECT_STORE = 0.3
"""Share of a pod's memory that Ray takes for its object store, in shared memory."""


def pod_security(uid: int = _UID, gid: int = _GID) -> Tree:
    """Return the security context of a pod that passes Pod Security "restricted"."""
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": gid,
        "fsGroup": gid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Tree:
    """Return the security context of a container: no capabilities, and no way to more rights."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_basics(cluster: ClusterFile, *, token: bool) -> Tree:
    """Return what the specs of all pods begin with. `token`: the pod gets a token for Kubernetes' API server."""
    spec: Tree = {
        "automountServiceAccountToken": token,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
    }
    if cluster.priority is not None:
        spec["priorityClassName"] = cluster.priority
    if cluster.image_pull_secret is not None:
        spec["imagePullSecrets"] = [{"name": cluster.image_pull_secret}]
    return spec


def resources(cpus: float, memory_gib: float, **others: int) -> Tree:
    """Return requests and the same limits."""
    amounts = {"cpu": f"{round(cpus * 1000)}m" if cpus % 1 else str(round(cpus)), "memory": _memory(memory_gib)}
    amounts |= {name: str(count) for name, count in others.items()}
    return {"requests": amounts, "limits": amounts}


def head_pod(cluster: ClusterFile, workload: Workload, autoscaler: str | None = None) -> Tree:
    """Return the template of the head's pod.

    Args:
        cluster: the cluster.
        workload: the command.
        autoscaler: service account of the autoscaler, which the operator runs in this pod. None: no autoscaler.
    """
    container = {
        **_container(cluster, "ray-head"),
        "ports": [{"name": name, "containerPort": port} for name, port in PORTS.items()],
        "env": environment(cluster, None),
        "resources": resources(cluster.head.cpus, cluster.head.memory_gib),
        "volumeMounts": _mounts(cluster),
        "lifecycle": stop_driver(cluster.deadlines.grace_seconds),
    }
    account = {"serviceAccountName": autoscaler, "restartPolicy": "Never"} if autoscaler is not None else {}
    spec = {
        **pod_basics(cluster, token=autoscaler is not None),
        **account,
        **_ends(cluster),
        "containers": [container],
        "volumes": _volumes(cluster, cluster.head.memory_gib),
    }
    return {"metadata": {"labels": run_labels(cluster, workload, HEAD)}, "spec": spec}


def worker_pod(cluster: ClusterFile, workload: Workload, name: str, *, autoscaler: bool = False) -> Tree:
    """Return the template of the pods of a group: one pod is one node."""
    group = cluster.groups[name]
    others = {GPU: group.gpu.count} if group.gpu is not None else {}
    if cluster.network.infiniband:
        others[cluster.network.rdma_resource] = 1
    container = {
        **_container(cluster, "ray-worker"),
        "env": environment(cluster, group),
        "resources": resources(group.cpus, group.memory_gib, **others),
        "volumeMounts": _mounts(cluster),
        "lifecycle": drain_node(cluster.deadlines.grace_seconds),
    }
    labels = run_labels(cluster, workload, WORKER)
    chosen = _node_labels(group)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {key: labels[key] for key in (INSTANCE, COMPONENT)}},
    }
    spec = {
        **pod_basics(cluster, token=False),
        **({"restartPolicy": "Never"} if autoscaler else {}),
        **_ends(cluster),
        **({"nodeSelector": chosen} if chosen else {}),
        **({"tolerations": tolerations} if (tolerations := _tolerations(group)) else {}),
        "topologySpreadConstraints": [spread],
        "containers": [container],
        "volumes": _volumes(cluster, group.memory_gib),
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def submitter_pod(cluster: ClusterFile, workload: Workload) -> Tree:
    """Return the template of the pod that submits the command. The operator fills in its command and the token."""
    container = {**_container(cluster, "submit"), "resources": resources(0.5, 1)}
    spec = {**pod_basics(cluster, token=False), "restartPolicy": "Never", "containers": [container]}
    return {"metadata": {"labels": run_labels(cluster, workload, SUBMITTER)}, "spec": spec}


def _ends(cluster: ClusterFile) -> Tree:
    return {"terminationGracePeriodSeconds": cluster.deadlines.grace_seconds}


def _container(cluster: ClusterFile, name: str) -> Tree:
    return {
        "name": name,
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": container_security(),
    }


def _node_labels(group: Group) -> Tree:
    product = {f"{GPU}.product": group.gpu.kind} if group.gpu is not None else {}
    return {**product, **dict(sorted(group.labels.items()))}


def _tolerations(group: Group) -> list[Tree]:
    keys = [*([GPU] if group.gpu is not None else []), *group.tolerated_taints]
    tolerated: list[Tree] = [{"key": key, "operator": "Exists"} for key in keys]
    if group.spot:
        tolerated += [
            {"key": key, "operator": "Equal", "value": content, "effect": "NoSchedule"}
            for key, content in _SPOT_TAINTS.items()
        ]
    return tolerated


def _mounts(cluster: ClusterFile) -> list[Tree]:
    return [{"name": "home", "mountPath": cluster.home}, {"name": "shm", "mountPath": "/dev/shm"}]


def _volumes(cluster: ClusterFile, memory_gib: float) -> list[Tree]:
    """Return the home, and the shared memory of the object store and of NCCL."""
    shared = {"medium": "Memory", "sizeLimit": _memory(memory_gib * (_OBJECT_STORE + 0.08))}
    return [home_volume(cluster), {"name": "shm", "emptyDir": shared}]


def _memory(gib: float) -> str:
    return f"{round(gib * 1024)}Mi" if gib % 1 else f"{round(gib)}Gi"
