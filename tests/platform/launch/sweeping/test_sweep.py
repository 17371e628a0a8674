"""The trials of a sweep: every combination once, each a valid experiment."""

from __future__ import annotations

import io
import itertools
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console
from tests.platform.tracking.test_pending import REPORT

from causalfusion import PRESETS
from causalfusion_platform.config.compose import Composed, compose_experiment, with_overrides
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.sweeping.progress import TrialProgress
from causalfusion_platform.launch.sweeping.trials import Trial, trials_of
from causalfusion_platform.report.sweeps.live import LiveTable
from causalfusion_platform.tracking.journal import Adopted, Journal, Measured

MakeExperiment = Callable[..., Experiment]


def sweep_of(make: MakeExperiment, grid: dict[str, list[Any]], **changes: object) -> Experiment:
    return make(sweep={"grid": grid}, **changes)


def trials_in(experiment: Experiment) -> list[Trial]:
    return trials_of(Composed(experiment, {}))


def test_the_trials_are_the_product(make_experiment: MakeExperiment) -> None:
    grid: dict[str, list[Any]] = {
        "objective.ar_decay": [1.0, 0.9],
        "seed": [0, 1, 2],
        "sampling.patch_order": ["raster", "random"],
    }
    trials = trials_in(sweep_of(make_experiment, grid))
    expected = [
        {"objective.ar_decay": decay, "seed": seed, "sampling.patch_order": order}
        for decay in (1.0, 0.9)
        for seed in (0, 1, 2)
        for order in ("raster", "random")
    ]
    assert [trial.values for trial in trials] == expected
    assert trials[0].name == "ar_decay-1.0.seed-0.patch_order-raster"


def test_the_shipped_sweep() -> None:
    trials = trials_of(compose_experiment("sweeps/gamma"))
    assert [trial.name for trial in trials] == ["ar_decay-1.0", "ar_decay-0.95", "ar_decay-0.9", "ar_decay-0.8"]


def test_a_trial_is_the_experiment_with_its_values(make_experiment: MakeExperiment, own_folder: Path) -> None:
    experiment = sweep_of(make_experiment, {"objective.ar_decay": [0.5], "optim.betas": [[0.8, 0.7]]})
    (trial,) = trials_in(experiment)
    changed = trial.experiment
    assert (changed.objective.ar_decay, changed.optim.betas) == (0.5, (0.8, 0.7))
    assert changed.run_dir == own_folder / "runs/test" / trial.name
    assert changed.tracking_uri == experiment.tracking_uri == f"sqlite:///{own_folder}/runs/mlflow.db"
    assert changed.sweep is None
    back: dict[str, object] = {
        "name": "test",
        "runs": experiment.runs,
        "sweep": experiment.sweep,
        "tracking": experiment.tracking,
    }
    back |= {"objective": experiment.objective, "optim": experiment.optim}
    assert changed.model_copy(update=back) == with_overrides(experiment, {}, "x")


@pytest.mark.parametrize(
    "values",
    [
        ["raster", "dilated"],
        [[0.9, 0.95], [0.5, 0.5]],
        [None, 4],
        [1e-4, 1e-5],
        [0, 1],
    ],
)
def test_names_are_those_of_folders(make_experiment: MakeExperiment, values: list[Any]) -> None:
    keys = ["sampling.patch_order", "optim.betas", "objective.num_ar_steps", "optim.base_lr", "seed"]
    key = next(key for key in keys if valid(make_experiment, key, values[0]))
    trials = trials_in(sweep_of(make_experiment, {key: values}))
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(values)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
        assert name.startswith(f"{key.rsplit('.')[-1]}-")


def valid(make: MakeExperiment, key: str, value: object) -> bool:
    try:
        trials_in(sweep_of(make, {key: [value]}))
    except UserError:
        return False
    return True


def test_a_sweep_over_models(make_experiment: MakeExperiment) -> None:
    experiment = sweep_of(make_experiment, {"model.preset": ["tiny", "digits"]})
    models = [trial.experiment.model for trial in trials_in(experiment)]
    assert models == [PRESETS["tiny"], PRESETS["digits"]]


@pytest.mark.parametrize(
    ("grid", "part"),
    [
        ({"objective.ar_decy": [1.0]}, "did you mean 'objective.ar_decay'"),
        ({"objective.ar_decay": [1.0, 2.0]}, "[0, 1], got 2.0"),
        ({"train.images": ["many"]}, "train.images"),
        ({"train.num_workers": [1, 3]}, "not a multiple of num_workers 3"),
        ({"ar_decay": [1.0]}, "ar_decay: unknown key"),
        ({"seed.inner": [1]}, "seed"),
    ],
)
def test_a_combination_that_is_not_an_experiment(
    make_experiment: MakeExperiment, grid: dict[str, list[Any]], part: str
) -> None:
    """Found before anything is started; the message names the trial."""
    with pytest.raises(UserError) as caught:
        trials_in(sweep_of(make_experiment, grid))
    assert part in str(caught.value)
    assert re.search(r"experiment 'test/\S+' has 1 wrong value", str(caught.value))
    assert "causalfusion config schema" in str(caught.value)


