"""`causalfusion submit` against a stand-in dashboard, and against a Ray head of its own."""

from __future__ import annotations

import json
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from causalfusion_platform.config.compose import HOME_VARIABLE
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch import head as head_module
from causalfusion_platform.launch import submit as submit_module
from causalfusion_platform.launch.head import DEFAULT_ADDRESS, Head, find_head, resolve_address
from causalfusion_platform.launch.submit import (
    CLUSTER_HOME,
    EXCLUDES,
    STOPPED,
    check_working_dir,
    entrypoint,
    exit_status,
    job_home,
    ray_commands,
    runtime_env,
    submit_job,
)

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
LOCAL = Head(DEFAULT_ADDRESS, TOKEN, on_this_host=True)
REMOTE = Head("http://ray.example.org:8265", TOKEN, on_this_host=False)


# --- without a head ---------------------------------------------------------------------------------------


def test_every_argument_reaches_the_job_as_it_is() -> None:
    arguments = ["train", "quickstart", "name=a b", "optim.betas=[0.9,0.95]", "description=$(date) 'γ' \"λ\""]
    command = entrypoint(arguments)
    assert shlex.split(command) == ["python", "-m", "causalfusion_platform", *arguments]
    printed = subprocess.run(
        ["sh", "-c", command.replace("python -m causalfusion_platform", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.splitlines() == arguments


@pytest.mark.parametrize(("arguments", "says"), [([], "missing after --"), (["--adress", "x"], "'--adress'")])
def test_a_command_that_cannot_be_meant_is_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        entrypoint(arguments)


def test_a_checkout_is_sent_without_what_runs_leave_behind() -> None:
    from ray._private.runtime_env.packaging import get_uri_for_directory  # what the client itself calls

    environment = runtime_env(REPOSITORY, LOCAL, "/home/me/project")
    assert environment["working_dir"] == str(REPOSITORY)
    assert {"/runs", "/shards", ".git", ".venv", "*.db", ".env"} <= set(environment["excludes"])
    variables = environment["env_vars"]
    assert variables[HOME_VARIABLE] == "/home/me/project"
    assert variables["PYTHONPATH"] == "platform:models"
    assert variables["PATH"].startswith(f"{Path(sys.executable).parent}:")
    assert variables["RAY_API_SERVER_ADDRESS"] == DEFAULT_ADDRESS
    assert TOKEN not in json.dumps(environment)
    assert get_uri_for_directory(str(REPOSITORY), include_gitignore=True, excludes=list(EXCLUDES))


def test_excluded_files_do_not_change_the_package(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import get_uri_for_directory

    def package() -> str:
        return str(get_uri_for_directory(str(tmp_path), include_gitignore=True, excludes=list(EXCLUDES)))

    (tmp_path / "platform/causalfusion_platform/data").mkdir(parents=True)
    (tmp_path / "experiments").mkdir()
    before = package()
    for name in (
        "runs/x/mlflow.db",
        "shards/a.parquet",
        ".venv/bin/python",
        ".git/HEAD",
        "a/__pycache__/b.pyc",
        ".env",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a/__pycache__/b.pyc").parent.rename(tmp_path / "experiments/__pycache__")
    (tmp_path / "a").rmdir()
    assert package() == before
    (tmp_path / "platform/causalfusion_platform/data/stream.py").write_text("x")
    changed = package()
    (tmp_path / "experiments/runs.yaml").write_text("x")
    assert len({before, changed, package()}) == 3


def test_a_cluster_elsewhere_uses_its_own_python_and_home(tmp_path: Path) -> None:
    assert job_home(None, REMOTE) == CLUSTER_HOME
    assert job_home("/mnt/other", REMOTE) == "/mnt/other"
    with pytest.raises(UserError, match="not an absolute path"):
        job_home("results", REMOTE)
    assert runtime_env(tmp_path, REMOTE, CLUSTER_HOME)["env_vars"] == {HOME_VARIABLE: CLUSTER_HOME}


def test_a_head_on_this_host_writes_into_the_submitting_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert job_home(None, LOCAL) == str(tmp_path)
    assert job_home("results", LOCAL) == str(tmp_path / "results")


@pytest.mark.parametrize("folder", ["~", "/", "no such folder"])
def test_a_working_dir_that_cannot_be_meant_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match="--working-dir"):
        check_working_dir(Path(folder))


@pytest.mark.parametrize(
    ("option", "environ", "address"),
    [
        (None, {}, DEFAULT_ADDRESS),
        (None, {"RAY_ADDRESS": "auto"}, DEFAULT_ADDRESS),
        (None, {"RAY_ADDRESS": "http://a:1/"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "https://b"}, "https://b"),
        ("http://c:3", {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "https://b"}, "http://c:3"),
    ],
)
def test_the_address_comes_from_the_option_then_the_environment(
    option: str | None, environ: dict[str, str], address: str
) -> None:
    assert resolve_address(option, environ) == address


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://head:10001", "http://", "http://head:99999"])
def test_an_address_that_is_no_url_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"--address .*http://HOST:8265") as refusal:
        resolve_address(address, {})
    assert repr(address) in str(refusal.value)


def test_ray_commands_work_as_printed() -> None:
    assert ray_commands(LOCAL, "job-1", {"RAY_AUTH_MODE": "token"}).splitlines() == [
        f"  log:    ray job logs --follow --address {DEFAULT_ADDRESS} job-1",
        f"  status: ray job status --address {DEFAULT_ADDRESS} job-1",
        f"  stop:   ray job stop --address {DEFAULT_ADDRESS} job-1",
    ]
    elsewhere = ray_commands(LOCAL, "job-1", {"RAY_ADDRESS": "auto"}).splitlines()[1]
    assert elsewhere.split()[1:3] == ["RAY_AUTH_MODE=token", f"RAY_API_SERVER_ADDRESS={DEFAULT_ADDRESS}"]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, STOPPED),
    ],
)
def test_the_exit_status_is_that_of_the_job(status: str, code: int | None, expected: int) -> None:
    assert exit_status(status, code) == expected


