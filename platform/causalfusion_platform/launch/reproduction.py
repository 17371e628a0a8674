"""A table of the paper as runs: which experiments, with which seeds, and where each of them lies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.compose import Composed, compose_experiment
from ..config.errors import UserError
from ..config.paper_table import PaperTable, Row, Scale, ScalePlan, load_table
from ..config.schema import Experiment
from ..config.sweep import SweepConfig
from .measuring import DIGITS
from .run_folder import read_state, run_experiment
from .sweep import SweepJob
from .trials import Trial, compose_trial

# What does not decide what is trained: rows of two tables that differ in these only are one run.
_NOT_TRAINED = ("name", "description", "runs", "tracking", "sweep", "supervision", "evaluation", "sampling")


@dataclass(frozen=True)
class Reproduction:
    """A table at a scale, as runs."""

    table: PaperTable
    scale: Scale
    job: SweepJob
    rows: tuple[Row, ...]
    """Those that are asked for."""
    experiments: Mapping[str, Experiment]
    """Trial → its experiment; also of those that other runs stand for."""
    elsewhere: Mapping[str, Path]
    """Trial → folder of the run that stands for it: it is trained with the very same settings."""
    extractor: str
    reference: Path | None
    vae: str | None
    command: str
    """The command, as it was given."""

    @property
    def folder(self) -> Path:
        """Folder of the sweep."""
        return self.job.experiment.run_dir

    @property
    def plan(self) -> ScalePlan:
        """What the table plans at this scale."""
        return self.table.plan(self.scale)

    def runs(self) -> Iterator[tuple[Row, int, Path]]:
        """Yield row, seed and folder of every run that the table plans, asked for or not."""
        for row in self.table.rows_at(self.scale):
            for seed in self.plan.seeds:
                yield row, seed, self.run_dir(row, seed)

    def label(self, row: Row) -> str:
        """Return what the paper calls a row, or what it is at digits scale."""
        return (row.digits_label if self.scale == "digits" else None) or row.label

    def run_dir(self, row: Row, seed: int) -> Path:
        """Folder of the run of a row and seed."""
        name = trial_name(row, seed)
        return self.elsewhere.get(name, self.folder / name)


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
    reference: Path | None = None,
    vae: str | None = None,
    command: str = "",
) -> Reproduction:
    """Return a table as runs; nothing is started.

    Args:
        name: of the table, such as `table3a`.
        scale: `digits` or `paper`.
        rows: files of rows; none: all.
        seeds: seeds; none: those that the table plans.
        overrides: `key=value` changes of every row.
        extractor: what measures; default: `digits_cnn` at digits scale. At paper scale it must be given.
        reference: real images or their statistics, if not those of the data.
        vae: the autoencoder that decodes samples; None: latents are pixels.
        command: the command, as it was given.

    Raises:
        UserError: no such table, scale or row, a row is not a valid experiment, or no extractor at paper scale.
    """
    table = load_table(name)
    plan = table.plan(scale)
    if seeds:
        plans = {**table.scales, scale: plan.model_copy(update={"seeds": tuple(seeds)})}
        table = table.model_copy(update={"scales": plans})
    planned = table.rows_at(scale)
    known = {row.file: row for row in planned}
    unknown = [row for row in rows if row not in known]
    if unknown:
        raise UserError(
            f"{table.source} has no row {', '.join(unknown)} at scale {scale}; rows: {', '.join(known)}"
        )
    if extractor is None:
        if scale == "paper":
            raise UserError(
                "at paper scale FID needs the released Inception weights and a reference\n"
                "  add --extractor inception:PATH --reference VIRTUAL_imagenet256_labeled.npz"
            )
        extractor = DIGITS
    chosen = tuple(known[row] for row in rows) or planned
    sweep = _sweep(table, scale, overrides)
    trials = [
        _trial(table, scale, row, seed, overrides, sweep.experiment)
        for row in chosen
        for seed in table.plan(scale).seeds
    ]
    elsewhere = twins(trials, sweep.experiment)
    assert sweep.experiment.sweep is not None
    inside = {name for name, folder in elsewhere.items() if folder.parent == sweep.experiment.run_dir}
    job = SweepJob(
        sweep, sweep.experiment.sweep, [trial for trial in trials if trial.name not in inside], dict(elsewhere)
    )
    experiments = {trial.name: trial.experiment for trial in trials}
    return Reproduction(table, scale, job, chosen, experiments, elsewhere, extractor, reference, vae, command)


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


def twins(trials: Sequence[Trial], sweep: Experiment) -> dict[str, Path]:
    """Return which trials another run stands for: trial → its folder.

    It is another trial of this table, which is trained with the same settings and only sampled differently, or a
    finished run of another table beside it.
    """
    found: dict[str, Path] = {}
    wanted: dict[str, str] = {}
    for trial in trials:
        identity = _identity(trial.experiment)
        if identity in wanted:
            found[trial.name] = sweep.run_dir / wanted[identity]
        else:
            wanted[identity] = trial.name
    open_ones = {identity: name for identity, name in wanted.items() if read_state(sweep.run_dir / name) is None}
    for state_file in sorted(sweep.runs.glob("*/*/run.json")) if open_ones else []:
        run_dir = state_file.parent
        if run_dir.parent == sweep.run_dir:
            continue
        try:
            state, experiment = read_state(run_dir), run_experiment(run_dir)
        except UserError:  # of another version, or damaged: not ours to judge
            continue
        if state is None or experiment is None or not state.finished:
            continue
        name = open_ones.pop(_identity(experiment), None)
        if name is not None:
            found |= {other: run_dir for other, folder in found.items() if folder == sweep.run_dir / name}
            found[name] = run_dir
    return found


def _identity(experiment: Experiment) -> str:
    tree = experiment.model_dump(mode="json", exclude=set(_NOT_TRAINED))
    return json.dumps(tree, sort_keys=True)
