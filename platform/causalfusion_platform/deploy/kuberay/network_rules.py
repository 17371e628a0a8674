"""Rules of network policies: each pod is selected, each selector selects a pod, and traffic is what runs need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from ..cluster_file import ClusterFile
from .documents import INSTANCE, PART_OF, Tree
from .found import Found, Pod, mapping, sequence
from .mlflow import POSTGRES_LABELS, POSTGRES_PORT, SERVER_LABELS, SERVER_PORT
from .pods import PORTS
from .reachability import Direction, Peer, connects, matches, policy_types, receives, selecting

_DASHBOARD = PORTS["dashboard"]
_ANY_PORT = 20_000
"""Stands for the ports that Ray, Gloo and NCCL choose."""
_DIRECTIONS: tuple[Direction, ...] = ("Ingress", "Egress")


def network_faults(found: list[Found], pods: list[Pod], cluster: ClusterFile) -> Iterator[str]:
    """Return the faults of network policies."""
    documents = [one for one in found if one.kind == "NetworkPolicy"]
    policies = [one.tree for one in documents]
    peers = [(pod, Peer(pod.labels, cluster.namespace)) for pod in pods]
    for one in documents:
        yield from _selectors(one, pods)
    for pod, peer in peers:
        for direction in _DIRECTIONS:
            if not selecting(policies, direction, peer):
                yield (
                    f"{pod.where}: no network policy selects it for {direction.lower()}, so all of it is allowed; "
                    "its labels are " + ", ".join(f"{key}={content}" for key, content in sorted(pod.labels.items()))
                )
    yield from _needed(policies, peers, cluster)
    yield from _refused(policies, peers, cluster)


def _selectors(one: Found, pods: list[Pod]) -> Iterator[str]:
    if not any(matches(mapping(one.spec, "podSelector"), pod.labels) for pod in pods):
        yield f"{one.where}: spec.podSelector selects no pod of these files"
    for direction, key in (("ingress", "from"), ("egress", "to")):
        for number, rule in enumerate(sequence(one.spec, direction)):
            where = f"{one.where}: spec.{direction}[{number}]"
            if direction.capitalize() not in policy_types(one.tree):
                yield f"{where}: spec.policyTypes lacks {direction.capitalize()}, so the rule has no effect"
            peers = sequence(rule, key)
            if not peers:
                yield f"{where}: {key} names nobody, which allows everybody"
            for peer in peers:
                within = "podSelector" in peer and "namespaceSelector" not in peer
                if within and not any(matches(peer["podSelector"], pod.labels) for pod in pods):
                    yield f"{where}.{key}: podSelector {_text(peer['podSelector'])} selects no pod of these files"
                if "ipBlock" in peer and not sequence(rule, "ports"):
                    yield f"{where}.{key}: addresses without ports allow every service there"


def _needed(policies: Sequence[Tree], peers: list[tuple[Pod, Peer]], cluster: ClusterFile) -> Iterator[str]:
    """Find refused traffic that a run needs."""
    names = Peer({"k8s-app": "kube-dns"}, "kube-system")
    operator = Peer({"app.kubernetes.io/name": "kuberay-operator"}, cluster.network.operator_namespace)
    for pod, peer in peers:
        if not connects(policies, peer, names, 53, "UDP"):
            yield f"{pod.where}: cannot resolve names: allow port 53 of kube-system"
        if pod.role == "head" and not connects(policies, operator, peer, _DASHBOARD):
            yield f"{pod.where}: the operator of {operator.namespace} cannot read the job's state at {_DASHBOARD}"
    for (one, source), (other, target) in product(peers, peers):
        for port in _ports(one, other):
            if not connects(policies, source, target, port):
                yield f"{one.where}: cannot reach port {port} of {other.where}, as runs need"


def _ports(one: Pod, other: Pod) -> list[int]:
    """Return the ports at which a pod must reach another."""
    ray = ("head", "worker")
    if one.role in ray and other.role in ray:
        return [PORTS["gcs-server"], _DASHBOARD, _ANY_PORT]
    if one.role == "submitter" and other.role == "head":
        return [_DASHBOARD]
    if one.role in ray and matches({"matchLabels": SERVER_LABELS}, other.labels):
        return [SERVER_PORT]
    server = matches({"matchLabels": SERVER_LABELS}, one.labels)
    return [POSTGRES_PORT] if server and matches({"matchLabels": POSTGRES_LABELS}, other.labels) else []


def _refused(policies: Sequence[Tree], peers: list[tuple[Pod, Peer]], cluster: ClusterFile) -> Iterator[str]:
    """Find allowed traffic that no run needs: strangers, other runs, and other ports.

    Strangers may send what they like: their policies are not ours.
    """
    strangers = {
        "a pod without labels": Peer({}, cluster.namespace),
        "a pod of another namespace": Peer(PART_OF, "another-namespace"),
        "a pod of another run": Peer(
            {**PART_OF, INSTANCE: "another-run", "ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"},
            cluster.namespace,
        ),
        "an address outside of the cluster": Peer(address="203.0.113.7"),
    }
    for pod, peer in peers:
        served = matches({"matchLabels": SERVER_LABELS}, pod.labels)
        for name, stranger in strangers.items():
            for port in (*PORTS.values(), _ANY_PORT, SERVER_PORT, POSTGRES_PORT):
                shared = served and port == SERVER_PORT and name == "a pod of another run"
                if not shared and receives(policies, peer, stranger, port):
                    yield f"{pod.where}: {name} can reach port {port}; nobody outside of the run may"
                    break
    for (one, source), (other, target) in product(peers, peers):
        needed = _ports(one, other)
        if _ANY_PORT in needed:
            continue
        for port in (*PORTS.values(), _ANY_PORT, SERVER_PORT, POSTGRES_PORT):
            if port not in needed and connects(policies, source, target, port):
                yield f"{one.where}: can reach port {port} of {other.where}, which it does not need"
                break


def _text(selector: Tree) -> str:
    return ", ".join(f"{key}={content}" for key, content in mapping(selector, "matchLabels").items()) or "of all"