def test_an_unreachable_head_is_named_within_seconds(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    start = time.monotonic()
    with pytest.raises(UserError, match="no Ray head answers") as refusal:
        submit_job(["train", "smoke"], address=address, working_dir=tmp_path, environ={})
    assert time.monotonic() - start < 10
    assert address in str(refusal.value)
    assert "ray start --head" in str(refusal.value)


def test_a_silent_head_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_PROBE_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match="no Ray head answers"):
            find_head(address, {})


Dashboard = Callable[[dict[str, str]], str]


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    """Start stand-ins for a dashboard with token authentication that answer the given paths."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: dict[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                public = self.path == "/api/authentication_mode"
                given = self.headers.get("Authorization")
                status = 200 if public or given == f"Bearer {TOKEN}" else 403 if given else 401
                if self.path not in answers:
                    status = 404
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answers.get(self.path, "not found").encode() if status == 200 else b"")

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


ANSWERS = {
    "/api/authentication_mode": '{"authentication_mode": "token"}',
    "/api/version": '{"ray_version": "2"}',
}


def test_the_token_is_found_where_ray_looks_for_it(dashboard: Dashboard, tmp_path: Path) -> None:
    address = dashboard(ANSWERS)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for environ in ({"RAY_AUTH_TOKEN": TOKEN}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}):
        head = find_head(address, environ)
        assert head.token == TOKEN
        assert TOKEN not in repr(head)


def test_a_missing_or_wrong_token_is_named(dashboard: Dashboard, tmp_path: Path) -> None:
    address = dashboard(ANSWERS)
    nowhere = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    with pytest.raises(UserError, match="asks for a token") as refusal:
        find_head(address, nowhere)
    assert str(tmp_path / "none") in str(refusal.value)
    with pytest.raises(UserError, match="refuses the token from RAY_AUTH_TOKEN") as refusal:
        find_head(address, {"RAY_AUTH_TOKEN": "wrong"})
    assert "wrong" not in str(refusal.value)
    with pytest.raises(UserError, match="no token has"):
        find_head(address, {"RAY_AUTH_TOKEN": "two\r\nlines"})


def test_something_else_than_ray_is_named(dashboard: Dashboard) -> None:
    with pytest.raises(UserError, match="not a Ray dashboard"):
        find_head(dashboard({"/api/version": "<html>"}), {})


def test_a_forwarded_port_is_not_this_host(dashboard: Dashboard) -> None:
    for name, here in (("head-pod-x", False), (socket.gethostname(), True)):
        nodes = json.dumps({"data": {"hostNameList": [name]}})
        address = dashboard({**ANSWERS, "/nodes?view=hostNameList": nodes})
        assert find_head(address, {"RAY_AUTH_TOKEN": TOKEN}).on_this_host is here


class FlakyClient:
    """Stands in for Ray's client: the log's stream breaks twice, each time further on."""

    log = "".join(f"step {step}\n" for step in range(100))

    def __init__(self) -> None:
        self.streams = 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        del job
        self.streams += 1
        end = {1: 70, 2: 501}.get(self.streams, len(self.log))
        for start in range(0, end, 50):
            yield self.log[start : min(start + 50, end)]
        if end < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job: str) -> JobDetails:
        ended = self.streams == 3
        return JobDetails(
            type=JobType.SUBMISSION,
            submission_id=job,
            entrypoint="",
            status=JobStatus.FAILED if ended else JobStatus.RUNNING,
            driver_exit_code=5 if ended else None,
        )


def test_a_broken_log_is_taken_up_where_it_broke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit_module, "_POLL_S", 0.01)
    client = FlakyClient()
    assert submit_module._follow(client, "job-1", "hints") == 5
    assert capsys.readouterr().out == FlakyClient.log
    assert client.streams == 3


def test_a_lost_head_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "_POLL_S", 0.01)
    monkeypatch.setattr(submit_module, "_LOST_AFTER_S", 0.1)

    def gone(job: str) -> JobDetails:
        raise ConnectionError(job)

    client = FlakyClient()
    monkeypatch.setattr(client, "get_job_info", gone)
    with pytest.raises(UserError, match="lost the Ray head while following job job-1"):
        submit_module._follow(client, "job-1", "hints")


# --- with a head ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """A Ray head of this test, with token authentication on."""

    address: str
    token_path: Path

    def submit(
        self, *arguments: str, cwd: Path = REPOSITORY, token_path: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `causalfusion submit`; RAY_AUTH_MODE is left out, as most users would."""
        return subprocess.run(
            [sys.executable, "-m", "causalfusion_platform", "submit", "--address", self.address, *arguments],
            cwd=cwd,
            env=clean_environment() | {"RAY_AUTH_TOKEN_PATH": str(token_path or self.token_path)},
            capture_output=True,
            text=True,
            timeout=400,
        )


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
    deadline = time.monotonic() + 120
    while True:
        try:
            assert find_head(address, environ).on_this_host
            return
        except UserError:
            if head.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the Ray head did not start:\n{log.read_text()}")
            time.sleep(1)


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
sys.exit(7)
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
    assert done.returncode == 7
    assert "ray job stop" in done.stderr


@pytest.mark.slow
def test_a_training_run_leaves_its_results_in_the_home(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.submit("--home", str(tmp_path), "--", "train", "smoke", "name=sent", "train.images=256")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "name=sent" in done.stdout
    assert any((tmp_path / "runs" / "sent").iterdir())
    assert any((tmp_path / "shards").rglob("manifest.json"))


@pytest.mark.slow
def test_the_job_s_output_and_exit_status_come_back(cluster: Cluster) -> None:
    shown = cluster.submit("--", "config", "show", "smoke")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "global_batch_size:" in shown.stdout
    wrong = cluster.submit("--", "config", "show", "nonsense")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "nonsense" in wrong.stdout.split("config show nonsense", 1)[-1]
    assert "failed with exit status 2" in wrong.stderr


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
        cwd=REPOSITORY,
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
    _, told = following.communicate(timeout=60)
    assert following.returncode == 130, told
    assert "job long goes on" in told
    stop = next(line for line in told.splitlines() if "ray job stop" in line).split(":", 1)[1]
    stopped = subprocess.run(
        ["sh", "-c", stop],
        env=environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "was stopped" in stopped.stdout + stopped.stderr
