"""`runs sync` that is killed with SIGKILL, over and over: MLflow holds each record once."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.platform.tracking.recorded import Job, waiting

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.runs.sync import sync_run

# First call of a function, and number of calls after it at which the delivery is killed.
# Points lie in the making of the run, around the keeping of its id, at the first move of the cursor, and later.
KILLS = [
    *(("_create", 0), ("search_runs", 1), ("create_run", 0), ("create_run", 3)),
    *(("_keep_run_id", 0), ("keep", 0), ("write_atomically", 0), ("replacing", 0)),
    *(("_keep_one", 0), ("_keep_one", 4), ("delivered", 0), ("delivered", 1)),
    *(("delivered", later) for later in (3, 20, 60, 100, 150, 200, 250, 300)),
]
# Each line of its input is a run's folder and a point. A copy of the process delivers the folder's records, and is
# killed there.
SYNCS = """if True:
    import os, signal, sys, threading
    from pathlib import Path
    import mlflow.store.tracking.sqlalchemy_store
    from causalfusion_platform.launch.runs.folder import RunFolder
    from causalfusion_platform.launch.runs.sync import sync_run

    counted = ("causalfusion_platform", "mlflow/store/tracking", "mlflow/tracking", "mlflow/store/artifact")

    def sync(run_dir, name, later):
        calls = -1
        def count(frame, event, argument):
            nonlocal calls
            if any(part in frame.f_code.co_filename for part in counted):
                calls += calls >= 0 or frame.f_code.co_name == name
                if calls == later:
                    os.kill(os.getpid(), signal.SIGKILL)
        threading.settrace(count)
        sync_run(RunFolder(Path(run_dir)), seconds=60)

    for line in sys.stdin:
        run_dir, name, later = line.split()
        child = os.fork()
        if child == 0:
            sync(run_dir, name, int(later))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def progress(run_dir: Path, database: Path) -> tuple[int, bool, bool]:
    """Return the runs that MLflow has made, and whether the id and the cursor are on disk."""
    with closing(sqlite3.connect(database)) as store:
        [[made]] = store.execute("SELECT count(*) FROM runs")
    state = RunState.read(run_dir)
    assert state is not None
    return made, state.mlflow_run_id is not None, (run_dir / "outbox" / "cursor.json").is_file()


@pytest.mark.processes
def test_a_sync_that_is_killed_at_many_points(
    own_folder: Path, empty_mlflow_store: Path, make_experiment: Callable[..., Experiment]
) -> None:
    database = own_folder / "mlflow.db"
    shutil.copy(empty_mlflow_store, database)
    uri = f"sqlite:///{database}"
    job = Job(own_folder, "killed")
    tree = make_experiment().model_dump(mode="json")
    RunState(tracking_uri=uri, config=tree, folder=str(job.folder)).write(job.folder)
    job.create()
    for _ in range(12):
        job.train(5, 1)
        job.outbox.tags({"tag": "value"})
    job.outbox.finish()
    total = len(waiting(job.folder))

    seen, left = set(), []
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", SYNCS], **pipes) as syncs:
        assert syncs.stdin and syncs.stdout
        for name, later in KILLS:
            syncs.stdin.write(f"{job.folder} {name} {later}\n")
            assert int(syncs.stdout.readline()) == -signal.SIGKILL, (name, later)
            seen.add(progress(job.folder, database))
            left.append(len(waiting(job.folder)))
    # Before MLflow made the run, before its id was kept, before the cursor passed it, and after.
    assert seen == {(0, False, False), (1, False, False), (1, True, False), (1, True, True)}
    assert left == sorted(left, reverse=True)
    assert len({*left}) > 5
    assert 0 < left[-1] < total

    sync_run(RunFolder(job.folder), seconds=60)
    assert waiting(job.folder) == []
    from mlflow import MlflowClient

    job.ids = [str(RunFolder(job.folder).started.mlflow_run_id)]
    job.check(MlflowClient(tracking_uri=uri), "FINISHED")
