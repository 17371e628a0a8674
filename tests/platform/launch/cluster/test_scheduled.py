"""A job of a cluster, and the wait of its launches for one another."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster.scheduled import LOCK_SECONDS, is_scheduled, lock_seconds

MakeExperiment = Callable[..., Experiment]
JOBS = [{"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, {"SLURM_JOB_ID": "7"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}]
PLAIN = [{}, {"SLURM_JOB_ID": ""}, {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_JOB_ID": "01000000"}]


@pytest.mark.parametrize("environ", JOBS)
def test_a_job_waits_unless_told_otherwise(environ: dict[str, str], make_experiment: MakeExperiment) -> None:
    assert is_scheduled(environ)
    assert lock_seconds(make_experiment(), environ) == LOCK_SECONDS == 600
    assert lock_seconds(make_experiment(supervision={"lock_seconds": 0}), environ) == 0


@pytest.mark.parametrize("environ", PLAIN)
def test_a_command_does_not_wait_unless_told_to(environ: dict[str, str], make_experiment: MakeExperiment) -> None:
    assert not is_scheduled(environ)
    assert lock_seconds(make_experiment(), environ) == 0
    assert lock_seconds(make_experiment(supervision={"lock_seconds": 3}), environ) == 3
