"""RAY_ADDRESS: its forms, and addresses at which nothing answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster import address as module
from causalfusion_platform.launch.cluster.address import cluster_address
from causalfusion_platform.launch.cluster.session import free_port


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.mark.parametrize("given", [None, "", "  ", "local", "http://127.0.0.1:8265", "https://head.example.org"])
def test_no_cluster_is_named(given: str | None) -> None:
    assert cluster_address({} if given is None else {"RAY_ADDRESS": given}) is None


def test_an_address_at_which_something_listens(listening: int) -> None:
    for given in (f"127.0.0.1:{listening}", f"localhost:{listening}", f"ray://127.0.0.1:{listening}"):
        assert cluster_address({"RAY_ADDRESS": f" {given} "}) == given


@pytest.mark.parametrize(
    "given",
    [
        "head",
        "head:",
        ":6379",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "127.0.0.1:port",
        "[::1",
        "tcp://a:1",
        "a:1/b",
        "γ",
    ],
)
def test_a_malformed_address(given: str) -> None:
    with pytest.raises(UserError, match="which is not HOST:PORT of a Ray head") as caught:
        cluster_address({"RAY_ADDRESS": given}, seconds=1)
    assert "unset RAY_ADDRESS to use a local Ray, or start a head: ray start --head" in str(caught.value)


def test_nothing_listens() -> None:
    given = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="Connection refused") as caught:
        cluster_address({"RAY_ADDRESS": given}, seconds=0.1)
    assert f"no Ray cluster answers at RAY_ADDRESS={given}" in str(caught.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, f"{'x' * 64}.example"])
def test_a_host_that_does_not_exist_is_not_asked_again(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", pytest.fail)
    with pytest.raises(UserError, match="no Ray cluster answers at RAY_ADDRESS="):
        cluster_address({"RAY_ADDRESS": f"{host}:6379"}, seconds=60)


def test_a_head_that_is_just_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:

        def start(_: float) -> None:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))

        monkeypatch.setattr("time.sleep", start)
        assert cluster_address({"RAY_ADDRESS": f"127.0.0.1:{port}"}, seconds=60)


def test_auto_without_a_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "found_address", lambda: None)
    with pytest.raises(UserError, match="no Ray runs on this machine"):
        cluster_address({"RAY_ADDRESS": "auto"})
    monkeypatch.setattr(module, "found_address", lambda: f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="no Ray cluster answers at RAY_ADDRESS=auto"):
        cluster_address({"RAY_ADDRESS": "auto"}, seconds=0.1)
