"""The MLflow of a job, as far as it can be asked from here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.platform.launch.cluster.fake_head import FakeHead

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.fetch import tracking_uri
from causalfusion_platform.launch.cluster.jobs import FoundJob, find_job


def found(head: FakeHead, tracking: str | None, here: bool, **variables: str) -> FoundJob:
    head.add("one")
    job = head.jobs["one"]
    job["runtime_env"]["env_vars"].update(variables)
    if tracking is not None:
        job["metadata"]["causalfusion.tracking"] = tracking
    one = find_job("one", [head.cluster])
    return replace(one, head=replace(one.head, on_this_host=here))


def test_a_server_is_asked(ray_head: FakeHead) -> None:
    assert tracking_uri(found(ray_head, "http://a:5000", here=False)) == "http://a:5000"
    uri = "${oc.env:MLFLOW_TRACKING_URI}"
    assert tracking_uri(found(ray_head, uri, False, MLFLOW_TRACKING_URI="http://b:1")) == "http://b:1"


def test_a_file_is_asked_on_this_machine(ray_head: FakeHead, tmp_path: Path) -> None:
    one = found(ray_head, None, True, CAUSALFUSION_HOME=str(tmp_path))
    assert tracking_uri(one) == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize(
    ("tracking", "says"),
    [
        (None, "a file in its folder of runs, on the cluster"),
        ("sqlite:////mnt/mlflow.db", "sqlite:////mnt/mlflow.db"),
        ("${oc.env:MLFLOW_TRACKING_URI}", "oc.env:MLFLOW_TRACKING_URI"),
        ("http://***@host", r"http://\*\*\*@host"),
    ],
)
def test_another_needs_an_address(ray_head: FakeHead, tracking: str | None, says: str) -> None:
    with pytest.raises(UserError, match=f"{says}(.|\n)*jobs fetch one --uri"):
        tracking_uri(found(ray_head, tracking, here=False))
