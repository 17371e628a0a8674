"""A proxy in the environment is for other machines only."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests

from causalfusion_platform.cli.main import main
from causalfusion_platform.launch.cluster.head import find_head
from causalfusion_platform.loopback import LOOPBACK, bypass_proxy
from causalfusion_platform.tracking.mlflow import answers

VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment with a proxy that refuses every connection."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "")  # so that it is taken back
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "corp.example, .inside")
        # urllib reads the proxies once in a process, at its first request, and keeps them.
        monkeypatch.setattr("urllib.request._opener", None)
        yield


@pytest.fixture
def server() -> Iterator[int]:
    """A server of this machine that answers as MLflow and as a Ray dashboard would; its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"ray_version": "2.60.0", "authentication_mode": "disabled"}')

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http.server_port
        http.shutdown()
        thread.join()


def test_mlflow_and_ray_of_this_machine_are_reached_past_a_proxy(proxied: None, server: int) -> None:
    assert answers(f"http://127.0.0.1:{server}") is None
    assert answers(f"http://localhost:{server}") is None
    assert find_head(f"http://127.0.0.1:{server}", {}).on_this_host
    assert requests.get(f"http://127.0.0.1:{server}", timeout=60).ok
    with pytest.raises(requests.exceptions.ProxyError):  # any other host still goes through it
        requests.get("http://mlflow.example", timeout=60)


def test_processes_started_by_a_command_inherit_it(
    proxied: None, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["causalfusion", "config", "list"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    code = f"import urllib.request as u; print(u.urlopen('http://localhost:{server}', timeout=60).status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "200\n", done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"no_proxy": "a.example"}, {"no_proxy": "a.example+", "NO_PROXY": "a.example+"}),
        ({"NO_PROXY": "a.example, b"}, {"no_proxy": "a.example,b+", "NO_PROXY": "a.example,b+"}),
        ({"no_proxy": "a", "NO_PROXY": "b"}, {"no_proxy": "a+", "NO_PROXY": "b+"}),
        ({"no_proxy": "*"}, {"no_proxy": "*", "NO_PROXY": "*"}),
        ({}, {"no_proxy": "+", "NO_PROXY": "+"}),
    ],
)
def test_what_the_user_set_is_kept(given: dict[str, str], expected: dict[str, str]) -> None:
    environ = {"ALL_PROXY": "socks5://10.0.0.1:1080", **given}
    wanted = {name: text.replace("+", f",{','.join(LOOPBACK)}").lstrip(",") for name, text in expected.items()}
    for _ in range(2):  # asked again, it adds nothing
        bypass_proxy(environ)
        assert environ == {"ALL_PROXY": "socks5://10.0.0.1:1080", **wanted}


def test_without_a_proxy_nothing_is_set() -> None:
    environ = {"NO_PROXY": "a.example", "http_proxy": ""}
    bypass_proxy(environ)
    assert environ == {"NO_PROXY": "a.example", "http_proxy": ""}
