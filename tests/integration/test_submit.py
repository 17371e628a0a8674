"""`causalfusion submit` against a Ray head of its own."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import ROOT

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.files import HOME_VARIABLE
from causalfusion_platform.launch.cluster.head import find_head


@dataclass(frozen=True)
class Cluster:
    """A Ray head of this test, with token authentication on."""

    address: str
    token_path: Path

    def submit(
        self, *arguments: str, cwd: Path = ROOT, token_path: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `causalfusion submit`; RAY_AUTH_MODE is left out, as most users would."""
        return subprocess.run(
            [sys.executable, "-m", "causalfusion_platform", "submit", "--address", self.address, *arguments],
            cwd=cwd,
            env=clean_environment() | {"RAY_AUTH_TOKEN_PATH": str(token_path or self.token_path)},
            capture_output=True,
            text=True,
            timeout=580,
        )

    def jobs(self, *arguments: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run `causalfusion jobs`."""
        command = [sys.executable, "-m", "causalfusion_platform", "jobs", *arguments, "--address", self.address]
        environment = clean_environment() | {"RAY_AUTH_TOKEN_PATH": str(self.token_path), "CAUSALFUSION_USER": user}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)


def clean_environment() -> dict[str, str]:
    """Return the environment without what points at another Ray of this host or at another home."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != HOME_VARIABLE}


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, below the range the kernel hands out and above Ray's own."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), k=4_000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} free ports")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="cf-"))  # short: it holds unix sockets
    token_path = folder / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    options = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "ray-client-server-port",
        "node-manager-port",
        "object-manager-port",
    )
    ports = free_ports(len(options) + 60)
    named = dict(zip(options, ports, strict=False))
    environment = clean_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    command += ["--node-ip-address", "127.0.0.1", "--temp-dir", str(folder), "--num-cpus", "2"]
    command += ["--object-store-memory", "300000000"]
    command += ["--worker-port-list", ",".join(map(str, ports[len(options) :]))]
    command += [f"--{option}={port}" for option, port in named.items()]
    log = folder / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{named['dashboard-port']}"
        wait_for_head(address, {"RAY_AUTH_TOKEN_PATH": str(token_path)}, head, log)
        yield Cluster(address, token_path)
    finally:
        end(head, folder)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_head(address: str, environ: dict[str, str], head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 280
    while True:
        try:
            assert find_head(address, environ).on_this_host
            return
        except UserError:
            if head.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the Ray head did not start:\n{log.read_text()}")
            time.sleep(0.2)


def end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """End the head and whatever of it is left; its processes are known by their group and by its folder."""
    head.terminate()
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=30)
    processes = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    for line in processes.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        if str(folder) in arguments:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


STAND_IN = """
import os, sys
import causalfusion, causalfusion_platform, ray

ray.init(logging_level="ERROR")

@ray.remote
def where():
    import causalfusion, causalfusion_platform
    return [causalfusion.MARK, causalfusion_platform.MARK, os.environ["CAUSALFUSION_HOME"]]

print("driver", causalfusion.MARK, causalfusion_platform.MARK, sys.argv[1:])
print("worker", *ray.get(where.remote()))
sys.exit(75)
"""


