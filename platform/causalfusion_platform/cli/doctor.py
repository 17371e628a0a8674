"""`causalfusion doctor`: check this machine and an experiment before a run."""

from __future__ import annotations

import typer

from .config import ExperimentArgument, Overrides


def doctor(
    experiment: ExperimentArgument = "quickstart",
    overrides: Overrides = None,
) -> None:
    """Check machine, storage, shards, MLflow, Ray, memory and a training step. Status 2: a check failed."""
    import os
    from textwrap import wrap

    from rich.console import Console
    from rich.text import Text

    from ..config.compose import compose_experiment
    from ..config.errors import WRONG
    from ..config.secrets import redact
    from ..launch.doctor import diagnose
    from ..report.bar import CountDisplay

    composed = compose_experiment(experiment, overrides or [])
    console = Console(highlight=False)
    styles = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}
    failed = 0
    with CountDisplay(console, "doctor", "checks") as display:

        def begin(name: str, done: int, total: int) -> None:
            display.part = name
            display.draw(done, total, name)

        for check in diagnose(composed.experiment, os.environ.get("RAY_ADDRESS"), begin):
            failed += check.verdict == "FAIL"
            head = Text.assemble((f"{check.verdict:<5}", styles[check.verdict]), (f"{check.name:<12}", "bold"))
            advice = [f"→ {check.advice}"] if check.advice and check.verdict != "ok" else []
            texts = (redact(text) for text in (check.line, *advice))
            first, *rest = (line for text in texts for line in wrap(text, console.width - 17))
            console.print(head + Text(first))
            for line in rest:
                console.print(Text(" " * 17 + line))
    if failed:
        console.print(f"{failed} check{'s' if failed > 1 else ''} failed")
        raise typer.Exit(WRONG)
