"""MLflow as Kubernetes would start it: the rendered Deployment's command and environment, on hosts that are apart.

Postgres, an S3 server, MLflow and the run each have a host. Names of services resolve as in the cluster.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.cluster.hosts import Host, Process, Switch, until
from tests.conftest import ROOT

from causalfusion_platform.deploy.cluster_file import ClusterFile
from causalfusion_platform.deploy.kuberay.render import MLFLOW, render_kuberay
from causalfusion_platform.deploy.workload import read_workload, tracking_uri

BUCKET = "artifacts"
_DIGEST = "sha256:" + "1" * 64
CLUSTER = ClusterFile.model_validate(
    {
        "target": "kuberay",
        "owner": "ada",
        "namespace": "lab",
        "image": f"registry.example.org/causalfusion@{_DIGEST}",
        "groups": {"cpu": {"cpus": 4, "memory_gib": 8, "max_nodes": 1}},
        "mlflow": {
            "kind": "deploy",
            "artifacts": f"s3://{BUCKET}/runs",
            "artifacts_endpoint": "http://s3.lab.svc.cluster.local:9000",
            "artifacts_secret": "bucket",
            "postgres_image": f"docker.io/library/postgres@{_DIGEST}",
        },
    }
)
POSTGRES_PROGRAMS = "/usr/lib/postgresql/*/bin/postgres"
_STARTED = "Application startup complete"
"""Line of the server's log by which it is worth asking whether it answers: each question is a process."""
_REQUEST = """
import base64, http.client, json, sys
host, port, method, path, headers, body = json.loads(sys.argv[1])
connection = http.client.HTTPConnection(host, port, timeout=60)
connection.request(method, path, body=body, headers=headers)
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode(errors="replace")]))
"""
_MAKE_BUCKET = "import boto3, sys; boto3.client('s3').create_bucket(Bucket=sys.argv[1])"
_LIST_BUCKET = """
import boto3, json, sys
pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=sys.argv[1])
print(json.dumps([one["Key"] for page in pages for one in page.get("Contents", [])]))
"""


def why_no_postgres() -> str | None:
    """Return why there is no Postgres here, or None."""
    import importlib.util

    if not list(Path("/").glob(POSTGRES_PROGRAMS.lstrip("/"))):
        return f"{POSTGRES_PROGRAMS} missing: tests/cluster/install installs Debian's postgresql"
    missing = [name for name in ("psycopg", "flask_wtf", "moto") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} missing: tests/cluster/install installs the extra cluster" if missing else None