@pytest.mark.slow
def test_a_checkout_runs_as_it_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name, body in {
        "platform/causalfusion_platform/__init__.py": "MARK = 'sent platform'",
        "platform/causalfusion_platform/__main__.py": STAND_IN,
        "models/causalfusion/__init__.py": "MARK = 'sent models'",
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(body)
    done = cluster.submit("--working-dir", str(checkout), "--", "a b", "--c", "$HOME", cwd=tmp_path)
    assert "driver sent models sent platform ['a b', '--c', '$HOME']" in done.stdout, done.stdout + done.stderr
    assert f"worker sent models sent platform {tmp_path}" in done.stdout
    assert done.returncode == 75
    assert "failed with exit status 75" in done.stderr
    assert "causalfusion jobs stop" in done.stderr


@pytest.mark.slow
def test_a_run_is_trained_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    # The task's module comes with the directory that is sent: the driver and the workers import it from there.
    arguments = [
        "task=tests.platform.tasks.toy:LatentMean",
        "train.images=256",
        "train.checkpoint_every_images=256",
    ]
    done = cluster.submit("--home", str(home), "--job-id", "trained", "--", "train", "smoke", "--json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any((home / "shards").rglob("_manifest.json"))
    summary = json.loads((home / "runs" / "smoke" / "summary.json").read_text())
    assert summary["images_seen"] == 256
    assert "bias" in summary
    assert json.loads(done.stdout.splitlines()[-1]) == summary
    fetched = cluster.jobs("fetch", "trained", str(tmp_path / "fetched"))
    assert fetched.returncode == 0, fetched.stderr
    assert json.loads((tmp_path / "fetched" / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_a_refusal_names_what_is_wrong(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    refused = cluster.submit("--", "config", "show", "smoke", token_path=tmp_path / "token")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert f"refuses the token from {tmp_path / 'token'}" in refused.stderr
    first = cluster.submit("--no-wait", "--job-id", "once", "--", "config", "show", "smoke")
    assert (first.returncode, first.stdout) == (0, "once\n"), first.stderr
    second = cluster.submit("--no-wait", "--job-id", "once", "--", "config", "show", "smoke")
    assert second.returncode == 2
    assert "--job-id 'once' is taken" in second.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running(cluster: Cluster, tmp_path: Path) -> None:
    """Interrupt the command that follows a job; the job is then still there, and can be stopped."""
    module = tmp_path / "causalfusion_platform"
    module.mkdir()
    (module / "__init__.py").touch()
    (module / "__main__.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(300)\n")
    command = [sys.executable, "-m", "causalfusion_platform", "submit", "--address", cluster.address]
    environment = clean_environment() | {"RAY_AUTH_TOKEN_PATH": str(cluster.token_path)}
    following = subprocess.Popen(
        [*command, "--working-dir", str(tmp_path), "--job-id", "long", "--", "x"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background, a test run perhaps, deaf to interrupts; children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert following.stdout is not None
    while (line := following.stdout.readline()) != "begun\n":
        assert line, following.communicate()[1]
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=280)
    assert following.returncode == 130, told
    assert "job long goes on" in told
    stop = next(line for line in told.splitlines() if "jobs stop" in line).split(":", 1)[1]
    stopped = subprocess.run(
        ["sh", "-c", stop],
        env=environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped (143), and does not tell of a checkpoint" in stopped.stderr


SLOW_TO_STOP = """
import os, pathlib, signal, sys, time

checkpoint = pathlib.Path(os.environ["CAUSALFUSION_HOME"], "checkpoint")
if checkpoint.exists():
    print("continued with", os.environ["GIVEN"], "as", os.environ["CAUSALFUSION_JOB"], flush=True)
    sys.exit(0)

def save(*_):
    time.sleep(5)  # longer than Ray's own patience
    checkpoint.touch()
    print("saved\\ncausalfusion: exit status 75 (continue later)", flush=True)
    os._exit(75)

signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_a_job_is_listed_stopped_with_its_checkpoint_and_resumed(cluster: Cluster, tmp_path: Path) -> None:
    module = tmp_path / "causalfusion_platform"
    module.mkdir()
    (module / "__init__.py").touch()
    (module / "__main__.py").write_text(SLOW_TO_STOP)
    home = tmp_path / "home"
    home.mkdir()
    options = ["--working-dir", str(tmp_path), "--home", str(home), "--job-id", "slow", "--env", "GIVEN=a b"]
    assert cluster.submit("--no-wait", *options, "--", "train", "smoke", "name=slow").returncode == 0
    deadline = time.monotonic() + 280
    while "begun" not in cluster.jobs("logs", "slow").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    refused = cluster.jobs("resume", "slow")
    assert (refused.returncode, "is running" in refused.stderr) == (2, True)
    assert cluster.jobs("stop", "slow", user="another").returncode == 2
    stopped = cluster.jobs("stop", "slow")
    assert stopped.returncode == 0, stopped.stderr
    assert "continue later (75)" in stopped.stderr
    assert (home / "checkpoint").exists()
    resumed = cluster.jobs("resume", "slow", "--job-id", "slow-2")
    assert resumed.returncode == 0, resumed.stderr
    assert "continued with a b as slow-2" in resumed.stdout
    told = json.loads(cluster.jobs("list", "--all", "--json").stdout)["jobs"]
    ends = {job["job"]: (job["status_name"], job["run"], job["command"]) for job in told}
    assert ends["slow"] == ("stopped", "slow", "train smoke name=slow")
    assert ends["slow-2"] == ("finished", "slow", "train smoke name=slow")
    assert "nothing is left to resume" in cluster.jobs("resume", "slow-2").stderr
