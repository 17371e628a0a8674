"""Kubernetes' network policies as packet-filter rules, one rule set for each pod, as a network plug-in makes them.

A pod that a policy of a direction selects refuses what no policy allows it in that direction. Allowances add up.
Answers to what was allowed pass. The semantics are those of networking.k8s.io/v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod that has an address."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    address: str


def rule_set(pod: Pod, policies: Sequence[Tree], pods: Sequence[Pod]) -> str:
    """Return the rules of one pod, for `nft -f`.

    Args:
        pod: the pod whose network interface they are for.
        policies: documents of kind NetworkPolicy.
        pods: all pods of the cluster, among which policies look for peers.
    """
    chains = [
        _chain(pod, policies, pods, direction, hook, peer)
        for direction, hook, peer in (("Ingress", "input", "saddr"), ("Egress", "output", "daddr"))
    ]
    return "\n".join(["flush ruleset", "table inet policies {", *chains, "}"])


def _chain(pod: Pod, policies: Sequence[Tree], pods: Sequence[Pod], direction: str, hook: str, peer: str) -> str:
    selecting = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _matches(policy["spec"]["podSelector"], pod.labels)
    ]
    lines = [f"type filter hook {hook} priority 0; policy accept;"]
    if selecting:
        lines += [
            "ct state established,related accept",
            "iifname lo accept" if hook == "input" else "oifname lo accept",
        ]
        for policy in selecting:
            for rule in policy["spec"].get(direction.lower(), []):
                lines += _allowances(rule, policy["metadata"]["namespace"], pods, direction, peer)
        lines += ["meta l4proto tcp reject with tcp reset", "meta l4proto udp reject", "ip protocol icmp drop"]
    return "\n".join([f"chain {hook} {{", *lines, "}"])


def _allowances(rule: Tree, namespace: str, pods: Sequence[Pod], direction: str, peer: str) -> Iterator[str]:
    peers = rule.get("from" if direction == "Ingress" else "to")
    addresses = [""] if peers is None else [f"ip {peer} {one} " for one in _addresses(peers, namespace, pods)]
    ports = rule.get("ports")
    matches = [""] if ports is None else [f"{port['protocol'].lower()} dport {port['port']} " for port in ports]
    for address in addresses:
        for match in matches:
            yield f"{address}{match}accept"


def _addresses(peers: Sequence[Tree], namespace: str, pods: Sequence[Pod]) -> Iterator[str]:
    for peer in peers:
        if "ipBlock" in peer:
            assert not peer["ipBlock"].get("except"), "not translated here"
            yield peer["ipBlock"]["cidr"]
            continue
        for pod in pods:
            # A namespace has its own name as a label.
            here = {"kubernetes.io/metadata.name": pod.namespace}
            near = pod.namespace == namespace
            if "namespaceSelector" in peer:
                near = _matches(peer["namespaceSelector"], here)
            if near and _matches(peer.get("podSelector", {}), pod.labels):
                yield pod.address


def _matches(selector: Tree, labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "not translated here"
    wanted: Tree = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
