"""`causalfusion sweep`: run a search over an experiment's keys."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .config import ExperimentArgument, Overrides
from .train import JsonOption, RecheckOption, dashboard_command, refusals


def sweep(
    experiment: ExperimentArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials and their cost, and stop.")] = False,
    as_json: JsonOption = False,
    recheck: RecheckOption = False,
) -> None:
    """Search keys of an experiment (sweeps/gamma) with Ray Tune. The same command continues a stopped sweep."""
    from rich.console import Console

    from ..config.compose import compose_experiment
    from ..config.errors import GAVE_UP, STOPPED
    from ..launch.sweeping.cost import sweep_cost
    from ..launch.sweeping.job import job_of
    from ..launch.sweeping.results import SPEEDS
    from ..launch.sweeping.sweep import run_sweep
    from ..report.log import log_to
    from ..report.sweeps.live import LiveTable
    from ..report.tables import terminal_table
    from ..report.terminal import as_path, preflight_line

    composed = compose_experiment(experiment, overrides or [])
    job = job_of(composed)
    console = Console(highlight=False)
    console.print(preflight_line(), soft_wrap=True)
    folder = as_path(composed.experiment.run_dir)
    console.print(f"sweep {composed.experiment.name} → {folder}", soft_wrap=True, markup=False)
    for line in sweep_cost(job):
        console.print(line, soft_wrap=True)
    if dry_run:
        return
    with (
        refusals(composed.experiment, recheck),
        log_to(console),
        LiveTable(console, next(iter(job.sweep.targets))) as display,
    ):
        result = run_sweep(job, display)
    # Speeds are in results.md, because the terminal has too few columns.
    shown = [place for place, name in enumerate(result.columns) if name not in SPEEDS]
    columns, rows = [result.columns[i] for i in shown], [[row[i] for i in shown] for row in result.rows]
    console.print(terminal_table(f"sweep {composed.experiment.name}", columns, rows))
    dashboard = dashboard_command(composed)
    console.print(f"MLflow run {result.mlflow_run_id}; dashboard: {dashboard}", soft_wrap=True, markup=False)
    if as_json:
        trials = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
        print(json.dumps({"mlflow_run_id": result.mlflow_run_id, "failed": result.failed, "trials": trials}))
    if result.failed:
        console.print(f"{result.failed} trial(s) have no result; the same command runs them again")
        raise typer.Exit(STOPPED if result.stopped else GAVE_UP)
