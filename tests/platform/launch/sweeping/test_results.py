"""The end of trials whose processes were ended from outside, as MLflow gets it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.tracking.recorded import waiting

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.config.sweep import SweepConfig
from causalfusion_platform.evaluation.identity import depends_on_classifier
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import only_launch
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping import results
from causalfusion_platform.launch.sweeping.results import TrialEnd
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


def test_a_table_has_the_scores_that_its_trials_have() -> None:
    """Trials of classes, of text and images, and failed ones alone. The target comes first."""

    def columns(metric: str, summary: dict[str, float] | None) -> list[str]:
        sweep = SweepConfig(grid={"seed": [0]}, metric=metric)
        return results.tabulate(sweep, [TrialEnd("one", {"seed": 0}, summary, error=None)], "run").columns

    speeds = ["images_per_second", "total_seconds"]
    classes = {"class_accuracy": 0.5, "fd_digits_cnn": 3.0}
    text = {"cider_d_words": 1.0, "caption_all": 0.2, "caption_class": 0.3, "t2i_class_best": 0.4, "t2i_ink": 0.5}
    assert columns("class_accuracy", classes) == ["seed", "class_accuracy", "fd_digits_cnn", *speeds]
    assert columns("class_accuracy", None) == ["seed", "class_accuracy", "fd_digits_cnn", *speeds]
    shown = ["cider_d_words", "caption_class", "caption_all", "t2i_class_best"]
    assert columns("cider_d_words", text) == ["seed", *shown, *speeds]
    assert columns("t2i_ink", text) == ["seed", "t2i_ink", *shown, *speeds]
    assert {name for name in text if depends_on_classifier(name)} == {"t2i_class_best"}
