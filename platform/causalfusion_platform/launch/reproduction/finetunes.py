"""Fine-tunes of a table's rows, as trials of a second sweep, and the values that they measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.compose import Composed, compose_experiment, validate
from ...config.errors import UserError
from ...config.paper_table import Column, Row
from ...config.schema import Experiment
from ...config.sweep import SweepConfig
from ...tasks import open_task
from ..runs.folder import RunFolder
from ..sweeping.job import SweepJob
from ..sweeping.trials import Trial, compose_trial
from ..training.train import check_inputs
from .rows import NAMES_AND_PLACES, Reproduction, trial_name, twins

_TEST = "_test"
"""Ending of the scores on `finetune.test`. Those without it are on `data.validation`."""


@dataclass(frozen=True)
class FinetuneTrial:
    """One fine-tune of the model of a row and seed."""

    row: Row
    seed: int
    trained_as: str
    """Its fine-tune, as `Column.trained_as`."""
    layer: int | None
    """Block whose features are captioned. None: that of the recipe."""
    pretrained: bool
    trial: Trial


@dataclass(frozen=True)
class FinetuneStage:
    """Fine-tunes of the rows that are asked for."""

    reproduction: Reproduction
    job: SweepJob
    trials: tuple[FinetuneTrial, ...]

    def ready(self) -> SweepJob:
        """Return the job with the trials whose row has finished."""
        done = {(row.file, seed) for row, seed, run in self.reproduction.runs() if run.finished}
        names = {one.trial.name for one in self.trials if not one.pretrained or (one.row.file, one.seed) in done}
        return dataclasses.replace(self.job, trials=[one for one in self.job.trials if one.name in names])

    def of(self, row: Row, column: Column, seed: int) -> list[tuple[FinetuneTrial, RunFolder]]:
        """Return the fine-tunes that decide a value, and their runs: one, or one for each block that is tried."""
        wanted = row.file, column.trained_as, seed
        return [
            (one, self.job.run(one.trial.name))
            for one in self.trials
            if (one.row.file, one.trained_as, one.seed) == wanted
        ]


def plan_finetunes(reproduction: Reproduction) -> FinetuneStage | None:
    """Return the fine-tunes of a table's rows, without starting anything. None: no column names one.

    Raises:
        UserError: a recipe does not exist, is not a fine-tune, or does not measure its column.
    """
    table, scale = reproduction.table, reproduction.scale
    columns = [column for column in table.columns if column.finetune is not None]
    if not columns:
        return None
    recipes = _Recipes(reproduction)
    sweep = _sweep(reproduction, recipes, columns)
    once = {column.trained_as: column for column in columns}
    trials = tuple(
        FinetuneTrial(row, seed, str(column.trained_as), layer, column.pretrained, trial)
        for seed in reproduction.plan.seeds
        for column in once.values()
        for row in reproduction.rows
        if column.has(row)
        for layer in table.finetune_plan(str(column.finetune), scale).layers or (None,)
        for trial in [_trial(reproduction, recipes, sweep.experiment, row, column, seed, layer)]
    )
    for column in columns:
        own = [one for one in trials if one.trained_as == column.trained_as and one.seed == trials[0].seed]
        _check_scores(reproduction, column, own)
    elsewhere = twins([one.trial for one in trials], sweep.experiment, NAMES_AND_PLACES)
    folders = {sweep.experiment.run_dir / one.trial.name for one in trials}
    left = [one.trial for one in trials if elsewhere.get(one.trial.name) not in folders]
    assert sweep.experiment.sweep is not None
    job = SweepJob(sweep, sweep.experiment.sweep, left, dict(elsewhere), anew="runs=FOLDER")
    return FinetuneStage(reproduction, job, trials)


def check_finetunes(stage: FinetuneStage) -> None:
    """Check the data of all fine-tunes, before the rows are trained. Hashes are compared when they start.

    Raises:
        UserError: the first fault found.
    """
    seen = set()
    for one in stage.trials:
        if (kind := (one.row.file, one.trained_as)) in seen:
            continue
        seen.add(kind)
        experiment = one.trial.experiment
        assert experiment.finetune is not None
        start = experiment.finetune.model_copy(update={"weights": None})  # they are to be trained
        data = experiment.data.model_copy(update={"verify": "quick"})
        try:
            check_inputs(experiment.model_copy(update={"finetune": start, "data": data}))
        except UserError as error:
            raise UserError(f"fine-tune {one.trained_as} of row {one.row.file}: {error}") from error


def finetuned_values(
    stage: FinetuneStage,
) -> tuple[dict[tuple[str, str, int], float | None], dict[str, str]]:
    """Return the values of all finished fine-tunes, row, column and seed → value, and what each number is."""
    reproduction = stage.reproduction
    values: dict[tuple[str, str, int], float | None] = {}
    notes: dict[str, list[str]] = {}
    for column in reproduction.table.columns:
        if column.finetune is None:
            continue
        number = reproduction.plan.metrics[column.metric]
        for row in reproduction.rows:
            for seed in reproduction.plan.seeds if column.has(row) else ():
                value, note = _value(stage.of(row, column, seed), number)
                values[row.file, column.name, seed] = value
                notes.setdefault(number, []).extend([note] if note else [])
    return values, {number: "; ".join(dict.fromkeys(lines)) for number, lines in notes.items()}


def _value(found: list[tuple[FinetuneTrial, RunFolder]], number: str) -> tuple[float | None, str]:
    """Return the value of a row and seed, and its origin. Of several blocks the best on validation counts.

    None: a fine-tune has not finished, as a block that is not measured could be the best.
    """
    if not found or not all(run.finished for _, run in found):
        return None, ""
    summaries = [(one, run.read_summary()) for one, run in found]
    chosen_by = number.removesuffix(_TEST)
    one, summary = max(summaries, key=lambda pair: pair[1][chosen_by])
    ending = _TEST if number.endswith(_TEST) else ""
    note = f"of {summary[f'num_images{ending}']:,} images that no training sees"
    if one.layer is not None:
        layers = ", ".join(str(other.layer) for other, _ in found)
        note += f"; {one.row.file}, seed {one.seed}: block {one.layer}, the best of {layers} by {chosen_by}"
    return summary[number], note


def _check_scores(reproduction: Reproduction, column: Column, trials: list[FinetuneTrial]) -> None:
    """Raise `UserError` unless the fine-tunes of a column measure its number, and the one that chooses a block."""
    number = reproduction.plan.metrics[column.metric]
    for one in trials:
        scores = open_task(one.trial.experiment).scores()
        wanted = [number, *([number.removesuffix(_TEST)] if one.layer is not None else [])]
        if missing := [name for name in wanted if name not in scores]:
            recipe = reproduction.table.recipe(str(column.finetune), one.row, reproduction.scale)
            raise UserError(
                f"column {column.name} takes {missing[0]}, which runs of {recipe} do not measure\n"
                f"  they measure: {', '.join(scores)}"
            )


class _Recipes:
    """Recipes with the overrides of the command line, each composed once."""

    def __init__(self, reproduction: Reproduction) -> None:
        self.reproduction = reproduction
        self._composed: dict[tuple[str, str], Composed] = {}

    def of(self, row: Row, column: Column) -> Composed:
        """Return the recipe of a column's fine-tune for a row.

        Raises:
            UserError: it does not exist, or is not a fine-tune.
        """
        finetune = str(column.finetune)
        name = self.reproduction.table.recipe(finetune, row, self.reproduction.scale)
        if (finetune, name) not in self._composed:
            self._composed[finetune, name] = self._compose(column, finetune, name)
        return self._composed[finetune, name]

    def _compose(self, column: Column, finetune: str, name: str) -> Composed:
        own, prefix = self.reproduction.overrides, f"{finetune}:"
        overrides = [text.removeprefix(prefix) for text in own if text.startswith(prefix)]
        try:
            composed = compose_experiment(name, overrides)
        except UserError as error:
            raise UserError(f"column {column.name}, fine-tune {finetune}: {error}") from error
        if composed.experiment.finetune is None:
            raise UserError(
                f"column {column.name}: {name} has task={composed.experiment.task} and no section finetune\n"
                f"  name a recipe of task=classification or task=captioning, such as finetune/classify"
            )
        return composed


def _with_model_of(composed: Composed, row: Experiment) -> Composed:
    """Return a recipe with the model of a row."""
    model = row.model_dump(mode="json")["model"]
    tree = {**composed.experiment.model_dump(mode="json"), "model": model}
    return Composed(validate(tree, composed.experiment.name), {**composed.unresolved, "model": model})


def _sweep(reproduction: Reproduction, recipes: _Recipes, columns: list[Column]) -> Composed:
    """Return the sweep that the fine-tunes are trials of. It is the same for any choice of rows."""
    table, scale, plan = reproduction.table, reproduction.scale, reproduction.plan
    composed = recipes.of(table.rows_at(scale)[0], columns[0])
    rows = reproduction.job.experiment
    sweep = SweepConfig(
        grid={
            "row": [row.file for row in table.rows_at(scale)],
            "finetune": list(dict.fromkeys(str(column.trained_as) for column in columns)),
            "seed": list(plan.seeds),
        },
        metric=plan.metrics[columns[0].metric],
        mode="max",
    )
    # The registry keeps the best version of each MLflow experiment: models that draw are not compared with these.
    tracking = rows.tracking.model_copy(update={"experiment": f"{rows.tracking.experiment}-finetune"})
    changes: dict[str, Any] = {
        "name": f"{rows.name}-finetune",
        "description": f"{table.source}: fine-tunes of its rows",
        "runs": rows.runs,
        "sweep": sweep,
        "tracking": tracking,
    }
    return Composed(composed.experiment.model_copy(update=changes), composed.unresolved)


def _trial(
    reproduction: Reproduction,
    recipes: _Recipes,
    sweep: Experiment,
    row: Row,
    column: Column,
    seed: int,
    layer: int | None,
) -> Trial:
    experiment = reproduction.experiments[trial_name(row, seed)]
    composed = _with_model_of(recipes.of(row, column), experiment)
    finetune = composed.experiment.finetune
    assert finetune is not None
    kind = f"{column.trained_as}" + ("" if layer is None else f"-layer-{layer}")
    weights = reproduction.run_dir(row, seed) if column.pretrained else None
    tags = {**sweep.tracking.tags, "row": row.file, "finetune": kind, "seed": str(seed)}
    changes: dict[str, Any] = {
        "seed": seed,
        "finetune.weights": None if weights is None else str(weights),
        "tracking.experiment": sweep.tracking.experiment,
        "tracking.tags": tags,
    }
    if layer is not None:
        changes["finetune.layer"] = layer
    if finetune.augment.mode == "pixels" and (vae := reproduction.vaes.of(row)) is not None:
        changes["finetune.vae"] = str(Path(vae).absolute())
    trial = compose_trial(composed, f"{row.file}.{kind}.seed-{seed}", changes, sweep)
    return dataclasses.replace(trial, values={"row": row.file, "finetune": kind, "seed": seed})


def finetune_runs(stage: FinetuneStage) -> Iterator[RunFolder]:
    """Yield the run of each fine-tune once."""
    for folder in dict.fromkeys(stage.job.run_dir(one.trial.name) for one in stage.trials):
        yield RunFolder(folder)
