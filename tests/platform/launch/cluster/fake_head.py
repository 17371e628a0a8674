"""Stand-in for a Ray head: its REST interface for jobs, with token authentication."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from causalfusion_platform.launch.cluster.named import Cluster

TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass
class FakeHead:
    """Jobs of a head, and what it was asked."""

    address: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Id → Ray's `JobDetails`."""
    logs: dict[str, str] = field(default_factory=dict)
    packages: set[str] = field(default_factory=set)
    on_stop: Callable[[dict[str, Any]], None] = lambda job: job.update(status="STOPPED")
    stopped: list[str] = field(default_factory=list)

    @property
    def cluster(self) -> Cluster:
        """The cluster, as --address names it."""
        return Cluster(self.address, self.address, {"RAY_AUTH_TOKEN": TOKEN})

    def add(
        self, job: str, status: str = "RUNNING", code: int | None = None, user: str | None = "anna", **more: Any
    ) -> None:
        """Add a job, as `submit` makes it. Without a user: as another program makes it."""
        metadata = {"causalfusion.user": user, "causalfusion.run": "first", "causalfusion.version": "0.1.0"}
        self.jobs[job] = {
            "type": "SUBMISSION",
            "submission_id": job,
            "entrypoint": f"python -m causalfusion_platform train smoke name={job}",
            "status": status,
            "driver_exit_code": code,
            "start_time": 1_700_000_000_000,
            "end_time": None if status in ("RUNNING", "PENDING") else 1_700_003_725_000,
            "metadata": metadata if user else None,
            "runtime_env": {
                "working_dir": "gcs://_ray_pkg_1.zip",
                "env_vars": {
                    "CAUSALFUSION_HOME": "/mnt",
                    "CAUSALFUSION_JOB": job,
                    "RAY_JOB_STOP_WAIT_TIME_S": "600",
                },
            },
            **more,
        }

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        """Return HTTP status and content for a request."""
        if not path.startswith("/api/"):
            return 404, {}
        parts = path.removeprefix("/api/").split("/")
        if parts == ["authentication_mode"]:
            return 200, {"authentication_mode": "token"}
        if parts == ["version"]:
            return 200, {"ray_version": "2.60.0"}
        if parts[0] == "packages":
            return (200 if f"{parts[1]}://{parts[2]}" in self.packages else 404), {}
        if parts == ["jobs", ""]:
            return 200, [*self.jobs.values(), {"type": "DRIVER", "job_id": "01000000", "status": "RUNNING"}]
        if len(parts) == 3 and parts[1] in self.jobs:
            if (method, parts[2]) == ("POST", "stop"):
                self.stopped.append(parts[1])
                self.on_stop(self.jobs[parts[1]])
                return 200, {"stopped": True}
            if parts[2] == "logs":
                return 200, {"logs": self.logs.get(parts[1], "")}
        return 404, {}


@contextmanager
def fake_head() -> Iterator[FakeHead]:
    """Start a stand-in on a port of its own."""
    head = FakeHead()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            public = self.path == "/api/authentication_mode"
            allowed = public or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, content = head.answer(self.command, self.path) if allowed else (403, {})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    head.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield head
    finally:
        server.shutdown()
        server.server_close()
