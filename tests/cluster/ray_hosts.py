"""A Ray cluster of hosts that are really apart, started as its users start one: `ray start --block` on each host.

It asks for a token. Its head has no CPUs for tasks, a worker's host has one. The GCS takes a host for lost when it
missed five checks of a second each, so that tests do not wait for long.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Host, Process, Switch, until
from tests.conftest import ROOT

RAY = Path(sys.executable).with_name("ray")
INJECTED = ROOT / "tests/faults/injected"
_TRIES = 3
"""Times to start Ray on a host. On a busy machine its processes may not find each other within Ray's own limits."""
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
# Ray starts processes when they are needed, and keeps idle ones: each costs seconds of CPU to start.
_LEAN = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_enable_metrics_collection": "0",
}
_STARTED = "Ray runtime started"
_STORE_BYTES = 100_000_000


class RayHosts:
    """Hosts with a Ray each, in one cluster, and a folder that all of them see.

    Args:
        switch: what joins them.
        home: CAUSALFUSION_HOME of the cluster, at the same path on every host.
    """

    def __init__(self, switch: Switch, home: Path) -> None:
        self.switch, self.home, self.token = switch, home, secrets.token_hex(32)
        self.plan_file = home.with_name("plan.json")
        self._rays: dict[str, tuple[Process, str]] = {}
        """The Ray of each host, and the options that it was started with."""

    def host(self, name: str, *, token: bool = True) -> Host:
        """Return a new host whose user has the cluster's token, unless that is not wanted."""
        host = self.switch.host(name)
        if token:
            file = host.user_home / ".ray/auth_token"
            file.parent.mkdir()
            file.touch(mode=0o600)
            file.write_text(self.token)
        return host

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process of the cluster. Faults can be planned in all of them."""
        path = [INJECTED, ROOT / "platform", ROOT / "models"]
        return {
            "CAUSALFUSION_HOME": str(self.home),
            "CAUSALFUSION_TEST_FAULTS": str(self.plan_file),
            "PYTHONPATH": ":".join(map(str, path)),
            "RAY_AUTH_MODE": "token",
            **_HEALTH,
            **_LEAN,
        }

    def start_head(self, host: Host) -> None:
        """Start a head without CPUs on a host."""
        self._start(host, "--head", "--num-cpus=0", "--dashboard-host=0.0.0.0")

    def start_worker(self, host: Host, head: Host) -> None:
        """Join a host with one CPU to a head."""
        self._start(host, _joining(head), "--num-cpus=1")

    def _start(self, host: Host, *options: str) -> None:
        log = host.folder / "ray.log"
        limits = ["--disable-usage-stats", f"--object-store-memory={_STORE_BYTES}"]
        command = [str(RAY), "start", "--block", *limits, *options]
        for _ in range(_TRIES):
            log.write_text("")
            ray = host.start(*command, log=log, **self.environment)
            self._rays[host.name] = ray, options[0]
            until(lambda ray=ray: _STARTED in ray.said() or ray.status is not None, ray.said)  # type: ignore[misc]
            if ray.status is None:
                return
        raise AssertionError(f"Ray did not start on {host.name}: {log.read_text()}")

    def ray_has_ended(self, host: Host) -> bool:
        """Say whether `ray start --block` of a host has ended, as when the cluster took the host for lost."""
        return host.name not in self._rays or self._rays[host.name][0].status is not None

    def end_ray(self, host: Host) -> None:
        """End the Ray of a host and nothing else there."""
        ray, _ = self._rays.pop(host.name)
        ray.send(signal.SIGTERM)
        ray.wait(60)

    def mend(self, head: Host, *workers: Host, keep_delays: bool = False) -> None:
        """Make one cluster of these hosts again, whatever a test has done to them. What is whole is left alone."""
        for host in (head, *workers):
            host.mend(keep_delay=keep_delays)
        if self.ray_has_ended(head) or self._rays[head.name][1] != "--head":
            self._restart(head, "--head", "--num-cpus=0", "--dashboard-host=0.0.0.0")
        alive = {address for address, state in self.nodes(head).items() if state == "ALIVE"}
        for worker in workers:
            joined = not self.ray_has_ended(worker) and self._rays[worker.name][1] == _joining(head)
            if not joined or worker.address not in alive:
                self._restart(worker, _joining(head), "--num-cpus=1")
        self.wait_for_nodes(head, head, *workers)

    def _restart(self, host: Host, *options: str) -> None:
        if not self.ray_has_ended(host):
            self.end_ray(host)
        self._start(host, *options)

    def nodes(self, head: Host) -> dict[str, str]:
        """Return the state of each node that the GCS of a head knows: address → `ALIVE` or `DEAD`."""
        listed = json.loads(get(head, f"http://{head.address}:8265/api/v0/nodes", self.token)[1])
        rows = listed["data"]["result"]["result"]
        # A host that came back is another node at the same address.
        ordered = sorted(rows, key=lambda row: row["state"] == "ALIVE")
        return {row["node_ip"]: row["state"] for row in ordered}

    def wait_for_nodes(self, head: Host, *hosts: Host) -> None:
        """Wait until exactly these hosts are alive in a head's cluster."""
        wanted = {host.address for host in hosts}

        def alive() -> set[str]:
            return {address for address, state in self.nodes(head).items() if state == "ALIVE"}

        until(lambda: alive() == wanted, lambda: f"{wanted} are wanted, alive: {alive()}")

    def plan(self, *faults: Mapping[str, Any]) -> list[Path]:
        """Plan faults of training processes; return the files that appear when each of them happens.

        See tests/faults/injected/sitecustomize.py.
        """
        named = [{"id": secrets.token_hex(4), **fault} for fault in faults]
        self.plan_file.write_text(json.dumps(named))
        return [Path(f"{self.plan_file}.{fault['id']}.{fault.get('step')}") for fault in named]

    def train(self, host: Host, head: Host, *arguments: str, log: Path, **environment: str) -> Process:
        """Start `causalfusion train` on a host, as a driver of a head's cluster."""
        address = {"RAY_ADDRESS": f"{head.address}:6379"}
        return self.command(host, "train", *arguments, log=log, **address, **environment)

    def submit(
        self, host: Host, head: Host, *arguments: str, log: Path, directory: Path = ROOT, **environment: str
    ) -> Process:
        """Start `causalfusion submit` on a host, which sends a command to a head, and a folder along."""
        where = ["--address", f"http://{head.address}:8265", "--home", str(self.home)]
        sent = ["--working-dir", str(directory)]
        return self.command(host, "submit", *where, *sent, "--", *arguments, log=log, **environment)

    def command(self, host: Host, *arguments: str, log: Path, **environment: str) -> Process:
        """Start `causalfusion` on a host."""
        program = [sys.executable, "-m", "causalfusion_platform", *arguments]
        return host.start(*program, log=log, **{**self.environment, **environment})


