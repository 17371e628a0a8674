"""The network interface with Ray's address, against the kernel's own answer."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from types import SimpleNamespace

import psutil
import pytest
import ray

from causalfusion_platform.launch.cluster.interface import interface_of, use_interface_of_node

SIOCGIFADDR = 0x8915
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def address_of(name: str) -> str | None:
    """The IPv4 address of an interface, from the kernel."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            found = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
        except OSError:  # it has none
            return None
    return socket.inet_ntoa(found[20:24])


def test_every_interface_of_this_host() -> None:
    found = {name: address_of(name) for _, name in socket.if_nameindex()}
    assert "127.0.0.1" in found.values()
    for name, address in found.items():
        if address is not None:
            assert interface_of(address) == name


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with two networks and both versions of IP."""
    table = {
        "lo": ["127.0.0.1", "::1", "00:00:00:00:00:00"],
        "eth0": ["00:16:3e:1b:2c:3d", "192.168.1.5", "fe80::1%eth0"],
        "ib0": ["10.0.0.7", "fd00::7", "fe80::1%ib0"],
    }
    rows = {name: [SimpleNamespace(address=address) for address in listed] for name, listed in table.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: rows)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.7", "ib0"),
        ("192.168.1.5", "eth0"),
        ("fd00:0:0::7", "ib0"),
        ("127.0.0.1", "lo"),
        ("127.0.1.1", "lo"),  # the name of a Debian or Ubuntu host
        ("10.0.0.8", None),  # behind a translation of addresses
    ],
)
def test_an_address(host: None, address: str, name: str | None) -> None:
    assert interface_of(address) == name


def of_node(monkeypatch: pytest.MonkeyPatch, address: str) -> dict[str, str | None]:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    use_interface_of_node()
    return {name: os.environ.get(name) for name in VARIABLES}


def test_a_worker_speaks_over_its_nodes_interface(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes a bare name for the beginning of one."""
    assert of_node(monkeypatch, "10.0.0.7") == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=ib0"}


def test_what_is_set_stays(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^docker,lo")
    assert of_node(monkeypatch, "10.0.0.7") == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "^docker,lo"}


def test_an_address_that_no_interface_has_sets_nothing(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_node(monkeypatch, "10.0.0.8") == dict.fromkeys(VARIABLES)
