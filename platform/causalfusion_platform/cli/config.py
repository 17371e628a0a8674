"""`causalfusion config`: show and explain configurations."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .help import WholeHelp

config_app = typer.Typer(
    cls=WholeHelp, help="Show and explain experiments, their values and all keys.", no_args_is_help=True
)


def complete_experiment(incomplete: str) -> list[str]:
    """Return the names of experiments that begin like this, for the shell's completion."""
    from ..config.files import experiment_names

    return [name for name in experiment_names() if name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.images=25600.")
]
ExperimentArgument = Annotated[
    str,
    typer.Argument(
        help="Name of an experiment (see: causalfusion config list), or its file, such as ./mine.yaml.",
        autocompletion=complete_experiment,
    ),
]


@config_app.command("show")
def show(experiment: ExperimentArgument, overrides: Overrides = None) -> None:
    """Print the resolved configuration of an experiment as YAML."""
    from ..config.compose import compose_experiment
    from ..launch.runs.public_config import config_text

    print(config_text(compose_experiment(experiment, overrides or [])), end="")


@config_app.command("explain")
def explain(
    key: Annotated[str, typer.Argument(help="Key or section, such as train.images or optim.")],
    overrides: Overrides = None,
    experiment: Annotated[
        str,
        typer.Option(
            "--experiment", "-e", help="Experiment whose value is shown.", autocompletion=complete_experiment
        ),
    ] = "quickstart",
) -> None:
    """Explain a key: meaning, range, default, and an experiment's value with its source."""
    from ..config.compose import compose_experiment, flatten
    from ..config.explain import explain as explain_key
    from ..config.explain import origin
    from ..launch.runs.public_config import public_config

    explained = explain_key(key)
    print(f"{key}\n{explained.meaning}\n")
    for name, about in explained.keys.items():
        print(f"  {key}.{name:<28} {about}")
    if explained.keys:
        return
    values = dict(flatten(public_config(compose_experiment(experiment, overrides or []))))
    below = {name: value for name, value in values.items() if name == key or name.startswith(f"{key}.")}
    value = below.get(key, below or None)
    print(f"  allowed  {explained.kind}")
    print(f"  default  {explained.default}")
    print(
        f"  value    {json.dumps(value, ensure_ascii=False)} in {experiment}, "
        f"from {origin(key, experiment, overrides or [])}"
    )


@config_app.command("schema")
def schema() -> None:
    """Print the JSON schema of the configuration: every key with its meaning and range."""
    from ..config.schema import Experiment

    print(json.dumps(Experiment.model_json_schema(), indent=2, ensure_ascii=False))


@config_app.command("list")
def list_experiments(
    names: Annotated[bool, typer.Option("--names", help="Print names only, one a line.")] = False,
) -> None:
    """List all experiments with their descriptions, your own first."""
    from ..config.files import description_of, experiment_files, own_folder

    files = experiment_files()
    if names:
        print("\n".join(sorted(files)))
        return
    width = max(map(len, files), default=0)
    own = own_folder()
    for heading, mine in ((f"yours, in {own}:", True), ("shipped:", False)):
        some = [name for name in sorted(files) if (files[name].path.is_relative_to(own) if own else False) is mine]
        if some and own:
            print(heading)
        for name in some:
            print(f"{name:<{width}}  {description_of(files[name].path)}".rstrip())
