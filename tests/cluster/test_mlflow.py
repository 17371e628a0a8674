"""MLflow by the rendered command, on Postgres, with a login and a bucket: it is killed in the middle of a run."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import measured
from tests.cluster.hosts import Switch, until
from tests.cluster.mlflow_hosts import MlflowHosts, why_no_postgres

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SEARCH = "/api/2.0/mlflow/experiments/search"
STEPS = 48
_COMPARE = """
import json, sys
from pathlib import Path
from mlflow import MlflowClient
from tests.faults.matrix import losses
from causalfusion_platform.launch.runs.folder import RunFolder
run_dir = Path(sys.argv[1])
state = RunFolder(run_dir).state
client = MlflowClient()
history = client.get_metric_history(state.mlflow_run_id, "train/loss")
run = client.get_run(state.mlflow_run_id)
images = client.list_artifacts(state.mlflow_run_id, "images")
print(json.dumps({
    "journal": list(losses(run_dir).items()),
    "mlflow": [(point.step, point.value) for point in history],
    "times": [point.timestamp for point in history],
    "status": run.info.status,
    "artifacts": run.info.artifact_uri,
    "images": [one.path for one in images],
    "runs": len(client.search_runs([run.info.experiment_id])),
}))
"""


@pytest.fixture(scope="module")
def mlflow(hosts: Switch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowHosts]:
    reason = why_no_postgres()
    if reason is not None:
        pytest.skip(reason)
    made = MlflowHosts(hosts, tmp_path_factory.mktemp("mlflow"))
    yield made
    made.process.end()


def test_nobody_without_the_password(mlflow: MlflowHosts) -> None:
    body = {"max_results": 10}
    assert mlflow.request("POST", SEARCH, body=body)[0] == 401
    assert mlflow.request("POST", SEARCH, body=body, login=("admin", "wrong"))[0] == 401
    assert mlflow.request("POST", SEARCH, body=body, login=mlflow.login)[0] == 200
    assert mlflow.request("GET", "/")[0] == 401  # the pages too
    artifact = "/api/2.0/mlflow-artifacts/artifacts/runs/x"
    assert mlflow.request("GET", artifact)[0] == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example.org"}, 403),
        ({"Origin": "http://localhost:5000"}, 200),  # `kubectl port-forward`
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "causalfusion-mlflow.evil.example.org:5000"}, 403),
        ({"Host": "causalfusion-mlflow:5000"}, 200),
        ({"Host": "localhost:5000"}, 200),
    ],
)
def test_foreign_pages_and_foreign_names_are_refused(
    mlflow: MlflowHosts, headers: dict[str, str], status: int
) -> None:
    answer = mlflow.request("POST", SEARCH, body={"max_results": 1}, login=mlflow.login, headers=headers)
    assert answer[0] == status, answer[1]


def test_everyone_with_a_login_logs_to_one_experiment_and_deletes_none(mlflow: MlflowHosts) -> None:
    made = mlflow.request("POST", "/api/2.0/mlflow/experiments/create", body={"name": "shared"}, login=mlflow.login)
    experiment = json.loads(made[1])["experiment_id"]
    user = {"username": "grace", "password": "a long enough password"}
    assert mlflow.request("POST", "/api/2.0/mlflow/users/create", body=user, login=mlflow.login)[0] == 200
    login = (user["username"], user["password"])
    run = {"experiment_id": experiment, "run_name": "hers", "start_time": 1}
    assert mlflow.request("POST", "/api/2.0/mlflow/runs/create", body=run, login=login)[0] == 200
    other = {"username": "eve", "password": "another long password"}
    assert mlflow.request("POST", "/api/2.0/mlflow/users/create", body=other, login=login)[0] == 403
    gone = mlflow.request(
        "POST", "/api/2.0/mlflow/experiments/delete", body={"experiment_id": experiment}, login=login
    )
    assert gone[0] == 403


def test_killed_in_the_middle_of_a_run_and_nothing_is_lost(mlflow: MlflowHosts, tmp_path: Path) -> None:
    home = Path(mlflow.run_environment["CAUSALFUSION_HOME"])
    home.mkdir()
    program = [sys.executable, "-m", "causalfusion_platform"]
    overrides = [
        "name=first",
        f"train.images={64 * STEPS}",
        "train.log_every_images=64",
        "evaluation.score=false",
        f"train.sample_every_images={32 * STEPS}",
        f"train.checkpoint_every_images={32 * STEPS}",
        f"tracking.uri={mlflow.uri}",
    ]
    argv = [*program, "train", "smoke", "--local", *overrides]
    run = mlflow.laptop.start(*argv, log=tmp_path / "run.log", **mlflow.run_environment)
    until(
        lambda: (
            run.status is not None or int(mlflow.sql("select count(*) from metrics where key = 'train/loss'")) > 2
        ),
        run.said,
        seconds=300,
    )
    assert run.status is None, run.said()
    mlflow.process.end()
    killed = time.monotonic()
    there = int(mlflow.sql("select count(*) from metrics where key = 'train/loss'"))
    assert run.status is None, run.said()
    mlflow.start_server()
    away = time.monotonic() - killed
    assert run.wait(600) == 0, run.said()
    mlflow.laptop.run(*program, "runs", "sync", home / "runs/first", **mlflow.run_environment)
    compared = mlflow.laptop.run(sys.executable, "-c", _COMPARE, home / "runs/first", **mlflow.run_environment)
    found = json.loads(compared.stdout.splitlines()[-1])
    assert found["mlflow"] == found["journal"]
    assert len(found["mlflow"]) == STEPS > there
    assert found["times"] == sorted(found["times"])
    assert found["status"] == "FINISHED"
    assert found["artifacts"].startswith("mlflow-artifacts:/")
    stored = mlflow.objects()
    assert found["images"]
    for path in found["images"]:
        assert any(key.startswith("runs/") and key.endswith(path) for key in stored), (path, stored)
    measured(
        "MLflow on Postgres is killed in the middle of a run",
        f"away {away:.0f} s; {len(found['mlflow'])} losses and {len(found['images'])} images, each once",
    )


def test_no_secret_in_logs_arguments_and_the_run(mlflow: MlflowHosts) -> None:
    words = {value for secret in mlflow.secrets.values() for value in secret.values() if len(value) > 8}
    texts = [path.read_text(errors="replace") for path in mlflow.folder.glob("*.log")]
    home = Path(mlflow.run_environment["CAUSALFUSION_HOME"])
    files = [
        path for path in home.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml", ".md")
    ]
    assert files
    texts += [path.read_text(errors="replace") for path in files]
    texts.append(mlflow.server.run("ps", "-eo", "args").stdout)
    texts.append(mlflow.sql("select value from params union all select value from tags"))
    for text in texts:
        assert not any(word in text for word in words)


def test_a_termination_ends_the_server_in_time(mlflow: MlflowHosts) -> None:
    """Kubernetes sends SIGTERM, and waits 30 seconds."""
    mlflow.process.send(signal.SIGTERM)
    assert mlflow.process.wait(120) is not None
