"""The rendered network policies, as packet-filter rules between hosts that stand for pods: who reaches whom."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.hosts import Host, Switch, until
from tests.cluster.packet_filter import Pod, rule_set
from tests.platform.deploy.kuberay.clusters import EVERYTHING, TRAIN, documents, rendered

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(shutil.which("nft") is None, reason="nft is missing")]

_PORTS = {"dashboard": 8265, "GCS": 6379, "client": 10001, "MLflow": 5000, "Postgres": 5432, "S3": 9000, "any": 7}
_SERVE = """
import selectors, socket, sys
waiting = selectors.DefaultSelector()
for port in sys.argv[1:]:
    waiting.register(socket.create_server(("0.0.0.0", int(port))), selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in waiting.select():
        key.fileobj.accept()[0].close()
"""
_CONNECT = """
import json, socket, sys
reached = []
for address, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((address, port), 10).close()
        reached.append([address, port])
    except ConnectionError:
        continue
print(json.dumps(reached))
"""


def operator_labels(kind: str) -> dict[str, str]:
    """Return the labels that KubeRay's operator itself puts on pods of Ray (pkg/utils/constant)."""
    return {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind, "ray.io/cluster": f"of-a-run-{kind[0]}x9"}


def pods_of(files: dict[str, str], run: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return namespace and labels of the pods that a rendered RayJob becomes."""
    [job] = [tree for tree in documents(files).values() if tree["kind"] == "RayJob"]
    namespace, spec = job["metadata"]["namespace"], job["spec"]
    cluster = spec["rayClusterSpec"]

    def labels(template: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = template["metadata"]["labels"]
        return found

    head = labels(cluster["headGroupSpec"]["template"]) | operator_labels("head")
    worker = labels(cluster["workerGroupSpecs"][0]["template"]) | operator_labels("worker")
    submitter = labels(spec["submitterPodTemplate"])
    return {
        f"{run}-head": (namespace, head),
        f"{run}-node": (namespace, worker),
        f"{run}-job": (namespace, submitter),
    }


def shared_pods(files: dict[str, str]) -> dict[str, tuple[str, dict[str, str]]]:
    """Return namespace and labels of MLflow's pods, and of pods that are not ours."""
    trees = documents(files)
    ours = {
        name: (trees[key]["metadata"]["namespace"], trees[key]["spec"]["template"]["metadata"]["labels"])
        for name, key in {
            "mlflow": "Deployment/causalfusion-mlflow",
            "postgres": "StatefulSet/causalfusion-postgres",
        }.items()
    }
    namespace = ours["mlflow"][0]
    return ours | {
        "operator": ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
        "false-op": (namespace, {"app.kubernetes.io/name": "kuberay-operator"}),
        "stranger": (namespace, {"app": "web"}),
        "storage": ("storage", {"app": "s3"}),
    }


@pytest.fixture(scope="module")
def policies_and_pods(hosts: Switch) -> Iterator[tuple[list[dict[str, Any]], dict[str, tuple[Host, Pod]]]]:
    """Two runs of one user and MLflow, with their policies: a host for each pod, which listens at every port."""
    _, _, first = rendered(EVERYTHING, TRAIN)
    other = tuple(word.replace("name=first", "name=second") for word in TRAIN)
    _, _, second = rendered(EVERYTHING, other)
    trees = documents(first) | documents(second)
    policies = [tree for tree in trees.values() if tree["kind"] == "NetworkPolicy"]
    made = {}
    for name, (namespace, labels) in (pods_of(first, "a") | pods_of(second, "b") | shared_pods(first)).items():
        host = hosts.host(name)
        made[name] = host, Pod(name, namespace, labels, host.address)
    everyone = [pod for _, pod in made.values()]
    for host, pod in made.values():
        file = host.folder / "rules"
        file.write_text(rule_set(pod, policies, everyone))
        host.run("nft", "-f", file)
        log = host.folder / "server.log"
        log.write_text("")
        server = host.start(sys.executable, "-S", "-c", _SERVE, *map(str, _PORTS.values()), log=log)
        until(lambda server=server: "listening" in server.said(), server.said)  # type: ignore[misc]
    yield policies, made
    for host, _ in made.values():
        host.remove()


def test_every_pod_of_ours_refuses_what_is_not_allowed(
    policies_and_pods: tuple[list[dict[str, Any]], dict[str, tuple[Host, Pod]]],
) -> None:
    """Policies select pods by the labels that they really have: a misspelt one would leave its pod open."""
    policies, made = policies_and_pods
    for name, (_, pod) in made.items():
        directions = {
            direction
            for policy in policies
            if policy["spec"]["podSelector"]["matchLabels"].items() <= pod.labels.items()
            and policy["metadata"]["namespace"] == pod.namespace
            for direction in policy["spec"]["policyTypes"]
        }
        ours = name not in ("operator", "false-op", "stranger", "storage")
        assert directions == ({"Ingress", "Egress"} if ours else set()), name


def test_who_reaches_whom(
    policies_and_pods: tuple[list[dict[str, Any]], dict[str, tuple[Host, Pod]]],
) -> None:
    """Every pod tries every port of every other one. What comes about is this list, and nothing else."""
    _, made = policies_and_pods
    all_ports = set(_PORTS.values())
    expected: dict[tuple[str, str], set[int]] = {}
    for run in "ab":
        head, node, job = (f"{run}-{part}" for part in ("head", "node", "job"))
        expected[head, node] = expected[node, head] = all_ports
        expected[job, head] = expected["operator", head] = {_PORTS["dashboard"]}
        for ray in (head, node):
            expected[ray, "mlflow"] = {_PORTS["MLflow"]}
            expected[ray, "storage"] = {_PORTS["S3"]}
            # Egress to the S3 port is open, because a policy sees no names. Pods that nothing protects have it too.
            expected[ray, "stranger"] = expected[ray, "false-op"] = expected[ray, "operator"] = {_PORTS["S3"]}
    expected["mlflow", "postgres"] = {_PORTS["Postgres"]}
    for name in ("storage", "stranger", "false-op", "operator"):
        expected["mlflow", name] = {_PORTS["S3"]}
    unprotected = ("operator", "false-op", "stranger", "storage")
    for pair in itertools.permutations(unprotected, 2):
        expected[pair] = all_ports
    by_address = {pod.address: name for name, (_, pod) in made.items()}
    reached: dict[tuple[str, str], set[int]] = {}
    for name, (host, _) in made.items():
        others = [pod.address for other, (_, pod) in made.items() if other != name]
        wanted = json.dumps(list(itertools.product(others, _PORTS.values())))
        done = host.run(sys.executable, "-S", "-c", _CONNECT, wanted)
        for address, port in json.loads(done.stdout):
            reached.setdefault((name, by_address[address]), set()).add(port)
    assert reached == expected
