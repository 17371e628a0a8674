"""Wiring of a training job."""

from __future__ import annotations

from collections.abc import Callable

from causalfusion_platform import assemble
from causalfusion_platform.assemble import Job
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.storage.run_layout import RunPaths


def test_the_run_at_mlflow_may_be_made_after_the_workers_have_started(
    make_experiment: Callable[..., Experiment],
) -> None:
    """The driver keeps its id in the run's state, which is read anew for each checkpoint."""
    experiment = make_experiment()
    job, folder = Job(experiment=experiment), experiment.run_dir
    assert assemble._mlflow_run_id(job) is None
    folder.mkdir(parents=True)
    state = RunState(tracking_uri="sqlite:///x", config=experiment.model_dump(mode="json"))
    state.write(folder)
    assert assemble._mlflow_run_id(job) is None
    state.model_copy(update={"mlflow_run_id": "abc"}).write(folder)
    assert assemble._mlflow_run_id(job) == "abc"
    RunPaths(folder).state_file.write_bytes(b"{")
    assert assemble._mlflow_run_id(job) is None  # a damaged state does not stop a checkpoint
    assert assemble._mlflow_run_id(job.model_copy(update={"mlflow_run_id": "first"})) == "first"
