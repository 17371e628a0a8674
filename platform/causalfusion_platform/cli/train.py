"""`causalfusion train`: run or continue one experiment."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from ..config.commands import RECHECK
from .config import ExperimentArgument, Overrides

if TYPE_CHECKING:
    from ..config.compose import Composed
    from ..config.schema import Experiment

JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON line, last.")]
AllowOption = Annotated[
    str,
    typer.Option(
        "--allow-config-change",
        metavar="KEY,…",
        help="Keys that may differ from those of the run's start, such as optim.base_lr.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print stages, resources and cost without starting or writing anything."),
]
RecheckOption = Annotated[
    bool,
    typer.Option(
        RECHECK,
        help="In a job of a cluster: try a command again that was refused before, though nothing has changed.",
    ),
]
LocalOption = Annotated[
    bool, typer.Option("--local", help="Run in one process without Ray, for debugging or one GPU.")
]


def train(
    experiment: ExperimentArgument,
    overrides: Overrides = None,
    local: LocalOption = False,
    allow: AllowOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    recheck: RecheckOption = False,
) -> None:
    """Train an experiment, score its samples, record it in MLflow. The same name=… continues the same run."""
    from ..config.commands import command
    from ..config.compose import compose_experiment
    from ..config.secrets import redact

    composed = compose_experiment(experiment, overrides or [])
    if composed.experiment.sweep is not None:
        print(
            f"{experiment} has a sweep section: train makes one run of it, with the values outside that section\n"
            f"  to run its trials: {redact(command('sweep', experiment, *(overrides or [])))}"
        )
    if dry_run:
        show_plan(composed, redact(command("config", "show", experiment, *(overrides or []))))
        return
    keys = [key.strip() for key in allow.split(",") if key.strip()]
    run_and_show(composed, local=local, as_json=as_json, allow_changes=keys, recheck=recheck)


def show_plan(composed: Composed, all_keys: str) -> None:
    """Print stages, resources and cost of training, and the command that shows all keys."""
    from rich.console import Console

    from ..launch.training.dry_run import make_plan
    from ..report.runs.dry_run import plan_panel

    Console(highlight=False).print(plan_panel(make_plan(composed), all_keys))


def run_and_show(
    composed: Composed, *, local: bool, as_json: bool, allow_changes: Sequence[str] = (), recheck: bool = False
) -> None:
    """Run a composed experiment and print its progress and summary."""
    from rich.console import Console

    from ..config.commands import command
    from ..config.errors import UserError
    from ..launch.training.train import run_training
    from ..report.log import log_to
    from ..report.terminal import TrainingDisplay, as_path, closing_panel, preflight_line
    from ..tasks import open_task

    console = Console(highlight=False)
    experiment = composed.experiment
    console.print(preflight_line(), soft_wrap=True)
    place = experiment.run_url or as_path(experiment.run_dir)
    console.print(f"run {experiment.name} → {place}", soft_wrap=True, markup=False)
    with refusals(experiment, recheck), log_to(console), TrainingDisplay(console) as display:
        outcome = run_training(composed, local=local, show=display.show, allow_changes=allow_changes)
    if outcome.already_finished:
        console.print(
            f"run {experiment.name} has already finished; nothing was trained. Its summary:\n"
            f"  to train again: name=ANOTHER, or remove {place}",
            markup=False,
        )
    try:
        scores = open_task(experiment).show_scores(outcome.summary)
        closing = closing_panel(outcome.summary, dashboard_command(composed), scores)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if not outcome.already_finished:
            raise
        raise UserError(
            f"run {experiment.name!r} has finished, but its summary.json is not one of this version: {error!r}\n"
            f"  measure the weights: {command('evaluate', as_path(experiment.run_dir))}\n"
            f"  to train again: name=ANOTHER"
        ) from error
    console.print(closing)
    if as_json:
        print(json.dumps(outcome.summary))


def refusals(experiment: Experiment, recheck: bool) -> AbstractContextManager[None]:
    """Refuse a command at once that this job of a cluster was refused before. Remember a refusal in the body."""
    from ..launch.cluster.scheduled import is_scheduled
    from ..launch.runs.refusal import remembering

    return remembering(experiment, sys.argv[1:], scheduled=is_scheduled(), recheck=recheck)


def dashboard_command(composed: Composed) -> str:
    """Return the command that opens the dashboard of an experiment's runs."""
    from ..config.commands import command
    from ..config.files import home
    from ..config.secrets import redact
    from ..report.terminal import as_path
    from ..storage.sqlite import is_sqlite

    experiment = composed.experiment
    if not is_sqlite(experiment.tracking_uri):
        return f"open {redact(experiment.tracking_uri)}"
    standard = experiment.runs_folder == home() / "runs" and experiment.tracking.uri is None
    return command("ui", *(() if standard else ("--runs", as_path(experiment.runs_folder))))
