"""A cluster that asks for a token: who has none, or another, reaches no port of it."""

from __future__ import annotations

import json
import sys

import pytest
from tests.cluster.conftest import Cluster
from tests.cluster.hosts import Host
from tests.cluster.ray_hosts import get

pytestmark = pytest.mark.cluster

WRONG = "0" * 64
_PATHS = ("/api/version", "/api/jobs/", "/api/v0/nodes", "/nodes?view=summary", "/api/cluster_status")
_CALL = """
import grpc, json, sys
target, token, *methods = sys.argv[1:]
metadata = [("authorization", f"Bearer {token}")] if token else []
codes = {}
with grpc.insecure_channel(target) as channel:
    for method in methods:
        try:
            channel.unary_unary(method)(b"", metadata=metadata, timeout=30)
            codes[method] = "OK"
        except grpc.RpcError as error:
            codes[method] = error.code().name
print(json.dumps(codes))
"""
_GCS = ("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.InternalKVGcsService/InternalKVKeys")
_CLIENT = ("/ray.rpc.RayletDriver/ClusterInfo", "/ray.rpc.RayletDriver/KVGet")


@pytest.fixture(scope="module")
def stranger(cluster: Cluster) -> Host:
    """A host on the same network whose user has no token."""
    return cluster.rays.host("stranger", token=False)


@pytest.mark.parametrize("path", _PATHS)
def test_dashboard_and_jobs(cluster: Cluster, stranger: Host, path: str) -> None:
    url = f"http://{cluster.head.address}:8265{path}"
    assert get(stranger, url)[0] == 401
    assert get(stranger, url, WRONG)[0] == 403
    assert get(cluster.laptop, url, cluster.rays.token)[0] == 200


_LISTENING = """
import json, psutil
listening = [one.laddr for one in psutil.net_connections("tcp") if one.status == "LISTEN"]
print(json.dumps([address.port for address in listening if not address.ip.startswith("127.")]))
"""
_SPEAKS_HTTP = """
import http.client, json, sys
answers = {}
for port in json.loads(sys.argv[2]):
    connection = http.client.HTTPConnection(sys.argv[1], port, timeout=30)
    try:
        connection.request("GET", sys.argv[3])
        answer = connection.getresponse()
        answers[port] = [answer.status, answer.read(1000).decode(errors="replace")]
    except (OSError, http.client.HTTPException):  # it speaks gRPC
        continue
print(json.dumps(answers))
"""


def answers(stranger: Host, host: Host, path: str) -> dict[str, tuple[int, str]]:
    """Ask every port of a host without a token; return HTTP status and body of those that speak HTTP."""
    ports = host.run(sys.executable, "-c", _LISTENING).stdout
    said = stranger.run(sys.executable, "-c", _SPEAKS_HTTP, host.address, ports, path).stdout
    return {port: (status, body) for port, (status, body) in json.loads(said).items()}


def test_no_port_of_a_worker_speaks_http_without_the_token(cluster: Cluster, stranger: Host) -> None:
    """Its agents run commands and install packages."""
    found = answers(stranger, cluster.workers[0], "/api/")
    assert {status for status, _ in found.values()} == {401}
    assert "52365" in found, "the agent that starts jobs"


def test_the_head_shows_metrics_alone_without_the_token(cluster: Cluster, stranger: Host) -> None:
    found = answers(stranger, cluster.head, "/api/jobs/")
    assert found["8265"][0] == found["52365"][0] == 401
    open_ports = {port for port, (status, _) in found.items() if status != 401}
    assert len(open_ports) == 2, open_ports
    shown = answers(stranger, cluster.head, "/metrics")
    for port in open_ports:
        status, body = shown[port]
        assert (status, body.startswith("# HELP ")) == (200, True), (port, body)
        assert found[port][0] == 404 or found[port][1] == body, "another path shows nothing else"


def codes(host: Host, target: str, token: str, methods: tuple[str, ...]) -> dict[str, str]:
    """Call methods of a gRPC server without arguments; return the status of each."""
    called: dict[str, str] = json.loads(host.run(sys.executable, "-c", _CALL, target, token, *methods).stdout)
    return called


@pytest.mark.parametrize(("port", "methods"), [(6379, _GCS), (10001, _CLIENT)], ids=["GCS", "client"])
def test_gcs_and_client_port(cluster: Cluster, stranger: Host, port: int, methods: tuple[str, ...]) -> None:
    target = f"{cluster.head.address}:{port}"
    assert set(codes(stranger, target, "", methods).values()) == {"UNAUTHENTICATED"}
    assert set(codes(stranger, target, WRONG, methods).values()) == {"UNAUTHENTICATED"}
    assert "UNAUTHENTICATED" not in codes(cluster.laptop, target, cluster.rays.token, methods).values()


def test_submit_without_the_token(cluster: Cluster, stranger: Host) -> None:
    program = [sys.executable, "-m", "causalfusion_platform", "submit"]
    refused = stranger.run(
        *program, "--address", f"http://{cluster.head.address}:8265", "--", "config", "show", "smoke", check=False
    )
    assert refused.returncode == 2
    assert "token" in refused.stderr
