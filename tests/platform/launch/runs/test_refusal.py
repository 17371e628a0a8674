"""A refused command of a job is refused again at once, until anything that it depends on has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from causalfusion_platform.cli import train as cli
from causalfusion_platform.cli.ending import ending_of
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import WRONG, MachineError, NotNow, UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.config.secrets import remember_address
from causalfusion_platform.launch.runs import refusal
from causalfusion_platform.launch.runs.exit_status import GaveUp, StoppedRun
from causalfusion_platform.launch.runs.lock import UnderWay
from causalfusion_platform.launch.runs.refusal import FOLDER, Refused, remembering
from causalfusion_platform.launch.runs.state import RunState

MakeExperiment = Callable[..., Experiment]
COMMAND = ["train", "smoke", "name=test"]
FAULT = UserError("train.zero_stage=3 does not fit\n  resume with train.zero_stage=1")


def launch(
    experiment: Experiment,
    end: BaseException | None = FAULT,
    command: list[str] = COMMAND,
    *,
    scheduled: bool = True,
    recheck: bool = False,
) -> BaseException | None:
    """Launch, and return the error. `end` is that of the body, if it is reached."""
    try:
        with remembering(experiment, command, scheduled=scheduled, recheck=recheck):
            if end is not None:
                raise end
    except BaseException as error:
        return error
    return None


@pytest.fixture
def experiment(make_experiment: MakeExperiment, own_folder: Path) -> Experiment:
    data = own_folder / "data"
    data.mkdir()
    (data / "shard.parquet").write_text("damaged")
    return make_experiment(data={"path": data})


def test_the_same_command_is_refused_without_a_try(experiment: Experiment) -> None:
    assert launch(experiment) is FAULT
    for _ in range(2):
        again = launch(experiment, None)
        assert isinstance(again, Refused)
        message = str(again)
        assert message.startswith(str(FAULT))
        assert "refused before, at 20" in message
        assert "--recheck" in message
        assert ending_of(again).status == WRONG
    assert [path.name for path in (experiment.runs_folder / FOLDER).iterdir()] == ["test.json"]  # beside the run


def test_whatever_it_depends_on_makes_it_forget(
    experiment: Experiment, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = experiment.data.path
    assert isinstance(data, Path)

    def mend() -> None:
        (data / "shard.parquet").write_text("restored")

    def begin() -> None:
        state = RunState(tracking_uri="sqlite:///x.db", config={})
        experiment.run_dir.mkdir(parents=True)
        state.write(experiment.run_dir)

    def save() -> None:
        (experiment.run_dir / "checkpoints/images-1").mkdir(parents=True)
        (experiment.run_dir / "checkpoints/images-1/checkpoint.json").touch()

    changes: dict[str, Callable[[], object]] = {
        "a shard": mend,
        "a new shard": lambda: (data / "more.parquet").touch(),
        "the run's state": begin,
        "a checkpoint": save,
        "the version": lambda: monkeypatch.setattr(refusal, "git_sha", lambda: "another"),
        "a package": lambda: monkeypatch.setattr(refusal, "package_versions", lambda: {"torch": "9"}),
        "a variable": lambda: monkeypatch.setenv("CAUSALFUSION_USER", "bob"),
        "time": lambda: monkeypatch.setattr(refusal, "LASTS_SECONDS", -1.0),
    }
    for change, act in changes.items():
        assert launch(experiment) is not None
        assert isinstance(launch(experiment, None), Refused), change
        act()
        assert launch(experiment, None) is None, change
    monkeypatch.undo()


def test_another_command_or_configuration_is_tried(experiment: Experiment, make_experiment: MakeExperiment) -> None:
    assert launch(experiment) is FAULT
    other = make_experiment(data={"path": experiment.data.path}, seed=1)  # such as by a change of its file
    assert launch(experiment, FAULT, [*COMMAND, "--local"]) is FAULT
    assert launch(experiment, None, [*COMMAND, "--local"]) is not None
    assert launch(other, None) is None


def test_the_flag_forgets(experiment: Experiment) -> None:
    assert launch(experiment) is FAULT
    command = [*COMMAND, "--recheck"]
    assert launch(experiment, FAULT, command, recheck=True) is FAULT  # tried
    assert launch(experiment, FAULT, command, recheck=True) is FAULT  # and not remembered
    assert launch(experiment, None) is None


def test_variables_that_the_launch_itself_sets_do_not_count(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLflow's client does."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)  # of an earlier test
    with pytest.raises(UserError), remembering(experiment, COMMAND, scheduled=True):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        raise FAULT
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    assert isinstance(launch(experiment, None), Refused)


def test_a_success_forgets(experiment: Experiment) -> None:
    assert launch(experiment) is FAULT
    (Path(str(experiment.data.path)) / "shard.parquet").write_text("restored!")
    assert launch(experiment, None) is None
    assert not list((experiment.runs_folder / FOLDER).iterdir())


@pytest.mark.parametrize(
    "end",
    [
        StoppedRun("stopped"),
        GaveUp("three faults in a row"),
        MachineError("Ray did not start"),
        UnderWay("another launch"),
        NotNow("no Ray cluster answers"),
        OSError(2, "not mounted yet", "/data"),
        KeyboardInterrupt(),
        SystemExit(15),
        RuntimeError("not foreseen"),
    ],
    ids=lambda end: type(end).__name__,
)
def test_what_another_try_may_cure_is_not_remembered(experiment: Experiment, end: BaseException) -> None:
    assert launch(experiment, end) is end
    assert launch(experiment, None) is None


def test_nothing_is_kept_outside_of_jobs(experiment: Experiment) -> None:
    assert launch(experiment, scheduled=False) is FAULT
    assert not (experiment.runs_folder / FOLDER).exists()
    assert launch(experiment) is FAULT
    assert launch(experiment, None, scheduled=False) is None


def test_a_folder_of_runs_that_cannot_be_made(own_folder: Path, make_experiment: MakeExperiment) -> None:
    """Such as a wrong runs=…: the record is in CAUSALFUSION_HOME."""
    (own_folder / "file").touch()
    experiment = make_experiment(runs=own_folder / "file" / "runs")
    assert launch(experiment) is FAULT
    assert isinstance(launch(experiment, None), Refused)
    assert (own_folder / FOLDER / "test.json").is_file()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_record_is_none(experiment: Experiment, content: str) -> None:
    assert launch(experiment) is FAULT
    (experiment.runs_folder / FOLDER / "test.json").write_text(content)
    assert launch(experiment, None) is None


def test_a_secret_in_a_message_is_not_kept(experiment: Experiment) -> None:
    remember_address("http://user:hunter2@mlflow:5000")
    assert launch(experiment, UserError("http://user:hunter2@mlflow:5000 is wrong")) is not None
    assert "hunter2" not in (experiment.runs_folder / FOLDER / "test.json").read_text()


def test_the_verb_tries_once(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["causalfusion", "train", "smoke"])
    tries: list[object] = []

    def run_training(*_: object, **__: object) -> None:
        tries.append(None)
        raise FAULT

    monkeypatch.setattr("causalfusion_platform.launch.training.train.run_training", run_training)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    composed = compose_experiment("smoke", [])
    for _ in range(3):
        with pytest.raises(UserError):
            cli.run_and_show(composed, local=True, as_json=False)
    assert len(tries) == 1
    with pytest.raises(UserError):
        cli.run_and_show(composed, local=True, as_json=False, recheck=True)
    assert len(tries) == 2
