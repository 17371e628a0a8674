"""An S3 server (moto) inside the test process, which can be made to fail as real ones do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from threading import Lock, Thread
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""Application of a server, as Python's standard PEP 3333 has it."""

SERVER_ERROR = ("500 Internal Server Error", "InternalError")
THROTTLED = ("503 Slow Down", "SlowDown")
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
"""Secret key of the tests, which no message may show."""


class FaultyServer:
    """An S3 server on a free port of this machine."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """Method and path of every request."""
        self._faults: list[tuple[str, tuple[str, str], bool]] = []
        self._lock = Lock()
        self._puts = Lock()
        self._application: Wsgi = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        """Address, for AWS_ENDPOINT_URL."""
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead AWS's libraries here, and away from the user's own settings."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail(self, method: str, times: int, fault: tuple[str, str], *, lose_answer: bool = False) -> None:
        """Answer the next requests of a method with an error. `lose_answer`: after doing what they ask."""
        self._faults += [(method, fault, lose_answer)] * times

    def recover(self) -> None:
        """Forget the faults that no request has met."""
        with self._lock:
            self._faults.clear()

    @property
    def faults_left(self) -> int:
        """Number of faults that no request has met yet."""
        return len(self._faults)

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        import boto3

        boto3.client("s3", endpoint_url=self.url, region_name="us-east-1").create_bucket(Bucket=name)

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = environment["REQUEST_METHOD"]
        self.requests.append(f"{method} {environment['PATH_INFO']}")
        fault = self._next_fault(method)
        if fault is None:
            # moto compares and then writes, and S3 does both at once.
            with self._puts if method == "PUT" else nullcontext():
                return self._application(environment, start_response)
        (status, code), lose_answer = fault
        if lose_answer:
            b"".join(self._application(environment, lambda *_: None))
        else:
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]

    def _next_fault(self, method: str) -> tuple[tuple[str, str], bool] | None:
        with self._lock:
            for place, (of, fault, lose_answer) in enumerate(self._faults):
                if of == method:
                    del self._faults[place]
                    return fault, lose_answer
        return None
