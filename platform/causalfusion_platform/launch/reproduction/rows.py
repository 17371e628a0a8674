"""A table of the paper as runs: the experiments, their seeds, and their folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.compose import Composed, compose_experiment, recorded_tree
from ...config.errors import UserError
from ...config.paper_table import PaperTable, Row, Scale, ScalePlan, load_table
from ...config.schema import Experiment
from ...config.secrets import redact
from ...config.sweep import SweepConfig
from ...storage.run_layout import STATE_FILE, RunPaths
from ..evaluating.measuring import CLASSIFIER
from ..runs.folder import RunFolder
from ..sweeping.job import SweepJob
from ..sweeping.trials import Trial, compose_trial

NAMES_AND_PLACES = ("name", "description", "runs", "tracking", "sweep", "supervision")
"""Keys that change neither the training nor its measurement at the end."""
# Rows of two tables that differ in these only are one run: their samples are drawn anew.
_NOT_TRAINED = (*NAMES_AND_PLACES, "evaluation", "sampling")


@dataclass(frozen=True)
class Reproduction:
    """A table at a scale, as runs."""

    table: PaperTable
    scale: Scale
    job: SweepJob
    rows: tuple[Row, ...]
    """Those that are asked for."""
    experiments: Mapping[str, Experiment]
    """Trial → its experiment, also for trials that other runs stand for."""
    elsewhere: Mapping[str, Path]
    """Trial → folder of the run that stands for it: it is trained with the very same settings."""
    extractor: str
    references: ByRow
    """Row → real images or their statistics."""
    vaes: ByRow
    """Row → autoencoder."""
    prompts: Path | None
    """File of prompts that rows of text and images draw. None: only the ends of their runs measure them."""
    overrides: tuple[str, ...]
    """Changes of rows, `key=value`, and of fine-tunes, `FINETUNE:key=value`."""
    command: str
    """The command, as it was given."""

    @property
    def folder(self) -> Path:
        """Folder of the sweep."""
        return self.job.experiment.run_dir

    @property
    def plan(self) -> ScalePlan:
        """Plan of the table at this scale."""
        return self.table.plan(self.scale)

    def runs(self) -> Iterator[tuple[Row, int, RunFolder]]:
        """Yield every run that the table plans with its row and seed, asked for or not."""
        for row in self.table.rows_at(self.scale):
            for seed in self.plan.seeds:
                yield row, seed, RunFolder(self.run_dir(row, seed))

    def label(self, row: Row) -> str:
        """Return the paper's name of a row, or that at a smaller scale."""
        return (None if self.scale == "paper" else row.small_label) or row.label

    def run_dir(self, row: Row, seed: int) -> Path:
        """Folder of the run of a row and seed."""
        name = trial_name(row, seed)
        return self.elsewhere.get(name, self.folder / name)


class ByRow:
    """Option given once for all rows, or for one: `VALUE`, `ROW=VALUE`."""

    def __init__(self, option: str, given: Sequence[str], rows: Sequence[str]) -> None:
        """Read the values of an option.

        Args:
            option: its name, for messages.
            given: as on the command line.
            rows: files of the table's rows.

        Raises:
            UserError: a value is given twice.
        """
        self.given, self.values = tuple(given), dict[str | None, str]()
        for one in given:
            row, equals, value = one.partition("=")
            key, value = (row, value) if equals and row in rows else (None, one)
            if key in self.values:
                raise UserError(f"{option} is given twice for {key or 'all rows'}: {self.values[key]} and {value}")
            self.values[key] = value

    def of(self, row: Row) -> str | None:
        """Return the value for a row, or None."""
        return self.values.get(row.file, self.values.get(None))


def trial_name(row: Row, seed: int) -> str:
    """Return the name of a row's trial with a seed."""
    return f"{row.file}.seed-{seed}"


def reproduction_of(
    name: str,
    scale: Scale,
    *,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    extractor: str | None = None,
    references: Sequence[str] = (),
    vaes: Sequence[str] = (),
    prompts: Path | None = None,
    command: str = "",
) -> Reproduction:
    """Return a table as runs, without starting anything.

    Args:
        name: of the table, such as `table3a`.
        scale: one of the table.
        rows: files of rows. Empty: all.
        seeds: seeds. Empty: those that the table plans.
        overrides: `key=value` changes of every row, and `FINETUNE:key=value` of a fine-tune's recipe.
        extractor: name or path. Default: `classifier`. At paper scale it must be given.
        references: real images or their statistics, if not those of the data: FILE, or ROW=FILE for one row.
        vaes: the autoencoder that decodes samples, PATH, or ROW=PATH for one row. Empty: latents are pixels.
        prompts: file of prompts that rows of text and images draw.
        command: the command, as it was given.

    Raises:
        UserError: an unknown table, scale or row, an invalid experiment, or no extractor at paper scale.
    """
    table = load_table(name).at(scale)
    plan = table.plan(scale)
    named = [one for one in overrides if one.lstrip("+").startswith("name=")]
    if named:
        raise UserError(f"{named[0]}: the runs of a table have its name\n  another folder for them: runs=FOLDER")
    if seeds:
        plans = {**table.scales, scale: plan.model_copy(update={"seeds": tuple(dict.fromkeys(seeds))})}
        table = table.model_copy(update={"scales": plans})
    planned = table.rows_at(scale)
    known = {row.file: row for row in planned}
    unknown = [row for row in rows if row not in known]
    if unknown:
        raise UserError(
            f"{table.source} has no row {', '.join(unknown)} at scale {scale}; rows: {', '.join(known)}"
        )
    if extractor is None:
        if scale == "paper" and not any(column.metric == "cider" for column in table.columns):
            raise UserError(
                "at paper scale FID needs the released Inception weights and a reference\n"
                "  add --extractor inception:PATH --reference VIRTUAL_imagenet256_labeled.npz"
            )
        extractor = CLASSIFIER
    chosen = tuple(known[row] for row in dict.fromkeys(rows)) or planned
    of_rows = [text for text in overrides if text.partition(":")[0] not in table.finetunes]
    sweep = _sweep(table, scale, of_rows)
    trials = [
        _trial(table, scale, row, seed, of_rows, sweep.experiment)
        for row in chosen
        for seed in table.plan(scale).seeds
    ]
    elsewhere = twins(trials, sweep.experiment)
    assert sweep.experiment.sweep is not None
    # A trial that another one of this launch stands for is not run. The result of a finished run is taken over.
    folders = {sweep.experiment.run_dir / trial.name for trial in trials}
    own = [trial for trial in trials if elsewhere.get(trial.name) not in folders]
    job = SweepJob(sweep, sweep.experiment.sweep, own, dict(elsewhere), anew="runs=FOLDER", measured_anew=True)
    experiments = {trial.name: trial.experiment for trial in trials}
    return Reproduction(
        table=table,
        scale=scale,
        job=job,
        rows=chosen,
        experiments=experiments,
        elsewhere=elsewhere,
        extractor=extractor,
        references=ByRow("--reference", references, [*known]),
        vaes=ByRow("--vae", vaes, [*known]),
        prompts=prompts,
        overrides=tuple(overrides),
        command=redact(command),
    )


