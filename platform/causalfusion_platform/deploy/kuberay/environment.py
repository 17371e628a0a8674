"""Environment of the pods of Ray. Secrets come by reference, one key at a time."""

from __future__ import annotations

from ...config.files import HOME_VARIABLE
from ...config.owner import USER_VARIABLE
from ...launch.cluster.job_variables import STOP_VARIABLE
from ..cluster_file import ClusterFile, Group, MlflowDeployment, MlflowServer, ObjectStorage
from ..workload import TRACKING, tracking_uri
from .documents import Tree

AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def environment(cluster: ClusterFile, group: Group | None) -> list[Tree]:
    """Return the environment of the head (None) or of a group's pods."""
    variables = [value(HOME_VARIABLE, cluster.home), value(USER_VARIABLE, cluster.owner)]
    uri = tracking_uri(cluster)
    if uri is not None:
        variables.append(value(TRACKING, uri))
    if isinstance(cluster.mlflow, MlflowDeployment | MlflowServer) and cluster.mlflow.secret is not None:
        variables += from_secret(cluster.mlflow.secret, _LOGIN)
    if isinstance(cluster.storage, ObjectStorage):
        variables += object_storage(cluster.storage.endpoint, cluster.storage.secret)
    if group is None:  # Ray kills a job's driver 3 s after SIGTERM. Its checkpoint takes longer
        variables.append(value(STOP_VARIABLE, str(cluster.deadlines.grace_seconds)))
    return variables + _network(cluster, group)


def object_storage(endpoint: str | None, secret: str | None) -> list[Tree]:
    """Return the variables of S3."""
    address = [value("AWS_ENDPOINT_URL", endpoint)] if endpoint is not None else []
    return address + (from_secret(secret, AWS_KEYS) if secret is not None else [])


def value(name: str, content: str) -> Tree:
    """Return a variable with a value."""
    return {"name": name, "value": content}


def from_secret(secret: str, names: tuple[str, ...]) -> list[Tree]:
    """Return variables with the values of a Secret's keys of the same names."""
    return [{"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}} for name in names]


def _network(cluster: ClusterFile, group: Group | None) -> list[Tree]:
    """Return the variables of Gloo and NCCL.

    Without `network.interface` each worker takes the interface of Ray's node address.
    """
    if group is None:
        return []
    variables = []
    interface = cluster.network.interface
    if interface is not None:
        variables.append(value("NCCL_SOCKET_IFNAME", interface))
        if interface[0] not in "^=":  # these are NCCL's alone
            variables.append(value("GLOO_SOCKET_IFNAME", interface))
    if group.gpu is not None and not cluster.network.infiniband:
        variables.append(value("NCCL_IB_DISABLE", "1"))
    return variables
