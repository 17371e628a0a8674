"""`causalfusion data encode`: images → latent shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def encode(
    source: Annotated[
        str, typer.Argument(help="Folder, tars, Parquet or IDX files of images, as a path or a URL.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of latent shards, on storage that all nodes share.")],
    vae: Annotated[
        str, typer.Option(help="Autoencoder: a diffusers folder, kl16.ckpt, SD's VAE file, or identity for pixels.")
    ],
    size: Annotated[int, typer.Option(help="Side of ADM's centre crop, in pixels.")] = 256,
    kind: Annotated[
        str, typer.Option(help="folders, flat, webdataset, parquet or idx. auto: detected from the files.")
    ] = "auto",
    labels: Annotated[str | None, typer.Option(help="CSV, JSON or text file of labels, for a flat folder.")] = None,
    image_column: Annotated[
        str, typer.Option(help="Column or suffix of images in Parquet, tars or labels.")
    ] = "auto",
    label_column: Annotated[str, typer.Option(help="Where the label is. none: images without classes.")] = "auto",
    caption_column: Annotated[
        str | None, typer.Option(help="Column or suffix of captions (default: without captions).")
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(help="File of captions for images in folders: COCO's or Karpathy's JSON, or JSONL."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT=ACTION",
            help="Action for a kind of fault, see: causalfusion data faults. Repeatable.",
        ),
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Images of more pixels than this are `huge`.")] = 89_478_485,
    flip: Annotated[bool, typer.Option(help="Encode the mirrored image too.")] = True,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16, faster on GPUs and less exact.")] = False,
    order: Annotated[
        str, typer.Option(help="source, shuffled, or auto: shuffled where keys are by class.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass of the autoencoder.")] = 32,
    rows_per_shard: Annotated[int, typer.Option(help="Items per shard.")] = 4096,
    rows_per_group: Annotated[int, typer.Option(help="Rows per Parquet row group, the unit of shuffling.")] = 256,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val, test: the split to take where names or captions tell several apart, or that of all "
            "images otherwise. all: every split (not folders). Shards are marked with it."
        ),
    ] = None,
    encoders: Annotated[
        int | None, typer.Option(help="Ray actors that encode (default: one per GPU, or per node without GPUs).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show classes, splits and what is left out. Write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as one JSON line, last.")] = False,
) -> None:
    """Encode images into verified latent shards. The same command continues an interrupted one."""
    from rich.console import Console

    from ..data.encode.plan import EncodeSettings, EncodingPlan, recorded_rules
    from ..data.faults import parse_policies
    from ..data.layout import names_in
    from ..data.shards import refuse_object_storage
    from ..data.sources import Listing, open_source
    from ..launch.encode import encode_source, plan_encoding, records_folder
    from ..report.data.encoding import EncodingDisplay, encoding_panel, plan_facts, plan_panel
    from ..report.log import log_to
    from ..report.terminal import as_path

    refuse_object_storage(out)
    policies = parse_policies(on or [])
    settings = EncodeSettings(
        size=size,
        policies=policies,
        max_pixels=max_pixels,
        flip=flip,
        bf16=bf16,
        batch_size=batch_size,
        rows_per_shard=rows_per_shard,
        rows_per_group=rows_per_group,
        order=order,
    )
    console = Console(highlight=False)

    def announce(listing: Listing, plan: EncodingPlan) -> None:
        console.print(plan_panel(listing, plan, as_path(out)))

    with log_to(console), EncodingDisplay(console) as display:
        opened = open_source(
            source,
            kind=kind,  # type: ignore[arg-type]  # checked there
            labels=labels,
            image_column=image_column,
            label_column=label_column,
            caption_column=caption_column,
            captions=captions,
            split=split,
            policies=policies,
            rules=recorded_rules(records_folder(out)),
        )
        if dry_run:
            listing, plan = plan_encoding(opened, vae, settings, out)
        else:
            encoded = encode_source(
                opened, vae, settings, out, encoders=encoders, announce=announce, show=display.show
            )
    if dry_run:
        announce(listing, plan)
        if as_json:
            print(json.dumps({"dry_run": True, "shards": plan.num_shards, **plan_facts(listing)}))
        return
    manifest = encoded.manifest
    panel = encoding_panel(
        manifest,
        encoded.faults,
        encoded.seconds,
        encoded.made,
        as_path(out),
        encoded.empty_classes,
        names_in(out).faults,
        encoded.listing.captions,
    )
    console.print(panel)
    if as_json:
        summary = {
            "rows": manifest.rows,
            "items": manifest.source.items,
            "shards": len(manifest.shards),
            "made": encoded.made,
            "seconds": encoded.seconds,
            "faults": manifest.faults,
            "digest": manifest.digest,
            **plan_facts(encoded.listing),
            "empty_classes": encoded.empty_classes,
        }
        print(json.dumps(summary))


def list_faults() -> None:
    """List the kinds of faults that `data encode` detects, and the allowed actions for each."""
    from rich.console import Console
    from rich.table import Table

    from ..data.faults import FAULT_KINDS

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("fault", "default", "also", "meaning"):
        table.add_column(name, no_wrap=name == "fault")
    for kind in FAULT_KINDS.values():
        also = [action for action in kind.allowed if action != kind.default]
        table.add_row(kind.name, kind.default, " ".join(also), kind.meaning)
    Console(highlight=False).print(table)
