"""Network policies, evaluated: may one pod open a connection to another?

As Kubernetes has it: a pod that no policy selects for a direction allows all of it. Else one rule of one policy
must allow it, at the sender for egress and at the receiver for ingress.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .documents import Tree
from .found import mapping, sequence

Direction = Literal["Ingress", "Egress"]


@dataclass(frozen=True)
class Peer:
    """End of a connection: a pod with labels in a namespace, or an address outside of the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "default"
    address: str | None = None
    """Address, for a peer that is not a pod."""


def connects(policies: Sequence[Tree], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Return True if policies let a source open a connection to a port of a target."""
    out = source.address is not None or _allowed(policies, "Egress", source, target, port, protocol)
    return out and receives(policies, target, source, port, protocol)


def receives(policies: Sequence[Tree], target: Peer, source: Peer, port: int, protocol: str = "TCP") -> bool:
    """Return True if policies let a target take a connection, whatever the source itself may send."""
    return target.address is not None or _allowed(policies, "Ingress", target, source, port, protocol)


def selecting(policies: Sequence[Tree], direction: Direction, pod: Peer) -> list[Tree]:
    """Return the policies that select a pod for a direction."""
    return [
        policy
        for policy in policies
        if direction in policy_types(policy)
        and mapping(policy, "metadata").get("namespace", "default") == pod.namespace
        and matches(mapping(policy, "spec", "podSelector"), pod.labels)
    ]


def policy_types(policy: Tree) -> list[Any]:
    """Return the directions of a policy, which default to Ingress, and to Egress if it has rules for it."""
    spec = mapping(policy, "spec")
    return spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])


def matches(selector: Tree, labels: Mapping[str, str]) -> bool:
    """Return True if a label selector selects labels. An empty one selects all."""
    wanted = mapping(selector, "matchLabels")
    if any(labels.get(str(key)) != str(content) for key, content in wanted.items()):
        return False
    return all(_expression(one, labels) for one in sequence(selector, "matchExpressions"))


def _expression(one: Tree, labels: Mapping[str, str]) -> bool:
    key, operator, values = str(one.get("key")), one.get("operator"), one.get("values") or []
    found = labels.get(key)
    return {
        "In": found in values,
        "NotIn": found not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[str(operator)]


def _allowed(
    policies: Sequence[Tree], direction: Direction, pod: Peer, other: Peer, port: int, protocol: str
) -> bool:
    chosen = selecting(policies, direction, pod)
    if not chosen:
        return True
    key = "from" if direction == "Ingress" else "to"
    for policy in chosen:
        for rule in sequence(policy, "spec", direction.lower()):
            if _ports(rule, port, protocol) and _peers(sequence(rule, key), pod.namespace, other):
                return True
    return False


def _ports(rule: Tree, port: int, protocol: str) -> bool:
    listed = sequence(rule, "ports")
    return not listed or any(
        one.get("protocol", "TCP") == protocol
        and ("port" not in one or one["port"] <= port <= one.get("endPort", one["port"]))
        for one in listed
    )


def _peers(listed: list[Any], namespace: str, other: Peer) -> bool:
    return not listed or any(_peer(one, namespace, other) for one in listed)


def _peer(one: Tree, namespace: str, other: Peer) -> bool:
    if "ipBlock" in one:
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        block = mapping(one, "ipBlock")
        excepted = (ipaddress.ip_network(network) for network in block.get("except", []))
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in network for network in excepted
        )
    if other.address is not None:
        return False
    if "namespaceSelector" in one:
        inside = matches(one["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        inside = other.namespace == namespace
    return inside and matches(mapping(one, "podSelector"), other.labels)
