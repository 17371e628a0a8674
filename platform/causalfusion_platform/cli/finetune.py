"""`causalfusion finetune`: fine-tune a trained model for classification or captioning."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .config import Overrides
from .train import AllowOption, DryRunOption, JsonOption, LocalOption, RecheckOption, run_and_show, show_plan


class Kind(StrEnum):
    """Task of a fine-tune."""

    CLASSIFY = "classify"
    CAPTION = "caption"


def finetune(
    kind: Annotated[Kind, typer.Argument(help="classify: labels of images (Table 12). caption: texts (Table 13).")],
    run: Annotated[Path, typer.Argument(help="Run, checkpoint or folder of weights to start from.")],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Experiment with the recipe (default: finetune/classify, finetune/caption)."),
    ] = None,
    local: LocalOption = False,
    allow: AllowOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    recheck: RecheckOption = False,
) -> None:
    """Fine-tune a trained model, measure it on held-out data, record it in MLflow. The same name=… continues it.

    The run is named RUN-classify or RUN-caption unless name=… is given.
    """
    from ..config.commands import command
    from ..config.secrets import redact
    from ..launch.training.finetuning import compose_finetune

    experiment = recipe or f"finetune/{kind.value}"
    composed = compose_finetune(experiment, kind.value, run, overrides or [])
    if dry_run:
        show_plan(composed, redact(command("config", "show", experiment, *(overrides or []))))
        return
    keys = [key.strip() for key in allow.split(",") if key.strip()]
    run_and_show(composed, local=local, as_json=as_json, allow_changes=keys, recheck=recheck)
