"""The hosts themselves: they are really apart, and what the scenarios do to them happens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.cluster.hosts import Host, Process, Switch, until

pytestmark = pytest.mark.cluster

_SERVE = """
import socket
server = socket.create_server(("0.0.0.0", 80))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    received = 0
    while data := connection.recv(1 << 20):
        received += len(data)
    connection.sendall(str(received).encode())
    connection.close()
"""
_SEND = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 80), 1)
connection.settimeout(60)
connection.sendall(bytes(int(sys.argv[2])))
connection.shutdown(socket.SHUT_WR)
print(connection.recv(100).decode())
"""
_ROUND_TRIP = """
import socket, sys, time
started = time.monotonic()
socket.create_connection((sys.argv[1], 80), 60)
print(time.monotonic() - started)
"""


@pytest.fixture(scope="module")
def pair(hosts: Switch) -> Iterator[tuple[Host, Host, Process]]:
    """Two hosts, the first of which counts the bytes that it gets."""
    one, two = hosts.host("one"), hosts.host("two")
    yield one, two, served(one)
    one.remove()
    two.remove()


def served(host: Host) -> Process:
    log = host.folder / "server.log"
    log.write_text("")
    server = host.start(sys.executable, "-c", _SERVE, log=log)
    until(lambda: "listening" in server.said(), server.said)
    return server


def arrives(sender: Host, receiver: Host, size: int = 1) -> bool:
    """Send bytes; say whether all of them came, or no connection came about."""
    done = sender.run(sys.executable, "-c", _SEND, receiver.address, str(size), check=False)
    return done.stdout.strip() == str(size)


def test_hosts_have_names_processes_and_memory_of_their_own(pair: tuple[Host, Host, Process]) -> None:
    one, two, server = pair
    assert [host.run("hostname").stdout.strip() for host in (one, two)] == ["one", "two"]
    assert {host.run("hostname", "-i").stdout.strip() for host in (one, two)} == {"127.0.1.1"}
    assert "server.accept" in one.run("ps", "-ef").stdout
    assert "server.accept" not in two.run("ps", "-ef").stdout
    for folder in ("/dev/shm", "/tmp/ray"):
        one.run("touch", f"{folder}/of-one")
        assert two.run("ls", folder).stdout == ""
        assert not (Path(folder) / "of-one").exists()
    assert server.status is None


def test_a_link_is_cut_and_restored(pair: tuple[Host, Host, Process]) -> None:
    one, two, server = pair
    assert arrives(two, one, 3_000_000)
    one.cut()
    assert not arrives(two, one)
    one.restore()
    assert arrives(two, one)
    assert server.status is None, "a host that is cut goes on"


def test_a_partition_separates_its_sides(pair: tuple[Host, Host, Process], hosts: Switch) -> None:
    one, two, _ = pair
    three = hosts.host("three")
    one.isolate(three)
    assert arrives(three, one)
    assert not arrives(two, one)
    one.rejoin()
    three.rejoin()
    assert arrives(two, one)
    three.remove()


def test_frames_take_longer_and_none_is_lost(pair: tuple[Host, Host, Process]) -> None:
    one, two, _ = pair
    two.delay(0.1)
    seconds = float(two.run(sys.executable, "-c", _ROUND_TRIP, one.address).stdout)
    assert seconds >= 0.2
    assert arrives(two, one, 1_000_000)
    two.undo_delay()
    assert float(two.run(sys.executable, "-c", _ROUND_TRIP, one.address).stdout) < seconds


def test_what_runs_on_a_host_ends_with_it(pair: tuple[Host, Host, Process]) -> None:
    one, two, server = pair
    assert arrives(two, one)
    family = psutil.Process(server._started.pid).children()
    one.kill()
    server.wait(60)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert not arrives(two, one)
    one.boot()
    served(one)
    until(lambda: arrives(two, one), lambda: "the host is back, and nothing arrives")
