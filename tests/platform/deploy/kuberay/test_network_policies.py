"""Network policies of rendered files, evaluated over the labels that their pods have."""

from __future__ import annotations

from typing import Any

import pytest
from tests.platform.deploy.kuberay.clusters import BASE, EVERYTHING, NFS, SWEEP, TRAIN, committed, rendered

from causalfusion_platform.deploy.kuberay.found import Pod, parse, pods_of
from causalfusion_platform.deploy.kuberay.reachability import Peer, connects, matches, receives, selecting

DNS = Peer({"k8s-app": "kube-dns"}, "kube-system")
OUTSIDE = Peer(address="203.0.113.7")


def evaluated(files: dict[str, str], namespace: str) -> tuple[list[Any], dict[str, Peer]]:
    """Return policies, and a peer of each kind of pod by a short name."""
    found, _ = parse(files)
    names = {"Deployment": "mlflow", "StatefulSet": "postgres"}

    def name(pod: Pod) -> str:
        return pod.role if pod.role != "other" else names[pod.where.split(": ")[1].split()[0]]

    policies = [one.tree for one in found if one.kind == "NetworkPolicy"]
    return policies, {name(pod): Peer(pod.labels, namespace) for pod in pods_of(found)}


def test_traffic_of_a_run_is_exactly_what_it_needs() -> None:
    """Each row lists every pair of pods that may speak at a port. All other pairs may not."""
    cluster, _, files = committed()
    policies, pods = evaluated(files, cluster.namespace)
    assert set(pods) == {"head", "worker", "submitter", "mlflow", "postgres"}
    ray = {(one, other) for one in ("head", "worker") for other in ("head", "worker")}
    expected = {
        6379: ray,
        10001: ray,
        8265: ray | {("submitter", "head")},
        41234: ray,
        5000: ray | {("head", "mlflow"), ("worker", "mlflow")},
        5432: ray | {("mlflow", "postgres")},
        22: ray,
    }
    for port, pairs in expected.items():
        allowed = {
            (one, other)
            for one, source in pods.items()
            for other, target in pods.items()
            if connects(policies, source, target, port)
        }
        assert allowed == pairs, port
    for source in pods.values():
        assert connects(policies, source, DNS, 53, "UDP")
        assert not connects(policies, source, DNS, 443)
        for port in (22, 80, 443, 6443):
            assert not connects(policies, source, OUTSIDE, port)
            assert not connects(policies, OUTSIDE, source, port)


@pytest.mark.parametrize(("tree", "words"), [(BASE, TRAIN), (EVERYTHING, TRAIN), (NFS, TRAIN), (BASE, SWEEP)])
def test_every_pod_is_selected_for_both_directions(tree: dict[str, Any], words: tuple[str, ...]) -> None:
    _, _, files = rendered(tree, words)
    policies, pods = evaluated(files, "lab")
    for pod in pods.values():
        assert selecting(policies, "Ingress", pod)
        assert selecting(policies, "Egress", pod)
        # The same labels in another namespace are another's pods.
        assert not selecting(policies, "Ingress", Peer(pod.labels, "elsewhere"))


def test_two_runs_of_a_namespace_do_not_reach_each_other() -> None:
    _, _, files = rendered(BASE, TRAIN)
    _, _, others = rendered(BASE, (*TRAIN, "name=second"))
    policies, pods = evaluated(files, "lab")
    their_policies, theirs = evaluated(others, "lab")
    for one in pods.values():
        for other in theirs.values():
            assert not connects([*policies, *their_policies], one, other, 6379)
            assert not connects([*policies, *their_policies], other, one, 8265)


def test_only_the_operator_s_namespace_reads_the_dashboard() -> None:
    cluster, _, files = rendered(BASE | {"network": {"operator_namespace": "operators"}}, TRAIN)
    policies, pods = evaluated(files, cluster.namespace)
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    assert receives(policies, pods["head"], Peer(labels, "operators"), 8265)
    assert not receives(policies, pods["head"], Peer(labels, "operators"), 6379)
    assert not receives(policies, pods["head"], Peer(labels, "lab"), 8265)
    assert not receives(policies, pods["head"], Peer({}, "operators"), 8265)
    assert not receives(policies, pods["worker"], Peer(labels, "operators"), 8265)


