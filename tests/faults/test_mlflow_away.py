"""MLflow is down at the start, dies, and hangs in the middle of a run: training goes on, and nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.faults.conftest import EVERY, Plan, launch, sigterm
from tests.faults.matrix import losses, record
from tests.platform.tracking.conftest import Server, server
from tests.platform.tracking.recorded import waiting

from causalfusion_platform.launch.runs.exit_status import StoppedRun
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.sync import sync_run
from causalfusion_platform.tracking.records import Metrics

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
__all__ = ["server"]  # the fixture

EXACTLY_ONCE = "training does not wait. Every metric and image arrives in order, exactly once, when it is back"


def assert_all_arrived(run_dir: Path, client: MlflowClient) -> None:
    """Every point of the loss and every sample grid, each once, in order."""
    state = RunFolder(run_dir).state
    assert state is not None and state.mlflow_run_id is not None
    history = client.get_metric_history(state.mlflow_run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == list(losses(run_dir).items())
    times = [point.timestamp for point in history]
    assert times == sorted(times)
    names = [file.path for file in client.list_artifacts(state.mlflow_run_id, "images")]
    found = [re.search(r"images/(.+)\+step\+(\d+)\+.*\.png", name) for name in names]
    assert sorted((match[1], int(match[2])) for match in found if match) == [
        ("samples~final", 1024),
        ("samples~grid", 512),
        ("samples~grid", 1024),
    ]
    run = client.get_run(state.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["objective.ar_decay"] == "0.9"
    assert len(client.search_runs([run.info.experiment_id], f"attributes.run_name = '{run_dir.name}'")) == 1


def test_mlflow_is_down_at_the_start(place: Path, server: Server) -> None:
    said: list[str] = []
    summary = launch("mlflow-down", f"tracking.uri={server.uri}", local=True, said=said).summary
    assert summary["mlflow_run_id"] is None
    assert any("MLflow does not answer" in line for line in said)
    assert any("causalfusion runs sync" in line for line in said)
    run_dir = Path(summary["run_dir"])
    server.up()
    delivered = sync_run(RunFolder(run_dir))
    assert delivered > 16
    assert_all_arrived(run_dir, server.client)
    assert sync_run(RunFolder(run_dir)) == 0
    record("MLflow is down at the start", EXACTLY_ONCE, saw=f"{delivered} records delivered afterwards")


def test_mlflow_is_killed_in_the_middle(place: Path, server: Server, plan: Plan) -> None:
    """And the run is stopped while it is away: the next launch delivers the records of both."""
    server.up()
    assert server.process is not None
    away = {"do": "SIGKILL", "pid": -server.process.pid, "step": 5}
    plan(away, sigterm(place, "mlflow-killed", 9, 2 * EVERY))
    with pytest.raises(StoppedRun):
        launch("mlflow-killed", f"tracking.uri={server.uri}", local=True)
    server.kill()  # what is left of it
    assert any(isinstance(record, Metrics) for record in waiting(place / "runs" / "mlflow-killed"))
    server.up()
    launch("mlflow-killed", f"tracking.uri={server.uri}", local=True)
    assert_all_arrived(place / "runs" / "mlflow-killed", server.client)
    record("MLflow is killed in the middle, and the run is stopped and continued", EXACTLY_ONCE)


def test_mlflow_hangs_in_the_middle(place: Path, server: Server, plan: Plan) -> None:
    """It accepts connections and answers nothing, to the end of the run and beyond."""
    server.up()
    assert server.process is not None
    plan({"do": "SIGSTOP", "pid": -server.process.pid, "step": 5})
    summary = launch("mlflow-hangs", f"tracking.uri={server.uri}", local=True).summary
    run_dir = Path(summary["run_dir"])
    assert any(isinstance(record, Metrics) for record in waiting(run_dir))  # it did hang until the end
    server.thaw()
    sync_run(RunFolder(run_dir))
    assert_all_arrived(run_dir, server.client)
    record(
        "MLflow hangs (SIGSTOP) from the middle of a run to its end",
        EXACTLY_ONCE,
        saw=f"training took {summary['train_seconds']:.1f} s",
    )
