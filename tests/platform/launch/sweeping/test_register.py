"""Runs and sweeps into the registry of a real SQLite store, from folders as training leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import logged
from tests.platform.checkpoint.made import put_weights

from causalfusion import load_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.register import register_run
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping import register as registering
from causalfusion_platform.launch.sweeping.register import register_best_trial
from causalfusion_platform.launch.sweeping.results import TrialEnd
from causalfusion_platform.tracking.mlflow import client, open_experiment
from causalfusion_platform.tracking.registry import version_of

MakeExperiment = Callable[..., Experiment]


class Sweep:
    """A sweep over seeds whose trials are there already."""

    def __init__(self, make: MakeExperiment, uri: str, model: str, **sweep: Any) -> None:
        self.uri, self.model = uri, model
        settings = {"grid": {"seed": [0, 1, 2]}, "metric": "fd_digits_cnn", "mode": "min", **sweep}
        self.experiment = make(
            name="sweep",
            sweep=settings,
            tracking={"uri": uri, "experiment": model},
            data={"path": "shards", "prepare": True},
        )
        write_digits(self.experiment.data.path)

    def trial(
        self,
        name: str,
        score: float | None,
        *,
        images: int = 128,
        accuracy: float = 0.5,
        classifier: float | None = None,
        **end: Any,
    ) -> TrialEnd:
        """A run with one checkpoint, whose weights are of its own."""
        experiment = self.experiment.model_copy(
            update={"name": name, "runs": self.experiment.run_dir, "sweep": None}
        )
        run_dir, api = experiment.run_dir, client(self.uri)
        artifacts = self.experiment.runs_folder / "mlartifacts"
        run = api.create_run(open_experiment(api, self.uri, self.model, artifacts), run_name=name)
        run_dir.mkdir(parents=True)
        state = RunState(
            tracking_uri=self.uri, config=experiment.model_dump(mode="json"), mlflow_run_id=run.info.run_id
        )
        state.write(run_dir)
        put_weights(run_dir, images, seed=len(name) * 1000 + ord(name[-1]))
        summary = {"run_dir": str(run_dir), "fd_digits_cnn": score, "images_seen": images}
        summary |= {"class_accuracy": accuracy, "judge_accuracy": classifier}
        RunFolder(run_dir).write_summary(summary)
        return TrialEnd(name, {"seed": 0}, summary, **end)

    def register(self, *ends: TrialEnd) -> str:
        """Return the line that was said."""
        with logged(registering.__name__) as lines:
            register_best_trial(self.experiment, ends)
        (line,) = lines
        return line

    @property
    def best(self) -> tuple[int, dict[str, str]]:
        """The version that the alias `best` stands for, and its tags."""
        version = version_of(self.uri, self.model, "best")
        assert version is not None
        return version.number, version.tags


def test_the_best_trial_gets_the_alias(make_experiment: MakeExperiment, uri: str) -> None:
    sweep = Sweep(make_experiment, uri, "a sweep")
    ends = [
        sweep.trial("worse", 7.25),
        sweep.trial("best", 6.5),
        sweep.trial("early", 3.0, ended_early_at=64),
        sweep.trial("broken", 2.0, error="it failed"),
        sweep.trial("not a number", float("nan")),
        sweep.trial("not measured", None),
        TrialEnd("failed", {}, error="it failed"),
    ]
    assert sweep.register(*ends) == "best is version 1 of model a sweep, alias best: fd_digits_cnn 6.5"
    number, tags = sweep.best
    digest, data = tags.pop("weights.sha256"), tags.pop("data.digest")
    assert (number, len(digest), len(data)) == (1, 64, 64)
    assert tags == {
        "run": "best",
        "trial": "best",
        "sweep": "sweep",
        "images": "128",
        "metric": "fd_digits_cnn",
        "mode": "min",
        "value": "6.5",
        "fd_digits_cnn": "6.5",
        "class_accuracy": "0.5",
    }
    assert sweep.register(*reversed(ends)) == "best is version 1 of model a sweep, alias best: fd_digits_cnn 6.5"
    (found,) = client(uri).search_model_versions("name = 'a sweep'")
    assert found.description.startswith("Trial best, the best of sweep sweep by fd_digits_cnn: 6.5.")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"metric": "fd_digits_cnn", "mode": "max"}, "high is version 1 of model model-max"),
        ({"objectives": {"fd_digits_cnn": "max", "total_seconds": "min"}}, "high is version 1 of model model-two"),
    ],
)
def test_more_may_be_better(make_experiment: MakeExperiment, uri: str, settings: Any, line: str) -> None:
    sweep = Sweep(make_experiment, uri, line.split()[-1], **settings)
    assert sweep.register(sweep.trial("low", 1.0), sweep.trial("high", 2.0)).startswith(line)


def test_the_alias_stays_at_what_is_better(make_experiment: MakeExperiment, uri: str) -> None:
    """But moves to other data, where numbers say nothing about each other, and to what is better."""
    sweep = Sweep(make_experiment, uri, "stays")
    assert "alias best" in sweep.register(sweep.trial("first", 6.5))
    said = sweep.register(sweep.trial("second", 7.0))
    assert said == "second is version 2 of model stays; its alias best stays at version 1, with fd_digits_cnn 6.5"
    assert sweep.best[0] == 1
    assert "alias best: fd_digits_cnn 6" in sweep.register(sweep.trial("third", 6.0))
    assert sweep.best[0] == 3
    write_digits(sweep.experiment.data.path, rows_per_shard=900)
    assert "alias best: fd_digits_cnn 9" in sweep.register(sweep.trial("fourth", 9.0))
    assert sweep.best[0] == 4


@pytest.mark.parametrize(
    ("model", "settings", "accuracy", "classifier", "reason"),
    [
        # Ten classes: guessing has 0.1, so the middle is 0.53.
        ("below", {}, 0.5299, 0.96, "class_accuracy 0.5299 is nearer to guessing (0.1) than to real images (0.96)"),
        ("above", {}, 0.5301, 0.96, None),
        ("no classifier", {}, 0.01, None, None),
        ("worse", {"floor": 6.4}, 0.9, 0.96, "fd_digits_cnn 6.5 is worse than sweep.floor=6.4"),
        ("as bad", {"floor": 6.5}, 0.01, 0.96, None),
        ("less", {"floor": 6.6, "mode": "max"}, 0.9, 0.96, "fd_digits_cnn 6.5 is worse than sweep.floor=6.6"),
        ("as much", {"floor": 6.5, "mode": "max"}, 0.01, 0.96, None),
    ],
)
def test_a_best_trial_near_chance_gets_no_alias(
    make_experiment: MakeExperiment,
    uri: str,
    model: str,
    settings: Any,
    accuracy: float,
    classifier: float | None,
    reason: str | None,
) -> None:
    """It becomes a version, which a person may call the best all the same."""
    sweep = Sweep(make_experiment, uri, model, **settings)
    said = sweep.register(sweep.trial("only", 6.5, accuracy=accuracy, classifier=classifier))
    start = f"only is version 1 of model {model}, "
    if reason is None:
        assert said == f"{start}alias best: fd_digits_cnn 6.5"
        assert sweep.best[0] == 1
        return
    advice = "  give it the alias all the same: causalfusion runs register runs/sweep/only"
    assert said == f"{start}without the alias best: {reason}\n{advice}"
    assert version_of(uri, model, "best") is None
    version = register_run(RunFolder(sweep.experiment.run_dir / "only"))
    assert sweep.best[0] == version.number == 1


def test_large_weights_wait_for_a_person(
    make_experiment: MakeExperiment, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(make_experiment, uri, "large")
    end = sweep.trial("only", 6.5)
    monkeypatch.setattr(registering, "LARGEST_BYTES", 1000)
    said = sweep.register(end)
    assert "only is not registered" in said
    assert "not uploaded unasked\n  ask for it: causalfusion runs register runs/sweep/only" in said
    assert version_of(uri, "large", "best") is None
    version = register_run(RunFolder(sweep.experiment.run_dir / "only"))
    assert version_of(uri, "large", "best") == version


def test_what_goes_wrong_is_said_and_not_raised(make_experiment: MakeExperiment, uri: str) -> None:
    sweep = Sweep(make_experiment, uri, "wrong")
    end = sweep.trial("only", 6.5)
    run_dir = sweep.experiment.run_dir / "only"
    state = RunState.model_validate_json((run_dir / "run.json").read_bytes())
    state.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}).write(run_dir)
    said = sweep.register(end)
    assert "MLflow does not answer at http://127.0.0.1:9" in said
    assert "register it later: causalfusion runs register runs/sweep/only" in said
    state.model_copy(update={"mlflow_run_id": None}).write(run_dir)
    assert "MLflow has not got run 'only' yet" in sweep.register(end)
    state.write(run_dir)
    for file in run_dir.glob("checkpoints/*/checkpoint.json"):
        file.unlink()
    assert "no weights in" in sweep.register(end)


def test_a_sweep_without_a_result_registers_nothing(
    make_experiment: MakeExperiment, uri: str, log_lines: list[str]
) -> None:
    sweep = Sweep(make_experiment, uri, "nothing")
    register_best_trial(sweep.experiment, [TrialEnd("failed", {}, error="it failed")])
    assert log_lines == []


def test_a_run_by_name(make_experiment: MakeExperiment, uri: str, tmp_path: Path) -> None:
    """Its newest weights; after more training, a version of their own."""
    sweep = Sweep(make_experiment, uri, "by name")
    sweep.trial("only", 6.5)
    run_dir = sweep.experiment.run_dir / "only"
    first = register_run(RunFolder(run_dir))
    newest = put_weights(run_dir, 256, seed=9)
    second = register_run(RunFolder(run_dir), alias="longer")
    assert (first.number, second.number) == (1, 2)
    assert (first.tags["images"], second.tags["images"]) == ("128", "256")
    assert version_of(uri, "by name", "best") == first
    assert version_of(uri, "by name", "longer") == second
    source = client(uri).get_model_version("by name", "2").source.removeprefix("file://")
    theirs, ours = load_weights(Path(source)).state_dict(), load_weights(newest).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    assert register_run(RunFolder(run_dir), model="else").model == "else"


@pytest.mark.parametrize("alias", ["latest", "v2", "a b", "", "Latest"])
def test_aliases_that_are_none(tmp_path: Path, alias: str) -> None:
    with pytest.raises(UserError, match=f"alias '{alias}' is not possible"):
        register_run(RunFolder(tmp_path), alias=alias)


def test_a_folder_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder of a run"):
        register_run(RunFolder(tmp_path))
