"""The folder of runs and shards in the pods, and the volume behind it."""

from __future__ import annotations

from ..cluster_file import ClusterFile, Nfs, ObjectStorage, VolumeClaim
from .documents import PART_OF, Tree, document

NFS_CLAIM = "causalfusion-home"
_LABELS = {**PART_OF, "app.kubernetes.io/name": "causalfusion"}
_SCRATCH = "50Gi"


def home_volume(cluster: ClusterFile) -> Tree:
    """Return the volume that pods mount at the home.

    Runs in a bucket need a folder of their own node only, for files on their way there.
    """
    if isinstance(cluster.storage, ObjectStorage):
        return {"name": "home", "emptyDir": {"sizeLimit": _SCRATCH}}
    return {"name": "home", "persistentVolumeClaim": {"claimName": claim_name(cluster.storage)}}


def claim_name(storage: VolumeClaim | Nfs) -> str:
    """Return the name of the claim of a shared folder."""
    return storage.claim if isinstance(storage, VolumeClaim) else NFS_CLAIM


def home_documents(cluster: ClusterFile) -> list[Tree]:
    """Return the claim of the shared folder, and for NFS its volume. Empty for a bucket.

    A pod may not mount NFS itself: Pod Security "restricted" allows claims only.
    """
    if isinstance(cluster.storage, ObjectStorage):
        return []
    size = {"storage": f"{cluster.storage.size_gib}Gi"}
    spec: Tree = {"accessModes": ["ReadWriteMany"], "resources": {"requests": size}}
    if isinstance(cluster.storage, VolumeClaim):
        if cluster.storage.storage_class is not None:
            spec["storageClassName"] = cluster.storage.storage_class
        return [_claim(cluster, spec)]
    volume = f"{cluster.namespace}-{NFS_CLAIM}"
    nfs = {"server": cluster.storage.server, "path": cluster.storage.path}
    whole: Tree = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume, "labels": _LABELS},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "nfs": nfs,
        },
    }
    return [whole, _claim(cluster, {**spec, "storageClassName": "", "volumeName": volume})]


def _claim(cluster: ClusterFile, spec: Tree) -> Tree:
    assert not isinstance(cluster.storage, ObjectStorage)
    return document(
        "PersistentVolumeClaim", "v1", claim_name(cluster.storage), cluster.namespace, _LABELS, spec=spec
    )
