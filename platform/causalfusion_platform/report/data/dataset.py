"""Text about a folder of latent shards, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from ...data.classes import Classes
from ...data.layout import names_in
from ...data.manifest import Manifest
from ...data.scan import Scan
from ...data.stats import LatentStats, Spread
from ...data.validate import CheckedShards
from ..numbers import count, size

_WIDTH = 80
_MARGIN = 14
_BARS = 20
_LONGEST_NAME = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"
# Share of the classes that row groups would hold in random order, below which shuffling suffers.
_POORLY_MIXED = 0.5
_MIXING_WARNING = (
    "warning: rows lie class by class, and shuffling reads whole row groups, so that batches hold few classes. "
    "Encode again with --order shuffled, or raise data.window_rows."
)


def summary_lines(folder: Path, manifest: Manifest) -> list[str]:
    """Return what the manifest says."""
    channels, height, width = manifest.shape
    total = sum(shard.bytes for shard in manifest.shards)
    groups = sum(len(shard.row_groups) for shard in manifest.shards)
    coder, source = manifest.autoencoder, manifest.source
    weights = f", weights {coder.weights_sha256[:16]}" if coder.weights_sha256 else ""
    crop = manifest.crop
    aside = manifest.quarantined
    facts = {
        "split": manifest.split if manifest.version > 2 else "train (not recorded: version 2)",
        "rows": f"{manifest.rows:,} in {count(len(manifest.shards), 'shard')}, {count(groups, 'row group')}",
        "size": f"{size(total)}, {total / manifest.rows:,.0f} bytes per row",
        "latents": f"{channels}×{height}×{width} {manifest.dtype}: {', '.join(manifest.latent_columns)}",
        "autoencoder": f"{coder.name}, scale {coder.scale:g}{weights}",
        "images": f"ADM's centre crop to {crop.size}×{crop.size}" if crop else "as they were in the source",
        "holds": " · ".join(
            f"{what} {'yes' if there else 'no'}"
            for what, there in (
                ("posterior", manifest.posterior),
                ("mirrored images", manifest.flip),
                ("captions", manifest.captions),
            )
        ),
        "source": f"{source.kind}, {count(source.items, 'item')}: {source.location}",
        "order": "as in the source" if manifest.order == "source" else "shuffled",
        "faults": "; ".join(
            f"{kind} {', '.join(f'{action} {number:,}' for action, number in actions.items())}"
            for kind, actions in manifest.faults.items()
        )
        or "none",
        "set aside": f"{count(len(aside), 'shard')} with {sum(part.rows for part in aside):,} rows"
        if aside
        else "",
        "digest": manifest.digest,
    }
    return [str(folder), *(line for name, text in facts.items() if text for line in _fact(name, text))]


def class_lines(manifest: Manifest, classes: Classes) -> list[str]:
    """Return how rows are spread over classes, and classes over row groups."""
    counts, names = classes.counts, manifest.class_names
    present = np.flatnonzero(counts)
    least, most = (int(present[pick(counts[present])]) for pick in (np.argmin, np.argmax))
    per_class = f"{counts[least]:,} rows each"
    if counts[least] < counts[most]:
        per_class = (
            f"{counts[least]:,} ({_name(names[least])}), median {np.median(counts[present]):,.0f}, "
            f"{counts[most]:,} ({_name(names[most])})"
        )
    absent = len(names) - len(present)
    median = float(np.median(classes.per_group))
    return [
        *_fact("classes", f"{len(names):,}" + (f", {absent:,} of them without rows" if absent else "")),
        *_fact("per class", per_class),
        *_fact("mixing", f"{median:.0f} classes in a median row group; random order: {classes.mixed:.0f}"),
        *(textwrap.wrap(_MIXING_WARNING, _WIDTH) if median < _POORLY_MIXED * classes.mixed else []),
        "",
        *_class_bars(names, counts),
    ]


def stats_lines(folder: Path, stats: LatentStats) -> list[str]:
    """Return the statistics as a table."""
    scaled, noisy = stats.scale != 1, stats.overall.posterior_std > 0

    def row(name: str, cells: Sequence[float | str]) -> str:
        texts = [cell if isinstance(cell, str) else f"{cell:.4g}" for cell in cells]
        return " ".join([f"{name:<7}", *(f"{text:>9}" for text in texts)])

    def cells(spread: Spread) -> list[float | str]:
        return [
            spread.mean,
            spread.std,
            *([spread.posterior_std] if noisy else []),
            spread.min,
            spread.max,
            *([spread.mean / stats.scale, spread.std / stats.scale] if scaled else []),
        ]

    heads = ["mean", "std", *(["posterior"] if noisy else []), "min", "max"]
    heads += ["mean/s", "std/s"] if scaled else []
    views = ", each with its mirrored image" if stats.views == 2 else ""
    return [
        f"{folder}: {stats.rows:,} rows{views}",
        row("channel", heads),
        *(row(str(index), cells(spread)) for index, spread in enumerate(stats.channels)),
        row("all", cells(stats.overall)),
        "",
        *(["std: of draws from the posteriors, √(variance of means + mean of variances)"] if noisy else []),
        *([f"s: scale of the shards, {stats.scale:g}"] if scaled else []),
        f"suggested scale for a new autoencoder, 1/std of the unscaled latents: {stats.suggested_scale:.5g}",
    ]


def verdict_lines(checked: CheckedShards, *, quick: bool) -> list[str]:
    """Return what is wrong with a folder, or one line that says that nothing is."""
    manifest = checked.manifest
    if not checked.bad:
        what = "sizes, schemas, row groups" if quick else "every byte, number, row id and key"
        folder = f"{checked.folder}" if manifest.split == "train" else f"{checked.folder} ({manifest.split})"
        return [f"{folder}: {len(manifest.shards)} shards and {manifest.rows} rows are whole: {what}"]
    rows = sum(shard.rows for shard in manifest.shards if shard.file in checked.bad)
    return [
        f"{checked.folder}: {len(checked.bad)} of {len(manifest.shards)} shards are bad, {rows} of "
        f"{manifest.rows} rows",
        *(f"  {file}: {fault}" for file, fault in checked.bad.items()),
    ]


def repeats_lines(scan: Scan) -> list[str]:
    """Return which images a data set holds more than once."""
    if not scan.repeated_latents:
        return []
    held = (
        "1 row holds the latent" if scan.repeated_latents == 1 else f"{scan.repeated_latents} rows hold the latents"
    )
    return [
        f"note: {held} of an earlier row under another key, such as",
        *(f"  {second} = {first}" for first, second in scan.examples),
    ]


def set_aside_lines(checked: CheckedShards, rest: Manifest, advice: str) -> list[str]:
    """Return what is left after bad shards were set aside."""
    aside = checked.folder / names_in(checked.folder).quarantine
    return [
        f"set aside in {aside}; {rest.rows} of {checked.manifest.rows} rows are left "
        f"in {count(len(rest.shards), 'shard')}, digest {rest.digest[:16]}",
        f"  {advice}",
    ]


def _class_bars(names: Sequence[str], counts: NDArray[np.int64]) -> list[str]:
    """Return a bar per class, or where there are many, a bar per range of class sizes."""
    if len(names) <= _BARS:
        return _bars([_name(name) for name in names], counts.tolist())
    low, high = int(counts.min()), int(counts.max())
    step = -(-(high - low + 1) // _BARS)
    starts = list(range(low, high + 1, step))
    bins = np.bincount((counts - low) // step, minlength=len(starts)).tolist()
    ranges = [f"{start:,}–{start + step - 1:,}" if step > 1 else f"{start:,}" for start in starts]
    return ["rows of a class → number of classes", *_bars(ranges, bins)]


def _bars(names: Sequence[str], values: Sequence[int]) -> list[str]:
    left, right = max(map(cell_len, names)), max(len(f"{value:,}") for value in values)
    room = _WIDTH - left - right - 2
    lines = []
    for name, value in zip(names, values, strict=True):
        eighths = round(8 * room * value / max(*values, 1))
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{set_cell_size(name, left)} {value:>{right},} {bar}".rstrip())
    return lines


def _fact(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{name:<{_MARGIN}}",
        subsequent_indent=" " * _MARGIN,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _name(name: str) -> str:
    """Return a class's name, cut where it is long."""
    return name if cell_len(name) <= _LONGEST_NAME else set_cell_size(name, _LONGEST_NAME - 1) + "…"
