"""The doctor's look at a Ray cluster that is there."""

from __future__ import annotations

import pytest
import ray
from tests.platform.config.trees import load_experiment

from causalfusion_platform.launch.doctor import services


@pytest.mark.ray
def test_a_cluster_that_answers(ray_cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    enough = load_experiment("smoke", ["train.cpus_per_worker=0.1"])
    assert services.check_ray(enough, address).verdict == "ok"
    too_much = load_experiment("smoke", ["train.num_workers=4", "train.cpus_per_worker=1000"])
    found = services.check_ray(too_much, address)
    assert found.verdict == "FAIL"
    assert "wanted 4000.25 and 0" in found.line