def more_seeds(reproduction: Reproduction) -> tuple[int, ...]:
    """Return the seeds that the table adds while a claim is undecided.

    Raises:
        UserError: it adds none at this scale.
    """
    plan = reproduction.plan
    if not plan.more_seeds:
        raise UserError(
            f"--until-decided: {reproduction.table.source} plans no further seeds at scale {reproduction.scale}\n"
            f"  name seeds: --seeds {','.join(map(str, (*plan.seeds, plan.seeds[-1] + 1)))}"
        )
    return tuple(seed for seed in plan.more_seeds if seed not in plan.seeds)


def _sweep(table: PaperTable, scale: Scale, overrides: Sequence[str]) -> Composed:
    """Return the sweep that the rows are trials of: the first row, with the table's name."""
    planned = table.rows_at(scale)
    first = compose_experiment(table.experiment(planned[0], scale), overrides)
    seeds = list(table.plan(scale).seeds)
    sweep = SweepConfig(
        grid={"row": [row.file for row in planned], "seed": seeds},
        metric=next(iter(table.plan(scale).metrics.values())),
        mode="min",
    )
    tracking = first.experiment.tracking.model_copy(
        update={
            "experiment": f"{table.name}-{scale}",
            "tags": {**first.experiment.tracking.tags, "table": table.name, "scale": scale},
        }
    )
    changes: dict[str, Any] = {
        "name": f"{table.name}-{scale}",
        "description": f"{table.source}: {table.title}",
        "sweep": sweep,
        "tracking": tracking,
    }
    return Composed(first.experiment.model_copy(update=changes), first.unresolved)


def _trial(
    table: PaperTable, scale: Scale, row: Row, seed: int, overrides: Sequence[str], sweep: Experiment
) -> Trial:
    composed = compose_experiment(table.experiment(row, scale), overrides)
    tags = {**sweep.tracking.tags, "row": row.file, "seed": str(seed)}
    changes = {
        "seed": seed,
        "tracking.experiment": sweep.tracking.experiment,
        "tracking.tags": tags,
    }
    trial = compose_trial(composed, trial_name(row, seed), changes, sweep)
    return dataclasses.replace(trial, values={"row": row.file, "seed": seed})


def twins(
    trials: Sequence[Trial], sweep: Experiment, apart_from: Collection[str] = _NOT_TRAINED
) -> dict[str, Path]:
    """Return the trials that another run stands for: trial → its folder.

    That run is trained with the same settings, and perhaps sampled differently. It is a finished run of this table
    or of another one beside it, asked for now or not. Failing that, it is another of these trials.

    Args:
        trials: those that are asked for.
        sweep: their sweep.
        apart_from: keys in which one run may differ from another that stands for it.
    """
    groups: dict[str, list[str]] = {}
    for trial in trials:
        groups.setdefault(_identity(trial.experiment, apart_from), []).append(trial.name)
    finished = _finished_runs(sweep, groups, apart_from)
    found: dict[str, Path] = {}
    for identity, names in groups.items():
        folders = {name: sweep.run_dir / name for name in names}
        there = finished.get(identity, [])
        begun = [folder for folder in folders.values() if RunPaths(folder).state_file.is_file()]
        own = [folder for folder in folders.values() if folder in there]
        stands = next(iter([*own, *there, *begun, *folders.values()]))
        found |= {name: stands for name, folder in folders.items() if folder != stands and folder not in own}
    return found


def _finished_runs(
    sweep: Experiment, wanted: Collection[str], apart_from: Collection[str]
) -> dict[str, list[Path]]:
    """Return the folders of finished runs that were trained with settings that are wanted."""
    finished: dict[str, list[Path]] = {}
    for state_file in sorted(sweep.runs_folder.glob(f"*/*/{STATE_FILE}")):
        run = RunFolder(state_file.parent)
        try:
            experiment = run.experiment
        except UserError:  # another version wrote it, or it is damaged: it cannot be compared
            continue
        if experiment is None or not run.finished:
            continue
        if (identity := _identity(experiment, apart_from)) in wanted:
            finished.setdefault(identity, []).append(run.root)
    return finished


def _identity(experiment: Experiment, apart_from: Collection[str]) -> str:
    tree = {key: value for key, value in recorded_tree(experiment).items() if key not in apart_from}
    return json.dumps(tree, sort_keys=True)
