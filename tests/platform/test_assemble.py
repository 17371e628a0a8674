"""Wiring of a training job."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from causalfusion_platform import assemble
from causalfusion_platform.assemble import Job, build_guard
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.storage.run_layout import RunPaths
from causalfusion_platform.train.control import LocalControl
from causalfusion_platform.train.loop import TrainState


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


@pytest.mark.parametrize(
    ("device", "train", "late"),
    [
        ("cuda", {}, True),
        ("cuda", {"zero_stage": 0}, True),
        ("cuda", {"zero_stage": 1}, False),
        ("cuda", {"num_workers": 2, "global_batch_size": 4}, False),
        ("cpu", {}, False),
    ],
)
def test_the_device_decides_on_updates_at_zero_0_on_a_gpu(device: str, train: dict[str, Any], late: bool) -> None:
    experiment = Experiment.model_validate(
        {"name": "x", "model": {"preset": "tiny"}, "train": {"images": 8} | train}
    )
    optimizer = SimpleNamespace(allow=None, left_out=None)
    engine = SimpleNamespace(basic_optimizer=optimizer, zero_optimization_stage=lambda: experiment.train.stage)
    loop: Any = SimpleNamespace(device=torch.device(device), engine=engine, state=TrainState(), late=None)
    guard = build_guard(Job(experiment=experiment), loop, None, None, LocalControl())
    assert (optimizer.left_out == guard.left_out, loop.late == guard.settle) == (late, late)
    assert (optimizer.allow == guard.allow) is not late
