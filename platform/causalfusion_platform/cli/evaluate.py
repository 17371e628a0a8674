"""`causalfusion evaluate`: measure a checkpoint at points of the factorization plane, or score captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .evaluate_captions import check_options, print_scores
from .generate import CutPromptsOption, PromptsOption
from .sample import SettingsArgument

_PLACES_BESIDE = 3
_NUM = 10_000


def evaluate(
    context: typer.Context,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Folder of weights, of a checkpoint, or of a run. Left out with --captions."),
    ] = None,
    settings: SettingsArgument = None,
    num: Annotated[
        int | None, typer.Option(min=4, help="Samples at each place (default: 10,000, or one of each prompt).")
    ] = None,
    ar_steps: Annotated[str | None, typer.Option(help="S, such as 1,2,4 (default: that of the run).")] = None,
    steps: Annotated[str | None, typer.Option(help="T, such as 25,50,250 (default: that of the run).")] = None,
    cfg: Annotated[str | None, typer.Option(help="Guidance scales, such as 1.0,2.5.")] = None,
    extractor: Annotated[
        str,
        typer.Option(
            help="classifier: that of the run's data, whose latents must be pixels. inception:PATH: the released "
            "Inception weights, for FID. package.module:factory?TEXT: yours."
        ),
    ] = "classifier",
    reference: Annotated[
        Path | None, typer.Option(help="Real images or their statistics, .npz of ADM (default: the run's data).")
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Write the reference's statistics to this .npz, for --reference elsewhere.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the samples (default: the run's).")] = None,
    labels: Annotated[str, typer.Option(help="balanced: classes in turn. random: drawn by the seed.")] = "balanced",
    prompts: PromptsOption = None,
    cut_prompts: CutPromptsOption = False,
    uint8: Annotated[
        str, typer.Option(help="Pixels: round (as MAR), truncate (as DiT and the paper's release), adm (as ADM).")
    ] = "round",
    precision: Annotated[str, typer.Option(help="fp32, or bf16, which is faster on GPUs and less exact.")] = "fp32",
    vae: Annotated[str | None, typer.Option(help="Autoencoder, a folder or file. Leave it out for pixels.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray actors that generate.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per forward pass.")] = None,
    keep_samples: Annotated[bool, typer.Option(help="Leave the samples in the run's samples/.")] = True,
    local: Annotated[bool, typer.Option("--local", help="Generate in this process, without Ray.")] = False,
    captions: Annotated[
        Path | None,
        typer.Option(help="Score these captions of any model instead: JSON in COCO's results format."),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(help="With --captions: captions_*.json of COCO, or dataset_coco.json of Karpathy."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --captions: split of the references (default: test, if there are any).")
    ] = None,
    ptb_jar: Annotated[
        Path | None,
        typer.Option(
            help="With --captions: stanford-corenlp-3.4.1.jar, for cider_d_ptb (default: that of pycocoevalcap, if "
            "it is installed)."
        ),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="With --captions: score empty captions 0, and do not refuse them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as one JSON line, last.")] = False,
) -> None:
    """Generate and measure samples for every combination of S, T and guidance: one table.

    With the released Inception weights: FID, sFID, Inception Score, precision and recall by ADM's conventions.
    Otherwise the same metrics in the named space. The same command continues an interrupted one.

    With --captions and --references: CIDEr-D of a file of captions, of any model.
    """
    check_options(context)
    if checkpoint is None:
        assert captions is not None and references is not None
        print_scores(captions, references, split, ptb_jar, allow_empty=allow_empty, as_json=as_json)
        return
    from rich.console import Console

    from ..checkpoint.find import find_weights
    from ..evaluation.reference import write_reference
    from ..launch.evaluating.analyze import read_numbers
    from ..launch.evaluating.evaluate import evaluate as run
    from ..launch.evaluating.evaluate import plane_points, read_scales
    from ..launch.evaluating.measuring import open_measuring
    from ..launch.evaluating.record import evaluation_table, record_evaluation
    from ..launch.evaluating.shards import shards_of
    from ..launch.generating.actors import LocalGenerator, RayGenerators
    from ..launch.generating.request import GenerateRequest, check_condition
    from ..report.bar import CountDisplay
    from ..report.generating import EvaluatingDisplay
    from ..report.log import log_to
    from ..report.numbers import count
    from ..report.tables import terminal_table
    from ..report.terminal import as_path
    from ..sampling.outputs import NPZ_FILE
    from ..storage.run_layout import RunPaths

    console = Console(highlight=False)
    cells = plane_points(
        read_numbers(ar_steps) if ar_steps is not None else [],
        read_numbers(steps) if steps is not None else [],
        read_scales(cfg) if cfg is not None else [],
    )
    found = find_weights(checkpoint)
    request = GenerateRequest(
        checkpoint=checkpoint,
        num=_NUM if num is None and prompts is None else num,
        settings=list(settings or []),
        seed=seed,
        labels=labels,  # type: ignore[arg-type]  # these are checked there
        prompts=prompts,
        cut_prompts=cut_prompts,
        uint8=uint8,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        batch_size=batch_size,
        vae=vae,
    )
    check_condition(request)
    # Each place is a sample set of its own: `generate` would print lines for every one.
    quiet = log_to(console, ["launch.generating"])
    with quiet, RayGenerators(workers) as pool, EvaluatingDisplay(console) as display:
        measuring = open_measuring(extractor, reference, shards_of(found))
        if save_reference is not None:
            write_reference(save_reference, measuring.reference)
        maker = LocalGenerator() if local else pool
        results = run(request, cells, measuring, maker, keep_samples=keep_samples, show=display.show)
    columns, rows = evaluation_table(results)
    origin = measuring.provenance
    # Points side by side, as many as fit 80 columns: metrics have long names.
    for start in range(0, len(rows), _PLACES_BESIDE):
        some = rows[start : start + _PLACES_BESIDE]
        lines = [[name, *(row[place] for row in some)] for place, name in enumerate(columns)][3:]
        heads = [f"S={row[0]} T={row[1]} cfg={row[2]:g}" for row in some]
        console.print(terminal_table(f"{results[0].plan.num:,} samples at each place", ["", *heads], lines))
    console.print(
        f"space {origin['space']}, weights {origin['weights_sha256'][:12]}…; reference: {origin['reference']}",
        soft_wrap=True,
        markup=False,
    )
    with CountDisplay(console, "record", starting="the table, in MLflow"):
        path = record_evaluation(checkpoint, results, measuring)
    if path is not None:
        console.print(as_path(path), soft_wrap=True, markup=False)
    if keep_samples and (new := [result for result in results if result.measured_now]):
        folder = as_path(RunPaths(new[0].path.parent.parent).samples)
        console.print(f"{NPZ_FILE} of {count(len(new), 'place')}: {folder}", soft_wrap=True, markup=False)
    if as_json:
        print(json.dumps({"provenance": origin, "rows": [dict(zip(columns, row, strict=True)) for row in rows]}))
