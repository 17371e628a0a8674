"""A run on object storage as its folder shows it: published while it is worked with, found from another machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.find import find_run, look_at, look_at_all
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import UnderWay
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping.job import job_of
from causalfusion_platform.storage.fence import LaunchToken
from causalfusion_platform.storage.objects import ObjectUrl, open_store
from causalfusion_platform.tracking.journal import Launched


def machine(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Make this process one of a machine with another disk."""
    monkeypatch.setenv("CAUSALFUSION_HOME", str(home))


@pytest.fixture
def experiment(make_experiment: Callable[..., Experiment], s3_bucket: str) -> Experiment:
    """An experiment whose run is on object storage."""
    return make_experiment(runs=f"{s3_bucket}/runs", name="one", tracking={"uri": "http://127.0.0.1:9"})


def begin(run: RunFolder, experiment: Experiment) -> None:
    """Write the state of a run that has begun. Its lock is held."""
    run.root.mkdir(parents=True, exist_ok=True)
    token = LaunchToken.new(1)
    token.write(run.root)
    run.storage.begin(token)
    run.launch_id = token.id
    run.journal.add(Launched(launch=1, host="h", pid=1))
    state = RunState(tracking_uri="http://127.0.0.1:9", config=experiment.model_dump(mode="json"))
    run._write(state)


def test_another_machine_sees_and_continues_the_run(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "one")
    first = RunFolder.of(experiment)
    assert first.state is None
    assert not first.root.exists()  # a look makes nothing
    with first.lock():
        begin(first, experiment)
    machine(monkeypatch, tmp_path / "two")
    assert isinstance(experiment.runs, ObjectUrl)
    found = find_run("one", str(experiment.runs))
    assert found.root == tmp_path / "two/s3" / experiment.runs.bucket / "runs/one"
    assert found.experiment is not None
    assert found.experiment.run_url == experiment.run_url
    assert (look_at(found).status, str(look_at(found).folder)) == ("killed", str(experiment.run_url))
    assert [name for name, _ in look_at_all(experiment.runs)] == ["one"]
    assert find_run(str(experiment.run_url)).root == found.root
    with found.lock():
        found.keep(finished=True)
    machine(monkeypatch, tmp_path / "one")
    assert RunFolder.of(experiment).finished


def test_only_one_machine_works_with_a_run(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "one")
    first = RunFolder.of(experiment)
    with first.lock():
        machine(monkeypatch, tmp_path / "two")
        second = RunFolder.of(experiment)
        assert second.is_under_way()
        second.storage.lock.beat_seconds = 0.1  # type: ignore[attr-defined]
        with pytest.raises(UnderWay):
            second.refuse_if_under_way()
        with pytest.raises(UnderWay):
            second.lock().__enter__()
    assert not second.is_under_way()


def test_a_run_that_is_not_there_is_named(s3_bucket: str, own_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no run 'one' in s3://bucket-\w+/runs; there are no runs there yet"):
        find_run("one", f"{s3_bucket}/runs")
    assert not list(own_folder.iterdir())
    with pytest.raises(UserError, match="gs:// is not supported here"):
        find_run("one", "gs://bucket/runs")


def test_sweeps_are_refused_before_anything_starts(
    experiment: Experiment, make_experiment: Callable[..., Experiment]
) -> None:
    from causalfusion_platform.config.compose import Composed

    sweep = make_experiment(runs=str(experiment.runs), sweep={"grid": {"seed": [0, 1]}})
    with pytest.raises(UserError, match="the trials of a sweep need a folder that all nodes share"):
        job_of(Composed(sweep, {}))
    assert open_store(str(experiment.runs)).list() == []
