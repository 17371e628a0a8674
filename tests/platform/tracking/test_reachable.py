"""A tracking server that does not answer is noticed before anything is started, and soon."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.tracking import mlflow
from causalfusion_platform.tracking.mlflow import answers, check_address, check_reachable


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as caught:
        check_reachable(uri)
    message = str(caught.value)
    assert "tracking.uri takes http(s)://HOST:PORT of an MLflow server, or sqlite:///FILE" in message
    return message


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """Serve every request with this status; yield the URL and the paths asked for."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", asked
        finally:
            http.shutdown()
            thread.join()


@contextmanager
def listener(serve: Callable[[socket.socket], None] | None) -> Iterator[int]:
    """Accept connections, and do with them what `serve` does; None: never say a word. Yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)  # if nobody connects, the test fails rather than hangs
        thread = threading.Thread(target=serve, args=(listening,)) if serve else None
        if thread:
            thread.start()
        yield int(listening.getsockname()[1])
        if thread:
            thread.join()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_server_that_answers(end: str) -> None:
    with server(200) as (url, asked):
        check_reachable(url + end)
    assert asked == ["/health"]


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_of_another_kind(status: int) -> None:
    with server(status) as (url, _):
        assert f"no MLflow server answers at tracking.uri {url}" in refusal(url)


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        message = refusal(f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port}: [Errno 111] Connection refused" in message
    assert f"mlflow server --host 127.0.0.1 --port {port}" in message


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds is the longest that one is waited for; here it is less."""
    assert mlflow.ANSWER_SECONDS == 5
    monkeypatch.setattr(mlflow, "ANSWER_SECONDS", 0.1)
    with listener(None) as port:
        assert "timed out" in refusal(f"http://127.0.0.1:{port}")


def test_a_server_that_does_not_speak_http() -> None:
    def greet(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    with listener(greet) as port:
        assert f"no MLflow server answers at tracking.uri http://127.0.0.1:{port}" in refusal(
            f"http://127.0.0.1:{port}"
        )


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlflow.db", "", "postgresql://host/db", "ftp://host"])
def test_a_scheme_that_is_not_supported(uri: str) -> None:
    assert f"tracking.uri {uri!r} is not supported" in refusal(uri)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://[::1", "http://", "http://host:99999"])
def test_an_address_that_cannot_be_one(uri: str) -> None:
    assert uri in refusal(uri)


def test_a_file_gets_its_folder(own_folder: Path) -> None:
    check_reachable(f"sqlite:///{own_folder}/a/b/mlflow.db")
    assert (own_folder / "a/b").is_dir()
    assert not list((own_folder / "a/b").iterdir())
    check_reachable("sqlite:///mlflow.db")


def test_a_folder_that_cannot_be_made(own_folder: Path) -> None:
    (own_folder / "file").write_text("not a folder")
    assert str(own_folder / "file") in refusal(f"sqlite:///{own_folder}/file/mlflow.db")


def test_the_address_alone_asks_nobody(own_folder: Path) -> None:
    """A run starts without its server: only an address that cannot be one keeps it from that."""
    with server(500) as (url, asked):
        check_address(url)
        assert not asked
    with pytest.raises(UserError, match="is not supported"):
        check_address("file:///tmp/mlruns")
    check_address(f"sqlite:///{own_folder}/new/mlflow.db")
    assert (own_folder / "new").is_dir()


def test_why_a_server_does_not_answer(own_folder: Path) -> None:
    with server(200) as (url, _):
        assert answers(url) is None
    assert answers(url) == "[Errno 111] Connection refused"
    with server(503) as (url, _):
        assert answers(url) == "Service Unavailable"
    assert answers(f"sqlite:///{own_folder}/mlflow.db") is None
