"""Delivery to an MLflow server that is down, freezes, dies, is slow or loses answers."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.platform.tracking.recorded import Job, deliver_again, until, waiting


@contextmanager
def proxy(port: int, lose: Callable[[str], bool], delay_seconds: float = 0.0) -> Iterator[str]:
    """Pass requests on to a port, and the answers back, late; where `lose(path)`, the answer is thrown away."""

    class Pass(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            time.sleep(delay_seconds)
            if lose(self.path):
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pass) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def test_a_server_that_is_down_at_the_start_freezes_and_dies(own_folder: Path, server: Any) -> None:
    """One run through all three; training goes on recording throughout."""
    job = Job(own_folder, "faults")
    delivery = job.delivery(server.uri)
    delivery.start()
    job.create()
    job.train(600, 2)
    records = len(waiting(job.folder))
    assert records == 1 + 2 + 1 + 1 + 602
    shown = r"MLflow does not answer \(.*refused\), since ..:..:..: 607 records wait"
    until(lambda: re.match(shown, delivery.state))
    assert delivery.drain(0.5) == records
    assert not job.ids

    server.up()
    assert delivery.drain(60) == 0
    assert delivery.state == "delivering"
    job.check(server.client)

    server.freeze()
    job.train(300, 2)
    assert delivery.drain(1) == 302
    until(lambda: "MLflow does not answer" in delivery.state)
    server.thaw()
    assert delivery.drain(60) == 0
    job.check(server.client)

    server.kill()
    job.train(300, 2)
    job.outbox.finish("KILLED")
    assert delivery.drain(1) == 303
    delivery.stop(60)
    job.outbox.reopen()
    job.train(5)
    server.up()
    assert job.deliver(server.uri) == 0
    job.outbox.finish()
    assert job.deliver(server.uri) == 0
    job.check(server.client, "FINISHED")


def test_answers_that_are_lost(own_folder: Path, server: Any) -> None:
    """The server does what it is asked, but for a while no answer to a change comes back: it is asked again."""
    server.up()
    job = Job(own_folder, "lost")
    job.create()
    job.train(40, 3)
    job.outbox.finish()
    lost: list[str] = []

    def lose(path: str) -> bool:
        found = re.search("runs/create|log-batch|log-inputs|set-tag|artifacts|runs/update", path)
        # MLflow's client asks three times by itself: it takes the delivery to ask a fourth time.
        if found is None or lost.count(found[0]) >= (4 if found[0] == "runs/create" else 1):
            return False
        lost.append(found[0])
        return True

    with proxy(server.port, lose) as uri:
        assert job.deliver(uri) == 0
    assert lost == ["runs/create"] * 3 + ["log-batch", "log-inputs", "set-tag", "artifacts", "runs/update"]
    job.check(server.client, "FINISHED")


def test_a_slow_server(own_folder: Path, server: Any) -> None:
    server.up()
    job = Job(own_folder, "slow")
    job.create()
    job.train(1100, 1)
    with proxy(server.port, lambda _: False, delay_seconds=0.2) as uri:
        assert job.deliver(uri) == 0
    job.check(server.client)


def test_what_was_delivered_but_not_removed(own_folder: Path, server: Any) -> None:
    server.up()
    deliver_again(own_folder, server.uri)
