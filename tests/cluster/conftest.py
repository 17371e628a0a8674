"""What the scenarios share: one cluster of hosts that are really apart, and the figures that they measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tests.cluster.hosts import Host, Switch, switch, why_not
from tests.cluster.ray_hosts import IN_MEMORY, RayHosts, short_run

HANG = 280
"""Seconds that only a hang of a run takes, on a loaded machine too."""
_MEASURED: list[tuple[str, str]] = []


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs, two workers with one CPU each, and a laptop that has the token and no Ray."""

    rays: RayHosts
    head: Host
    workers: tuple[Host, Host]
    laptop: Host

    @property
    def home(self) -> Path:
        """CAUSALFUSION_HOME of the cluster."""
        return self.rays.home


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switch]:
    """A switch to plug hosts into. The test is left out where the machine makes no hosts."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with switch(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="session")
def cluster(hosts: Switch, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """One cluster for many tests. A test that breaks something of it asks for `breakable` instead."""
    home = tmp_path_factory.mktemp("shared") / "home"
    home.mkdir()
    rays = RayHosts(hosts, home)
    head, one, two, laptop = (rays.host(name) for name in ("head", "worker-1", "worker-2", "laptop"))
    rays.start_head(head)
    rays.start_worker(one, head)
    rays.start_worker(two, head)
    rays.wait_for_nodes(head, head, one, two)
    return Cluster(rays, head, (one, two), laptop)


@pytest.fixture
def breakable(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, for a test that breaks it. After a failure too all hosts are there again, with Ray running."""
    yield cluster
    cluster.rays.mend(cluster.head, *cluster.workers)


@pytest.fixture(scope="session")
def one_host(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two workers on the laptop alone, with a Ray of its own. All tests share it."""
    own = tmp_path_factory.getbasetemp()
    home = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "one-host"
    run_dir = home / "runs/one-host"
    with FileLock(f"{home}.lock"):
        if not (run_dir / "summary.json").exists():
            home.mkdir(exist_ok=True)
            arguments = short_run("one-host", IN_MEMORY)
            log = cluster.laptop.folder / "one-host.log"
            laptop = {"CAUSALFUSION_HOME": str(home)}
            trained = cluster.rays.command(cluster.laptop, "train", *arguments, log=log, **laptop)
            assert trained.wait(HANG) == 0, trained.said()
    return run_dir


def measured(what: str, figures: str) -> None:
    """Add a row to the table that the tests print at their end."""
    _MEASURED.append((what, figures))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what this process measured on to the one that prints it, where pytest-xdist divides the tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["measured"] = _MEASURED


def pytest_testnodedown(node: Any) -> None:
    """Take what a process of pytest-xdist has measured."""
    _MEASURED.extend(tuple(row) for row in getattr(node, "workeroutput", {}).get("measured", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    if _MEASURED:
        terminalreporter.section("measured on hosts that are apart")
        width = max(len(what) for what, _ in _MEASURED)
        for what, figures in _MEASURED:
            terminalreporter.line(f"{what:{width}}  {figures}")