def test_a_run_reaches_its_bucket_its_mlflow_and_the_addresses_of_the_file() -> None:
    _, _, files = rendered(EVERYTHING, TRAIN)
    policies, pods = evaluated(files, "lab")
    worker = pods["worker"]
    assert connects(policies, worker, OUTSIDE, 9000)  # the endpoint's port
    assert not connects(policies, worker, OUTSIDE, 443)
    assert connects(policies, worker, Peer(address="10.9.9.9"), 8443)
    assert not connects(policies, worker, OUTSIDE, 8443)
    assert connects(policies, pods["mlflow"], OUTSIDE, 9000)
    assert not connects(policies, pods["submitter"], OUTSIDE, 9000)
    _, _, files = rendered(NFS, TRAIN)
    policies, pods = evaluated(files, "lab")
    # The service's port is 80. Which port its pods listen at, the file does not say.
    assert connects(policies, pods["worker"], Peer({"app": "mlflow"}, "tools"), 5000)
    assert not connects(policies, pods["worker"], Peer({"app": "mlflow"}, "other"), 5000)


def test_only_the_autoscaler_reaches_kubernetes() -> None:
    _, _, files = rendered(BASE, SWEEP)
    policies, pods = evaluated(files, "lab")
    assert connects(policies, pods["head"], Peer(address="10.96.0.1"), 443)
    assert not connects(policies, pods["worker"], Peer(address="10.96.0.1"), 443)


def policy(selector: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "default"}, "spec": {"podSelector": selector, **spec}}


def test_policies_mean_what_kubernetes_says_they_mean() -> None:
    """Cases of the documentation of Kubernetes on network policies."""
    database, client, other = Peer({"role": "db"}), Peer({"role": "frontend"}), Peer({"role": "x"})
    chosen = {"matchLabels": {"role": "db"}}
    assert connects([], client, database, 1)  # nothing selects it: all is allowed
    assert not connects([policy(chosen)], client, database, 1)  # Ingress is the default, without a rule
    assert connects([policy(chosen)], database, client, 1)  # ... and Egress is not
    assert not connects([policy(chosen, policyTypes=["Egress"])], database, client, 1)
    assert connects([policy(chosen, policyTypes=["Ingress"], ingress=[{}])], other, database, 1)  # an empty rule
    either = [{"from": [{"podSelector": {"matchLabels": {"role": "frontend"}}}, {"namespaceSelector": {}}]}]
    assert connects([policy(chosen, ingress=either)], Peer({}, "elsewhere"), database, 1)
    frontends = {"podSelector": {"matchLabels": {"role": "frontend"}}}
    both = [{"from": [{"namespaceSelector": {}, **frontends}]}]
    assert not connects([policy(chosen, ingress=both)], Peer({}, "elsewhere"), database, 1)
    assert connects([policy(chosen, ingress=both)], Peer({"role": "frontend"}, "elsewhere"), database, 1)
    assert not connects([policy(chosen, ingress=[{"from": [frontends]}])], Peer(client.labels, "x"), database, 1)
    block = {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}
    rules = [policy(chosen, ingress=[{"from": [{"ipBlock": block}]}])]
    assert connects(rules, Peer(address="172.17.2.1"), database, 1)
    assert not connects(rules, Peer(address="172.17.1.1"), database, 1)
    ranged = [policy(chosen, ingress=[{"ports": [{"protocol": "TCP", "port": 32000, "endPort": 32768}]}])]
    assert connects(ranged, other, database, 32500)
    assert not connects(ranged, other, database, 31999)
    assert not connects(ranged, other, database, 32500, "UDP")
    added = [*ranged, policy(chosen, ingress=[{"from": [frontends]}])]  # policies add up
    assert connects(added, client, database, 1)


def test_label_selectors_have_expressions_too() -> None:
    labels = {"tier": "web", "env": "lab"}
    for operator, values, expected in (
        ("In", ["web", "db"], True),
        ("NotIn", ["web"], False),
        ("Exists", None, True),
        ("DoesNotExist", None, False),
    ):
        one = {"key": "tier", "operator": operator} | ({"values": values} if values else {})
        assert matches({"matchExpressions": [one], "matchLabels": {"env": "lab"}}, labels) is expected
    assert matches({}, labels)
