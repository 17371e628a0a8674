"""Network policies: nothing is allowed but what runs need.

They select pods by labels that the pods have: our own, and those that the operator sets on Ray's pods
(`ray.io/is-ray-node`, `ray.io/node-type`). The name of a RayJob's Ray cluster ends in random letters, so
`ray.io/cluster` selects nothing ahead of time. Image pulls and NFS are the node's own traffic.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from ..cluster_file import ClusterFile, MlflowDeployment, MlflowServer, ObjectStorage
from ..workload import Workload
from .documents import COMPONENT, INSTANCE, PART_OF, Tree, document, run_labels
from .mlflow import POSTGRES_LABELS, POSTGRES_PORT, SERVER_LABELS, SERVER_PORT
from .pods import PORTS, SUBMITTER

RAY_NODE = {"ray.io/is-ray-node": "yes"}
RAY_HEAD = {"ray.io/node-type": "head"}
ANYWHERE = "0.0.0.0/0"

_NAMESPACE = "kubernetes.io/metadata.name"
_OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
_DNS = {"k8s-app": "kube-dns"}
_NODE_LOCAL_DNS = "169.254.20.10/32"
_LABELS = {**PART_OF, "app.kubernetes.io/name": "causalfusion"}


def shared_policies(cluster: ClusterFile) -> list[Tree]:
    """Return the policies of all our pods of a namespace: no traffic but name resolution, and MLflow's."""
    denied = _policy(cluster, "causalfusion-default-deny", _LABELS, PART_OF, ingress=[], egress=[])
    peers = [_pods(_DNS, {_NAMESPACE: "kube-system"}), {"ipBlock": {"cidr": _NODE_LOCAL_DNS}}]
    ports = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    names = _policy(cluster, "causalfusion-dns", _LABELS, PART_OF, egress=[{"to": peers, "ports": ports}])
    return [denied, names, *_mlflow_policies(cluster)]


def run_policies(cluster: ClusterFile, workload: Workload, *, autoscaler: bool) -> list[Tree]:
    """Return the policies of a run's pods.

    Its pods of Ray reach each other at every port. The dashboard answers the submitter, and the operator, which
    reads the job's state there. `kubectl port-forward` passes through the node, which no policy holds up.
    """
    name, labels = workload.name, run_labels(cluster, workload)
    nodes, head = {INSTANCE: name, **RAY_NODE}, {INSTANCE: name, **RAY_HEAD}
    submitter = {INSTANCE: name, COMPONENT: SUBMITTER}
    operator = _pods(_OPERATOR, {_NAMESPACE: cluster.network.operator_namespace})
    dashboard = [_port(PORTS["dashboard"])]
    policies = [
        _policy(
            cluster,
            f"{name}-nodes",
            labels,
            nodes,
            ingress=[{"from": [_pods(nodes)]}],
            egress=[{"to": [_pods(nodes)]}, *_outside(cluster)],
        ),
        _policy(
            cluster,
            f"{name}-dashboard",
            labels,
            head,
            ingress=[{"from": [_pods(submitter), operator], "ports": dashboard}],
        ),
        _policy(
            cluster, f"{name}-submitter", labels, submitter, egress=[{"to": [_pods(head)], "ports": dashboard}]
        ),
    ]
    if autoscaler:
        # The address of Kubernetes' API server is the cluster's own, and behind its service has another port.
        api = {"to": [{"ipBlock": {"cidr": ANYWHERE}}], "ports": [_port(443), _port(6443)]}
        policies.append(_policy(cluster, f"{name}-autoscaler", labels, head, egress=[api]))
    return policies


def _mlflow_policies(cluster: ClusterFile) -> list[Tree]:
    if not isinstance(cluster.mlflow, MlflowDeployment):
        return []
    bucket = cluster.mlflow.artifacts.startswith("s3://")
    store = [_address(cluster.mlflow.artifacts_endpoint or "https://s3.amazonaws.com")] if bucket else []
    database = {"to": [_pods(POSTGRES_LABELS)], "ports": [_port(POSTGRES_PORT)]}
    return [
        _policy(
            cluster,
            "causalfusion-mlflow",
            SERVER_LABELS,
            SERVER_LABELS,
            ingress=[{"from": [_pods({**PART_OF, **RAY_NODE})], "ports": [_port(SERVER_PORT)]}],
            egress=[database, *store],
        ),
        _policy(
            cluster,
            "causalfusion-postgres",
            POSTGRES_LABELS,
            POSTGRES_LABELS,
            ingress=[{"from": [_pods(SERVER_LABELS)], "ports": [_port(POSTGRES_PORT)]}],
        ),
    ]


def _outside(cluster: ClusterFile) -> list[Tree]:
    """Return what pods of Ray may reach outside of their cluster."""
    rules = []
    if isinstance(cluster.mlflow, MlflowDeployment):
        rules.append({"to": [_pods(SERVER_LABELS)], "ports": [_port(SERVER_PORT)]})
    if isinstance(cluster.mlflow, MlflowServer):
        rules.append(_address(cluster.mlflow.uri))
    if isinstance(cluster.storage, ObjectStorage):
        rules.append(_address(cluster.storage.endpoint or "https://s3.amazonaws.com"))
    for allowed in cluster.network.egress:
        block, _, port = allowed.rpartition(":")
        rules.append({"to": [{"ipBlock": {"cidr": block}}], "ports": [_port(int(port))]})
    return rules


def _address(url: str) -> Tree:
    """Return the rule for a server: the pods of its namespace for a service of the cluster, else its port anywhere.

    A policy sees addresses and not names, and a service's pods may listen at another port than the service.
    """
    parts = urlsplit(url if url.startswith("http") else "https://databricks")
    host = (parts.hostname or "").removesuffix(".cluster.local").split(".")
    if len(host) == 3 and host[2] == "svc":
        return {"to": [{"namespaceSelector": {"matchLabels": {_NAMESPACE: host[1]}}}]}
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"to": [{"ipBlock": {"cidr": ANYWHERE}}], "ports": [_port(port)]}


def _pods(labels: Tree, namespace: Tree | None = None) -> Tree:
    inside = {"namespaceSelector": {"matchLabels": namespace}} if namespace is not None else {}
    return {**inside, "podSelector": {"matchLabels": labels}}


def _port(number: int) -> Tree:
    return {"protocol": "TCP", "port": number}


def _policy(
    cluster: ClusterFile,
    name: str,
    labels: Tree,
    selected: Tree,
    *,
    ingress: list[Tree] | None = None,
    egress: list[Tree] | None = None,
) -> Tree:
    directions = {"Ingress": ingress, "Egress": egress}
    spec = {
        "podSelector": {"matchLabels": selected},
        "policyTypes": [direction for direction, rules in directions.items() if rules is not None],
        **{direction.lower(): rules for direction, rules in directions.items() if rules},
    }
    return document("NetworkPolicy", "networking.k8s.io/v1", name, cluster.namespace, labels, spec=spec)
