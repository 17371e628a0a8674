"""`causalfusion sweep`: run a search over an experiment's keys."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .config import Overrides
from .train import JsonOption, dashboard_command


def sweep(
    experiment: Annotated[str, typer.Argument(help="Experiment with a sweep section, such as sweeps/gamma.")],
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Run every combination of a sweep's grid with Ray Tune. The same command continues a stopped sweep."""
    from rich.console import Console

    from ..config.compose import compose_experiment
    from ..launch.ended import STOPPED
    from ..launch.sweep import run_sweep
    from ..report.tables import terminal_table
    from ..report.terminal import as_path, preflight_line

    composed = compose_experiment(experiment, overrides or [])
    console = Console(highlight=False)
    console.print(preflight_line(), soft_wrap=True)
    console.print(f"sweep {composed.experiment.name} → {as_path(composed.experiment.run_dir)}", soft_wrap=True)
    result = run_sweep(composed, lambda line: console.print(line, soft_wrap=True))
    console.print(terminal_table(f"sweep {composed.experiment.name}", result.columns, result.rows))
    console.print(f"MLflow run {result.mlflow_run_id}; dashboard: {dashboard_command(composed)}", soft_wrap=True)
    if as_json:
        rows = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
        print(json.dumps({"mlflow_run_id": result.mlflow_run_id, "failed": result.failed, "trials": rows}))
    if result.failed:
        console.print(f"{result.failed} trial(s) have no result; the same command runs them again")
        raise typer.Exit(STOPPED if result.stopped else 1)
