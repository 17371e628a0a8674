"""The end of trials whose processes were ended from outside, as MLflow gets it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.tracking.recorded import waiting

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import only_launch
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping import results
from causalfusion_platform.tracking.journal import Ended, Journal, Launched
from causalfusion_platform.tracking.records import Ending

MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def trial(tmp_path: Path, make_experiment: MakeExperiment) -> RunFolder:
    """A trial that was launched, below the folder of a sweep."""
    run_dir = tmp_path / "sweep" / "trial"
    run_dir.mkdir(parents=True)
    RunState(tracking_uri="sqlite:///x", config=make_experiment().model_dump(mode="json"), launches=3).write(
        run_dir
    )
    Journal(run_dir).add(Launched(launch=3, host="h", pid=1))
    return RunFolder(run_dir)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that are delivered."""
    found: list[str] = []
    monkeypatch.setattr(results, "sync_run", lambda run, **_: found.append(run.name))
    return found


def ends(trial: RunFolder) -> list[tuple[int, str]]:
    return [(event.launch, event.how) for event in trial.journal.events() if isinstance(event, Ended)]


def statuses(trial: RunFolder) -> list[str]:
    return [record.status for record in waiting(trial.root) if isinstance(record, Ending)]


def test_a_trial_that_was_cut_off_is_ended_once(trial: RunFolder, synced: list[str]) -> None:
    for _ in range(2):
        results.settle(trial.root.parent)
    assert (ends(trial), statuses(trial), synced) == ([(3, "stopped")], ["KILLED"], ["trial"])


@pytest.mark.parametrize("finished", [True, False])
def test_a_trial_that_is_about_to_end_ends_itself(trial: RunFolder, synced: list[str], finished: bool) -> None:
    """It finishes, or fails, while its end is waited for."""
    settling = threading.Thread(target=results.settle, args=(trial.root.parent,))
    with only_launch(trial.root):
        settling.start()
        settling.join(1)  # it has looked at the trial by then
        assert settling.is_alive()
        trial.journal.add(Ended(launch=3, how="finished" if finished else "failed"))
        trial.outbox.finish("FINISHED" if finished else "FAILED")
        trial.keep(finished=finished)
    settling.join(60)
    assert not settling.is_alive()
    assert ends(trial) == [(3, "finished" if finished else "failed")]
    assert statuses(trial) == ["FINISHED" if finished else "FAILED"]
    assert synced == []


def test_nothing_is_written_to_a_trial_that_goes_on(
    trial: RunFolder, synced: list[str], monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setattr(results, "_GONE_SECONDS", 0.1)
    with only_launch(trial.root):
        results.settle(trial.root.parent)
    assert (ends(trial), statuses(trial), synced) == ([], [], [])
    (line,) = log_lines
    assert "run 'trial' is under way: process " in line
