"""A pod that only mounts the shared folder, to copy results from it."""

from __future__ import annotations

from ..cluster_file import ClusterFile, ObjectStorage
from .documents import PART_OF, Tree, document
from .pods import container_security, pod_basics, resources
from .storage import home_volume

_SECONDS = 3600
_LABELS = {**PART_OF, "app.kubernetes.io/name": "causalfusion-fetch"}


def fetch_documents(cluster: ClusterFile) -> list[Tree]:
    """Return the pod, which ends after an hour if it is not deleted. Empty for a bucket, which others read.

    The network policy that denies by default selects it: `kubectl cp` passes through the node.
    """
    if isinstance(cluster.storage, ObjectStorage):
        return []
    container = {
        "name": "fetch",
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "resources": resources(0.1, 0.25),
        "securityContext": container_security(),
        "volumeMounts": [{"name": "home", "mountPath": cluster.home, "readOnly": True}],
    }
    spec = {
        **pod_basics(cluster, token=False),
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _SECONDS,
        "containers": [container],
        "volumes": [home_volume(cluster)],
    }
    return [document("Pod", "v1", "causalfusion-fetch", cluster.namespace, _LABELS, spec=spec)]