def test_only_a_combination_is_wrong(make_experiment: MakeExperiment) -> None:
    """Each value on its own is fine: 12 images over 4 workers, 10 over 2; not 10 over 4."""
    grid: dict[str, list[Any]] = {"train.global_batch_size": [12, 10], "train.num_workers": [2, 4]}
    with pytest.raises(UserError, match="global_batch_size 10 is not a multiple of num_workers 4"):
        trials_in(sweep_of(make_experiment, grid))


@pytest.mark.parametrize("values", [[1, 1], [0, 1, 0]])
def test_a_combination_twice(make_experiment: MakeExperiment, values: list[int]) -> None:
    with pytest.raises(UserError, match=r"sweep\.grid has a combination twice: seed-"):
        trials_in(sweep_of(make_experiment, {"seed": values}))


def test_keys_of_one_name_in_two_sections(make_experiment: MakeExperiment) -> None:
    grid: dict[str, list[Any]] = {"objective.num_ar_steps": [1, 2], "sampling.num_ar_steps": [1, 2]}
    trials = trials_in(sweep_of(make_experiment, grid))
    assert [tuple(trial.values.values()) for trial in trials] == list(itertools.product([1, 2], repeat=2))
    assert len({trial.name for trial in trials}) == 4


def test_no_values(make_experiment: MakeExperiment) -> None:
    """A sweep without trials is a mistake."""
    with pytest.raises(ValidationError, match=r"grid has no values for objective\.ar_decay; give some, such as"):
        sweep_of(make_experiment, {"seed": [0], "objective.ar_decay": []})


def test_no_sweep_section(make_experiment: MakeExperiment) -> None:
    with pytest.raises(UserError) as caught:
        trials_in(make_experiment())
    message = str(caught.value)
    assert "'test' has no sweep section" in message
    assert "causalfusion sweep sweeps/gamma" in message
    advice = re.search(r"'(sweep\.grid=.*)'", message)
    assert advice is not None
    assert len(trials_of(compose_experiment("quickstart", [advice[1]]))) == 2


def test_what_has_finished_before_counts_as_done(tmp_path: Path) -> None:
    progress = TrialProgress(["a", "b"], lambda name: RunFolder(tmp_path / name), 64, "class_accuracy", ["a"])
    assert [(view.name, view.state) for view in progress.views()] == [("a", "finished"), ("b", "waiting")]
    printed = io.StringIO()
    LiveTable(Console(file=printed), "class_accuracy").show(progress.views())
    assert printed.getvalue() == "1/2 done, 1 left  a  finished\n"


def test_a_trial_that_optuna_chose_has_its_name_from_the_start(tmp_path: Path) -> None:
    """Its configuration is a point, and it reports at its end only."""
    name_of = lambda config: f"lr-{config['lr']}"  # noqa: E731
    progress = TrialProgress([], lambda name: RunFolder(tmp_path / name), 64, "class_accuracy", name_of=name_of)
    progress.on_trial_start(trial=SimpleNamespace(trial_id="t1", config={"lr": 0.5}))
    assert [(view.name, view.state) for view in progress.views()] == [("lr-0.5", "running")]
    assert pickle.loads(pickle.dumps(progress)).name_of({}) is None


def test_a_finished_trial_shows_what_it_is_ranked_by(tmp_path: Path) -> None:
    """Not what it measured last on the way, which was of other samples."""
    (tmp_path / "a").mkdir()
    Journal(tmp_path / "a").add(Measured(attempt=1, images=64, values={"class_accuracy": 0.25}))
    progress = TrialProgress(["a"], lambda name: RunFolder(tmp_path / name), 64, "class_accuracy")
    progress.states["a"] = "running"
    assert progress.views()[0].metric == 0.25
    RunFolder(tmp_path / "a").write_summary({"class_accuracy": 0.75})
    progress.states["a"] = "finished"
    assert progress.views()[0].metric == 0.75


def test_a_long_trial_shows_where_it_comes_from_and_its_newest_score(tmp_path: Path) -> None:
    """However many steps it has reported since."""
    journal = Journal(tmp_path)
    journal.add(Adopted(run="member-0", images=1024))
    journal.add(Measured(attempt=1, images=1024, values={"class_accuracy": 0.25}))
    progress = TrialProgress(["a"], lambda _: RunFolder(tmp_path), 4096, "class_accuracy")
    progress.states["a"] = "running"
    for first in (0, 400):
        for number in range(first, first + 400):
            journal.add(REPORT.model_copy(update={"images": 1088 + number, "loss": float(number)}))
        (view,) = progress.views()
        assert (view.images, view.loss) == (1087 + first + 400, float(first + 399))
        assert (view.metric, view.note) == (0.25, "from member-0 at 1,024")
    assert journal.path.stat().st_size > 400_000
    assert pickle.loads(pickle.dumps(progress)).views() == []
