"""`causalfusion probe`: what the layers of a trained model know, by simple classifiers of their features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..storage.object_path import as_path


def probe(
    run: Annotated[Path, typer.Argument(help="Folder of a run (its newest checkpoint), or of a checkpoint.")],
    layers: Annotated[
        str, typer.Option(help="all, or such as 1,3,6. 0 is the embedding, i the output of block i.")
    ] = "all",
    times: Annotated[
        str, typer.Option(help="Diffusion times such as 0,50,200 to noise images at. 0: clean images.")
    ] = "0",
    kinds: Annotated[
        str, typer.Option(help="linear, knn or both: a linear classifier, nearest neighbours.")
    ] = "linear,knn",
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Labelled training rows of each class (default: all).")
    ] = None,
    condition: Annotated[
        str,
        typer.Option(help="Of a DiT's blocks. none: the zero vector. null: the time, and the null class."),
    ] = "none",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Shards of labelled training rows (default: the run's data.path).", parser=as_path, metavar="PATH"
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Shards of validation rows (default: the run's data.validation).", parser=as_path, metavar="PATH"
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            min=2,
            help="Most training rows, and most validation rows, drawn by the seed. Their features take 4 bytes × "
            "rows × layers × width of memory.",
        ),
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows and of the noise.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print scores and settings as one JSON line, last.")
    ] = False,
) -> None:
    """Measure how well the features of each layer tell classes apart, on images that no training sees.

    The features are the layer's tokens, averaged. The same model at random initialization stands beside. The table,
    its numbers and a picture go into the run's folder, the curves to MLflow. The same command continues.
    """
    from rich.console import Console

    from ..launch.evaluating.probe import RESULTS_FILE, run_probe
    from ..launch.evaluating.probe_record import about, record_probe
    from ..launch.evaluating.probe_request import ProbeRequest, plan_probe
    from ..report.bar import CountDisplay
    from ..report.log import log_to
    from ..report.probe import probe_tables
    from ..report.terminal import as_path

    console = Console(highlight=False)
    request = ProbeRequest(
        checkpoint=run,
        layers=layers,
        times=times,
        kinds=kinds,
        condition=condition,
        per_class=per_class,
        rows=rows,
        data=data,
        validation=validation,
        seed=seed,
    )
    with log_to(console), CountDisplay(console, "probe", "probes", starting="checks of shards") as display:
        plan = plan_probe(request)
        scores = run_probe(plan, display.show)
    for table in probe_tables(scores):
        console.print(table)
    for kind in plan.kinds:
        console.print(f"{kind}: {plan.provenance[kind]}", soft_wrap=True, markup=False)
    console.print(about(plan), soft_wrap=True, markup=False)
    with log_to(console), CountDisplay(console, "record", starting="the curves, in MLflow"):
        picture = record_probe(plan, scores)
    for path in (plan.folder / RESULTS_FILE, picture):
        console.print(as_path(path), soft_wrap=True, markup=False)
    if as_json:
        print(json.dumps({"provenance": plan.provenance, "scores": [score.model_dump() for score in scores]}))
