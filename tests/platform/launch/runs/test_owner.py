"""Several users of one cluster: whose a run is, and who may continue it."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.tracking.recorded import waiting

from causalfusion_platform.config.compose import Composed
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.owner import current_user
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.validate import CheckedShards
from causalfusion_platform.launch.runs.find import look_at, look_at_all
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.owner import check_owner, take_over
from causalfusion_platform.launch.training.launch import Launch
from causalfusion_platform.launch.training.train import run_training
from causalfusion_platform.report.runs.list import runs_table
from causalfusion_platform.report.runs.show import run_json
from causalfusion_platform.tracking.records import Tags

MakeExperiment = Callable[..., Experiment]


def open_as(user: str, experiment: Experiment, shards: Path, parent: str | None = None) -> RunFolder:
    """Begin a launch as a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALFUSION_USER", user)
        run = RunFolder(experiment.run_dir)
        run.open(Composed(experiment, {}), CheckedShards(shards, Manifest.read(shards), {}), parent)
    return run


def tags_of(run: RunFolder) -> dict[str, str]:
    found: dict[str, str] = {}
    for record in waiting(run.root):
        found |= record.values if isinstance(record, Tags) else {}
    return found


def test_the_user_is_named_by_the_variable_or_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "Jane.Doe")
    assert current_user({}) == current_user({"CAUSALFUSION_USER": ""}) == "Jane.Doe"
    assert current_user({"CAUSALFUSION_USER": "alice-2"}) == "alice-2"
    for name in ("Alice", "-a", "a-", "a.b", "a" * 64, "2a", "a b", "a\n"):
        with pytest.raises(UserError, match="is not a DNS label") as caught:
            current_user({"CAUSALFUSION_USER": name})
        assert "CAUSALFUSION_USER=alice" in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("uid"), OSError("no user"), None])
def test_a_user_id_without_a_name_is_nobody(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers choose ids: `uid-1000` of one and `uid-1001` of the next are not two users."""

    def getuser() -> str:
        if error is not None:
            raise error
        return "uid-1000"

    monkeypatch.setattr(getpass, "getuser", getuser)
    assert current_user({}) is None


def test_another_users_run_is_refused(
    make_experiment: MakeExperiment, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(data={"path": digits_folder}, train={"num_workers": 1})
    run = open_as("alice", experiment, digits_folder)
    assert run.started.user == "alice"
    tags = tags_of(run)
    assert (tags["mlflow.user"], tags["causalfusion.user"]) == ("alice", "alice")
    before = {path: path.read_bytes() for path in experiment.run_dir.rglob("*") if path.is_file()}

    monkeypatch.setenv("CAUSALFUSION_USER", "bob")
    with pytest.raises(UserError) as caught:
        run_training(Composed(experiment, {}), local=True)
    message = str(caught.value)
    assert "is of user 'alice', and you are 'bob'" in message
    for advice in ("name=…", "CAUSALFUSION_HOME=FOLDER", f"causalfusion runs take-over {run.root}"):
        assert advice in message
    after = {path: path.read_bytes() for path in experiment.run_dir.rglob("*") if path.is_file()}
    assert after == before

    other = make_experiment(name="bobs", data={"path": digits_folder}, train={"num_workers": 1})
    monkeypatch.setattr(Launch, "run", lambda *_: {"done": True})
    assert run_training(Composed(other, {}), local=True).summary == {"done": True}
    assert RunFolder(other.run_dir).started.user == "bob"
    monkeypatch.setenv("CAUSALFUSION_USER", "alice")
    assert run_training(Composed(experiment, {}), local=True).summary == {"done": True}


def test_a_run_is_taken_over_explicitly(
    make_experiment: MakeExperiment, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_as("alice", make_experiment(), digits_folder)
    monkeypatch.setenv("CAUSALFUSION_USER", "bob")
    with run.lock(), pytest.raises(UserError, match="is under way"):
        take_over(RunFolder(run.root))
    assert take_over(RunFolder(run.root)) == ("alice", "bob")
    mine = RunFolder(run.root)
    check_owner(mine)
    tags = tags_of(mine)
    assert (tags["mlflow.user"], tags["causalfusion.user"]) == ("bob", "bob")
    assert take_over(mine) == ("bob", "bob")
    with pytest.raises(UserError, match="is no folder of a run"):
        take_over(RunFolder(run.root.parent / "none"))


def test_a_run_without_an_owner_is_everybodys_until_the_next_launch(
    make_experiment: MakeExperiment, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of earlier versions."""
    experiment = make_experiment()
    run = open_as("alice", experiment, digits_folder)
    run.keep(user=None)
    monkeypatch.setenv("CAUSALFUSION_USER", "bob")
    check_owner(RunFolder(run.root))
    assert open_as("bob", experiment, digits_folder).started.user == "bob"
    assert open_as("carol", experiment, digits_folder).started.user == "bob"  # `check_owner` came before


def test_trials_are_of_the_user_of_their_sweep(make_experiment: MakeExperiment, digits_folder: Path) -> None:
    """Whoever the process of a worker belongs to."""
    sweep = open_as("alice", make_experiment(name="sweep"), digits_folder)
    trial = open_as("ray", make_experiment(name="one", runs=sweep.root), digits_folder, parent="the sweep's run")
    assert trial.started.user == "alice"
    assert tags_of(trial)["causalfusion.user"] == "alice"


def test_the_list_tells_users_apart(make_experiment: MakeExperiment, digits_folder: Path) -> None:
    first = open_as("alice", make_experiment(name="first"), digits_folder)
    views = look_at_all(first.root.parent)
    assert runs_table(views).plain.splitlines()[0].split()[:3] == ["run", "status", "score"]
    open_as("bob", make_experiment(name="second"), digits_folder)
    views = look_at_all(first.root.parent)
    title, *lines = runs_table(views).plain.splitlines()
    assert title.split()[:3] == ["run", "status", "user"]
    assert [(line.split()[0], line.split()[2]) for line in lines] == [("first", "alice"), ("second", "bob")]
    assert run_json(look_at(first))["user"] == "alice"