def _joining(head: Host) -> str:
    return f"--address={head.address}:6379"


_GET = """
import sys, urllib.request, urllib.error
url, token = sys.argv[1:]
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
try:
    with urllib.request.urlopen(request, timeout=30) as response:
        print(response.status, response.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def get(host: Host, url: str, token: str = "") -> tuple[int, str]:
    """Ask a URL from a host, with a token or without; return HTTP status and body."""
    said = host.run(sys.executable, "-c", _GET, url, token).stdout
    status, _, body = said.partition(" ")
    return int(status), body


def short_run(name: str, *more: str, workers: int = 2) -> list[str]:
    """Return the arguments of a short training: twelve steps of 64 images, a checkpoint after each four.

    A host with one CPU holds one worker and the task that reads its data.
    """
    return [
        "smoke",
        f"name={name}",
        f"train.num_workers={workers}",
        "train.cpus_per_worker=0.75",
        "train.images=768",
        "train.checkpoint_every_images=256",
        "train.log_every_images=64",
        "train.sample_every_images=768",
        "train.precision=fp32",
        "evaluation.score=false",
        *more,
    ]


IN_MEMORY = "data.in_memory=true"
"""Each worker reads its rows by itself, with the same batches. A run then starts fewer processes."""


def checkpoint(home: Path, name: str, images: int) -> Path:
    """Return where a checkpoint of a run lies."""
    return home / "runs" / name / "checkpoints" / f"images-{images:012d}"
