"""Ports. No Ray is started here."""

from __future__ import annotations

import socket

import pytest

from causalfusion_platform.launch.cluster.session import free_port, port_is_free


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    assert 1024 <= port < 65536
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
    assert port_is_free(port)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_listened_on(address: str) -> None:
    with socket.create_server((address, 0)) as listening:
        assert not port_is_free(listening.getsockname()[1])


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_number_that_is_no_port(port: int) -> None:
    assert not port_is_free(port)