class MlflowHosts:
    """MLflow, its Postgres, a bucket, and a laptop that has the login."""

    def __init__(self, switch: Switch, folder: Path) -> None:
        self.folder = folder
        self.secrets = {
            "causalfusion-mlflow": {
                "POSTGRES_PASSWORD": secrets.token_hex(16),
                "MLFLOW_AUTH_ADMIN_PASSWORD": (password := secrets.token_hex(16)),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
                "MLFLOW_TRACKING_USERNAME": "admin",
                "MLFLOW_TRACKING_PASSWORD": password,
            },
            "bucket": {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)},
        }
        workload = read_workload(CLUSTER, ["train", "smoke", "name=first"])
        self.documents: list[Any] = list(yaml.safe_load_all(render_kuberay(CLUSTER, workload)[MLFLOW]))
        uri = tracking_uri(CLUSTER)
        assert uri is not None
        self.uri, self.service = uri, uri.removeprefix("http://").removesuffix(":5000")
        self.postgres, self.s3 = switch.host("postgres"), switch.host("s3")
        self.server, self.laptop = switch.host("mlflow"), switch.host("mlflow-user")
        _names(self.server, {"causalfusion-postgres": self.postgres, "s3.lab.svc.cluster.local": self.s3})
        _names(self.laptop, {self.service: self.server})
        self._start_postgres()
        self._start_bucket()
        self.process = self.start_server()

    def document(self, kind: str) -> Any:
        """Return the rendered document of a kind."""
        return next(one for one in self.documents if one["kind"] == kind)

    def start_server(self) -> Process:
        """Start MLflow as the Deployment's container has it, and wait until it answers its readiness probe."""
        (container,) = self.document("Deployment")["spec"]["template"]["spec"]["containers"]
        # Where the pod would mount the ConfigMap.
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == "config"]
        config = self.folder / "config"
        config.mkdir(exist_ok=True)
        for name, text in self.document("ConfigMap")["data"].items():
            (config / name).write_text(text)
        environment = {
            name: value.replace(mount["mountPath"], str(config)) if value.startswith(mount["mountPath"]) else value
            for name, value in self._environment(container["env"]).items()
        }
        argv = [*container["command"], *container["args"]]
        log = self.folder / "mlflow.log"
        before = log.read_text().count(_STARTED) if log.exists() else 0
        process = self.server.start(*argv, log=log, **environment)
        probe = container["readinessProbe"]["httpGet"]
        headers = {one["name"]: one["value"] for one in probe["httpHeaders"]}
        until(
            lambda: process.status is not None or process.said().count(_STARTED) > before, process.said, seconds=400
        )
        until(lambda: process.status is not None or self._ready(probe["path"], headers), process.said, seconds=300)
        assert process.status is None, process.said()
        self.process = process
        return process

    def _ready(self, path: str, headers: dict[str, str]) -> bool:
        try:
            return self.request("GET", path, headers=headers)[0] == 200
        except AssertionError:  # nobody listens yet
            return False

    def request(
        self,
        method: str,
        path: str,
        *,
        login: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> tuple[int, str]:
        """Return status and text of the server's answer to the laptop."""
        import base64

        sent = {"Content-Type": "application/json", **(headers or {})}
        if login is not None:
            sent["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
        text = json.dumps(body) if body is not None else None
        asked = json.dumps([self.service, 5000, method, path, sent, text])
        status, answer = json.loads(self.laptop.run(sys.executable, "-c", _REQUEST, asked).stdout)
        return status, answer

    @property
    def login(self) -> tuple[str, str]:
        """User and password of runs."""
        secret = self.secrets["causalfusion-mlflow"]
        return secret["MLFLOW_TRACKING_USERNAME"], secret["MLFLOW_TRACKING_PASSWORD"]

    @property
    def run_environment(self) -> dict[str, Any]:
        """Variables of a run."""
        user, password = self.login
        return {
            "CAUSALFUSION_HOME": str(self.folder / "home"),
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
            "PYTHONPATH": ":".join(str(ROOT / part) for part in (".", "platform", "models")),
        }

    def sql(self, statement: str) -> str:
        """Return what Postgres answers to a statement."""
        found = self.postgres.run("psql", "-At", "-c", statement, **self._database)
        return found.stdout.strip()

    def objects(self) -> list[str]:
        """Return the keys of the bucket."""
        found = self.s3.run(sys.executable, "-c", _LIST_BUCKET, BUCKET, **self._bucket)
        keys: list[str] = json.loads(found.stdout)
        return keys

    @property
    def _database(self) -> dict[str, Any]:
        password = self.secrets["causalfusion-mlflow"]["POSTGRES_PASSWORD"]
        return {"PGHOST": "127.0.0.1", "PGUSER": "mlflow", "PGDATABASE": "mlflow", "PGPASSWORD": password}

    @property
    def _bucket(self) -> dict[str, Any]:
        region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}
        return {**self.secrets["bucket"], **region}

    def _environment(self, variables: list[Any]) -> dict[str, Any]:
        """Return variables as the kubelet fills them in."""
        filled = {}
        for one in variables:
            if "value" in one:
                filled[one["name"]] = one["value"]
            else:
                reference = one["valueFrom"]["secretKeyRef"]
                filled[one["name"]] = self.secrets[reference["name"]][reference["key"]]
        return filled

    def _start_postgres(self) -> None:
        """Make the database as the official image does from POSTGRES_USER, POSTGRES_DB and POSTGRES_PASSWORD."""
        (container,) = self.document("StatefulSet")["spec"]["template"]["spec"]["containers"]
        given = self._environment(container["env"])
        programs = sorted(Path("/").glob(POSTGRES_PROGRAMS.lstrip("/")))[-1].parent
        data, password = self.folder / "postgres", self.folder / "password"
        data.mkdir()
        password.write_text(given["POSTGRES_PASSWORD"])
        for path in (data, password):
            shutil.chown(path, "postgres", "postgres")
        for parent in self.folder.parents:  # the folder of a test is its user's alone
            if parent.stat().st_uid == 0 and parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        self.folder.chmod(0o755)
        options = [f"--pgdata={data}", f"--username={given['POSTGRES_USER']}", f"--pwfile={password}"]
        self._as_postgres(programs / "initdb", *options, "--auth=scram-sha-256", "--no-sync")
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        settings = ["-c", "listen_addresses=*", "-c", "fsync=off"]
        argv: list[str | Path] = [programs / "postgres", "-D", data, "-k", data, *settings]
        started = self.postgres.start(*_POSTGRES_USER, *argv, log=self.folder / "postgres.log")
        ready: list[str | Path] = [programs / "pg_isready", "-h", "127.0.0.1"]
        until(lambda: self.postgres.run(*ready, check=False).returncode == 0, started.said, seconds=120)
        assert started.status is None, started.said()
        everyone = {**self._database, "PGDATABASE": "postgres"}
        self.postgres.run("psql", "-c", f"create database {given['POSTGRES_DB']}", **everyone)

    def _as_postgres(self, *argv: str | Path) -> None:
        self.postgres.run(*_POSTGRES_USER, *argv)

    def _start_bucket(self) -> None:
        program = Path(sys.executable).with_name("moto_server")
        started = self.s3.start(program, "-H", "0.0.0.0", "-p", "9000", log=self.folder / "s3.log")

        def made() -> bool:
            argv = [sys.executable, "-c", _MAKE_BUCKET, BUCKET]
            return self.s3.run(*argv, check=False, **self._bucket).returncode == 0

        until(made, started.said, seconds=120)


# The folder of a checkout may be its user's alone.
_POSTGRES_USER = ["env", "--chdir=/", "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


def _names(host: Host, names: Mapping[str, Host]) -> None:
    """Let names resolve to hosts, on one host."""
    with (host.folder / "hosts").open("a") as file:
        file.write("".join(f"{other.address} {name}\n" for name, other in names.items()))
