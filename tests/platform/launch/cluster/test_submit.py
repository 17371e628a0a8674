"""`causalfusion submit` without a head, and against stand-ins for a dashboard."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.files import HOME_VARIABLE
from causalfusion_platform.launch.cluster import follow as follow_module
from causalfusion_platform.launch.cluster import head as head_module
from causalfusion_platform.launch.cluster.head import (
    CLUSTER_HOME,
    DEFAULT_ADDRESS,
    Head,
    find_head,
    resolve_address,
)
from causalfusion_platform.launch.cluster.session import free_port
from causalfusion_platform.launch.cluster.submit import (
    EXCLUDES,
    check_working_dir,
    entrypoint,
    job_home,
    metadata_of,
    next_commands,
    runtime_env,
    submit_job,
)

TOKEN = "0123456789abcdef0123456789abcdef"
LOCAL = Head(DEFAULT_ADDRESS, TOKEN, on_this_host=True)
REMOTE = Head("http://ray.example.org:8265", TOKEN, on_this_host=False)


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

    environment = runtime_env(ROOT, LOCAL, "/home/me/project")
    assert environment["working_dir"] == str(ROOT)
    assert {"/runs", "/shards", ".git", ".venv", "*.db", ".env"} <= set(environment["excludes"])
    variables = environment["env_vars"]
    assert variables[HOME_VARIABLE] == "/home/me/project"
    assert variables["PYTHONPATH"] == "platform:models"
    assert variables["PATH"].startswith(f"{Path(sys.executable).parent}:")
    assert variables["RAY_API_SERVER_ADDRESS"] == DEFAULT_ADDRESS
    assert TOKEN not in json.dumps(environment)
    assert get_uri_for_directory(str(ROOT), include_gitignore=True, excludes=list(EXCLUDES))


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


def test_the_next_commands_are_commands_of_this_program() -> None:
    assert next_commands("http://a b:8265", "job-1").splitlines() == [
        "  log:   causalfusion jobs logs job-1 --follow --address 'http://a b:8265'",
        "  state: causalfusion jobs list --address 'http://a b:8265'",
        "  stop:  causalfusion jobs stop job-1 --address 'http://a b:8265'",
    ]


def test_a_job_says_whose_it_is_and_what_it_runs(tmp_path: Path) -> None:
    arguments = ["train", "smoke", "name=first", "tracking.uri=${oc.env:MLFLOW_TRACKING_URI}", "description=a b"]
    metadata = metadata_of(arguments, tmp_path, {"CAUSALFUSION_USER": "anna"})
    assert metadata == {
        "causalfusion.user": "anna",
        "causalfusion.command": shlex.join(arguments),
        "causalfusion.version": importlib.metadata.version("causalfusion-platform"),
        "causalfusion.run": "first",
        "causalfusion.tracking": "${oc.env:MLFLOW_TRACKING_URI}",
        "causalfusion.folder": str(tmp_path),
    }
    assert "causalfusion.run" not in metadata_of(["data", "digits", "shards"], tmp_path, {})


def test_an_unreachable_head_is_named(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="no Ray head answers") as refusal:
        submit_job(["train", "smoke"], address=address, working_dir=tmp_path, environ={})
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


def test_a_broken_log_is_taken_up_where_it_broke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow_module, "_POLL_S", 0.01)
    client = FlakyClient()

    def details(head: Head, job: str) -> dict[str, Any]:
        del head, job
        return {"status": "FAILED", "driver_exit_code": 2} if client.streams == 3 else {"status": "RUNNING"}

    monkeypatch.setattr(follow_module, "job_details", details)
    assert follow_module._follow(client, REMOTE, "job-1", "hints") == 2
    assert capsys.readouterr().out == FlakyClient.log
    assert client.streams == 3


class SilentClient:
    """Stands in for Ray's client, whose connection to a host that was switched off never ends."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "step 0\n"
        await asyncio.Event().wait()


@pytest.mark.parametrize("client", [FlakyClient(), SilentClient()], ids=["closed", "silent"])
def test_a_lost_head_is_named(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_POLL_S", 0.01), ("_LOST_AFTER_S", 0.1), ("_SILENT_S", 0.01)):
        monkeypatch.setattr(follow_module, name, seconds)

    def gone(head: Head, job: str) -> dict[str, Any]:
        raise UserError(f"no Ray head answers at {head.address}\n  start one")

    monkeypatch.setattr(follow_module, "job_details", gone)
    expected = (
        "lost the Ray head while following job job-1: no Ray head answers at http://ray.example.org:8265\nhints"
    )
    with pytest.raises(UserError, match=f"^{expected}$"):
        follow_module._follow(client, REMOTE, "job-1", "hints")


def test_a_job_that_says_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its head is asked meanwhile, and answers."""
    asked: list[str] = []
    monkeypatch.setattr(follow_module, "_SILENT_S", 0.01)

    def details(head: Head, job: str) -> dict[str, Any]:
        del head
        asked.append(job)
        return {"status": "SUCCEEDED"}

    monkeypatch.setattr(follow_module, "job_details", details)

    class Slow:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            while len(asked) < 3:
                await asyncio.sleep(0.001)
            yield "at last\n"

    assert follow_module._follow(Slow(), REMOTE, "job-1", "hints") == 0
    assert capsys.readouterr().out == "at last\n"
