"""`causalfusion config`: show configurations."""

from __future__ import annotations

import json
from typing import Annotated

import typer

config_app = typer.Typer(help="Show experiments, their values and all keys.", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.images=25600.")
]


@config_app.command("show")
def show(
    experiment: Annotated[str, typer.Argument(help="Name of an experiment, such as quickstart.")],
    overrides: Overrides = None,
) -> None:
    """Print the resolved configuration of an experiment as YAML."""
    import yaml

    from ..config.compose import compose_experiment
    from ..launch.runs.public_config import public_config

    tree = public_config(compose_experiment(experiment, overrides or []))
    print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), end="")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON schema of the configuration: every key with its meaning and range."""
    from ..config.schema import Experiment

    print(json.dumps(Experiment.model_json_schema(), indent=2, ensure_ascii=False))


@config_app.command("list")
def list_experiments() -> None:
    """Print the names of all experiments."""
    from ..config.compose import experiment_names

    print("\n".join(experiment_names()))
