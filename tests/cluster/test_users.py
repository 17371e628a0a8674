"""Two users of one cluster: a name of the other's is refused, and runs of different names are apart."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from tests.cluster.conftest import HANG, Cluster, measured
from tests.cluster.hosts import Process, until
from tests.cluster.ray_hosts import IN_MEMORY, checkpoint, short_run
from tests.faults.matrix import assert_same, events

from causalfusion_platform.config.errors import WRONG
from causalfusion_platform.tracking.journal import Launched

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


def train(cluster: Cluster, logs: Path, user: str, name: str, file: str) -> Process:
    """Start a training of one worker as a user, on the cluster's head."""
    arguments = short_run(name, IN_MEMORY, workers=1)
    log = logs / f"{file}.log"
    return cluster.rays.train(cluster.head, cluster.head, *arguments, log=log, CAUSALFUSION_USER=user)


def test_one_name_two_users(cluster: Cluster, logs: Path) -> None:
    """The second user is refused while the run trains and when it has ended. Another name trains beside it."""
    run_dir = cluster.home / "runs/ours"
    [in_step] = cluster.rays.plan(
        {"do": "SIGCONT", "step": 5, "when": str(checkpoint(cluster.home, "bens", 256))},
    )
    annas = train(cluster, logs, "anna", "ours", "annas")
    until(in_step.exists, annas.said, HANG)
    refused = train(cluster, logs, "ben", "ours", "refused")
    assert refused.wait(HANG) == WRONG, refused.said()
    assert "is of user 'anna', and you are 'ben'" in refused.said()
    assert "runs take-over" in refused.said()
    assert annas.status is None

    # Anna's run waits in its sixth step for Ben's first checkpoint: both train at once, each on a host.
    bens = train(cluster, logs, "ben", "bens", "bens")
    assert annas.wait(HANG) == 0, annas.said()
    assert bens.wait(HANG) == 0, bens.said()
    assert_same(cluster.home / "runs/bens", run_dir)

    again = train(cluster, logs, "ben", "ours", "again")
    assert again.wait(HANG) == WRONG, again.said()
    assert "is of user 'anna'" in again.said()
    assert len([event for event in events(run_dir) if isinstance(event, Launched)]) == 1
    store = mlflow.MlflowClient(f"sqlite:///{cluster.home}/runs/mlflow.db")
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    users = {
        run.info.run_name: run.data.tags["mlflow.user"]
        for run in store.search_runs(experiments)
        if run.info.run_name in ("ours", "bens")
    }
    assert users == {"ours": "anna", "bens": "ben"}
    measured("two users train at once, a host each", "equal losses and weights, the other's name refused twice")
