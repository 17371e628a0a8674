"""The `causalfusion` command, which registers the verbs of this package. `ending` says how each of them ends."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..library_warnings import leave_out
from ..loopback import bypass_proxy
from .analyze import analyze
from .caption import caption
from .cluster import cluster_app
from .config import config_app
from .data import data_app
from .doctor import doctor
from .ending import Commands, run_to_end
from .evaluate import evaluate
from .finetune import finetune
from .first_line import first_line
from .generate import generate
from .jobs import jobs_app
from .models import models
from .probe import probe
from .quickstart import quickstart
from .reproduce import reproduce
from .runs import runs_app
from .sample import edit, sample
from .submit import submit
from .surroundings import prepare
from .sweep import sweep
from .train import train
from .ui import ui
from .weights import weights_app

_PACKAGES = ("causalfusion-platform", "torch", "ray", "deepspeed", "mlflow")


def print_versions(wanted: bool) -> None:
    """Print the versions of Python and of the packages that results depend on, if they are wanted."""
    if wanted:
        print("\n".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES))
        print(f"python {platform.python_version()}")
        raise typer.Exit


app = typer.Typer(
    name="causalfusion",
    cls=Commands,
    help="CausalFusion experiments on Ray, DeepSpeed and MLflow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print versions and stop.", callback=print_versions, is_eager=True),
    ] = False,
) -> None:
    """CausalFusion experiments on Ray, DeepSpeed and MLflow."""


app.command()(quickstart)
app.command()(train)
app.command()(sweep)
app.command()(reproduce)
app.command()(finetune)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit)
app.command()(sample)
app.command()(edit)
app.command()(caption)
app.command()(generate)
app.command()(evaluate)
app.command()(analyze)
app.command()(probe)
app.command()(ui)
app.command()(models)
app.command()(doctor)
app.add_typer(cluster_app, name="cluster")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(jobs_app, name="jobs")
app.add_typer(runs_app, name="runs")
app.add_typer(weights_app, name="weights")


def main() -> None:
    """Run the command line, and end this process with a documented exit status."""
    prepare()
    run_to_end(_run)


def _run() -> None:
    # A trial is a dozen processes of fractions of a CPU, and Ray prints warnings about them into the table. Ray
    # reads this variable when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    bypass_proxy()
    leave_out()
    # `task=module:Class` may name a module of the current directory. `python -m` searches there, a script does not.
    # Ray's workers search the driver's current directory.
    if not {"", here := str(Path.cwd())} & {*sys.path}:
        sys.path.append(here)
    with first_line(sys.argv[1:]):
        app()
