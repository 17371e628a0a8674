"""`causalfusion quickstart`: train and evaluate on bundled real data."""

from __future__ import annotations

from .config import Overrides
from .train import JsonOption, LocalOption


def quickstart(overrides: Overrides = None, local: LocalOption = False, as_json: JsonOption = False) -> None:
    """Train CausalFusion on 1,797 handwritten digits: shards, Ray, DeepSpeed, MLflow, samples, scores.

    An interrupted quickstart is continued. After a finished one the next is quickstart-2, and so on.
    """
    from ..config.compose import compose_experiment
    from ..launch.runs.folder import RunFolder
    from .train import run_and_show

    given = list(overrides or [])
    composed = compose_experiment("quickstart", ["data.prepare=true", *given])
    if not any(text.startswith("name=") for text in given):
        stem, number = composed.experiment.name, 1
        while RunFolder(composed.experiment.run_dir).finished:
            number += 1
            composed = compose_experiment("quickstart", ["data.prepare=true", *given, f"name={stem}-{number}"])
    run_and_show(composed, local=local, as_json=as_json)
