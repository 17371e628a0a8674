"""Stop jobs of a stand-in for a Ray head."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.platform.launch.cluster.fake_head import FakeHead

from causalfusion_platform.config.errors import JOB_INTERRUPTED, MachineError, UserError
from causalfusion_platform.launch.cluster import stop as stop_module
from causalfusion_platform.launch.cluster.stop import stop_job

ANNA = {"CAUSALFUSION_USER": "anna"}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "_POLL_S", 0.01)


def test_a_stopped_job_tells_its_checkpoint(ray_head: FakeHead, capsys: pytest.CaptureFixture[str]) -> None:
    ray_head.add("one")

    def later(job: dict[str, Any]) -> None:
        ray_head.logs["one"] = "saved\nstopped with a checkpoint\ncausalfusion: exit status 75 (continue later)\n"
        threading.Timer(0.1, lambda: job.update(status="STOPPED")).start()

    ray_head.on_stop = later
    assert stop_job("one", [ray_head.cluster], environ=ANNA) == 0
    told = capsys.readouterr().err
    assert "it has 600 s" in told
    assert "| stopped with a checkpoint" in told
    assert "continue later (75)" in told
    assert f"causalfusion jobs resume one --address {ray_head.address}" in told
    assert ray_head.stopped == ["one"]


def test_a_job_killed_before_its_checkpoint_says_so(ray_head: FakeHead, capsys: pytest.CaptureFixture[str]) -> None:
    ray_head.add("one", user="anna", runtime_env=None)
    ray_head.logs["one"] = "step 3\n"
    assert stop_job("one", [ray_head.cluster], environ=ANNA) == 0
    told = capsys.readouterr().err
    assert "without RAY_JOB_STOP_WAIT_TIME_S" in told
    assert "too short for a checkpoint" in told
    assert "stopped (143), and does not tell of a checkpoint" in told


def test_a_job_that_finishes_first(ray_head: FakeHead, capsys: pytest.CaptureFixture[str]) -> None:
    ray_head.add("one")
    ray_head.on_stop = lambda job: job.update(status="SUCCEEDED", driver_exit_code=0)
    assert stop_job("one", [ray_head.cluster], environ=ANNA) == 0
    assert "finished (0), before the request" in capsys.readouterr().err


def test_an_ended_job_is_left_alone(ray_head: FakeHead, capsys: pytest.CaptureFixture[str]) -> None:
    ray_head.add("one", "FAILED", 2)
    assert stop_job("one", [ray_head.cluster], environ=ANNA) == 0
    assert "has ended before: wrong argument (2)" in capsys.readouterr().err
    assert ray_head.stopped == []


def test_a_job_of_another_user_needs_a_word(ray_head: FakeHead) -> None:
    ray_head.add("one", user="ben")
    with pytest.raises(UserError, match=r"of user 'ben', and you are 'anna'\n.*--anyway"):
        stop_job("one", [ray_head.cluster], environ=ANNA)
    assert ray_head.stopped == []
    assert stop_job("one", [ray_head.cluster], anyway=True, environ=ANNA) == 0
    assert ray_head.stopped == ["one"]


def test_a_job_that_does_not_end(ray_head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "_SPARE_S", 0.05)
    ray_head.add("one")
    ray_head.jobs["one"]["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] = "0"
    ray_head.on_stop = lambda job: None
    assert stop_job("one", [ray_head.cluster], wait=False, environ=ANNA) == 0
    with pytest.raises(MachineError, match="has not ended"):
        stop_job("one", [ray_head.cluster], environ=ANNA)


def test_ctrl_c_ends_the_wait_alone(
    ray_head: FakeHead, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray_head.add("one")
    ray_head.on_stop = lambda job: None

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupted)
    assert stop_job("one", [ray_head.cluster], environ=ANNA) == JOB_INTERRUPTED
    assert "goes on stopping" in capsys.readouterr().err
