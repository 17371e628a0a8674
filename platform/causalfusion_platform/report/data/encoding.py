"""Display of an encoding: its progress, and a panel with its faulty images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from ...data.encode.plan import EncodingPlan
from ...data.encode.progress import EncodingProgress
from ...data.encode.records import Fault
from ...data.faults import FAULT_KINDS
from ...data.layout import NAMES
from ...data.manifest import Manifest, Split
from ...data.sources import EARLIER_RULES, CaptionsFound, Listing, split_of_shards
from ...data.sources.splits import ALL
from ...data.sources.system_files import count_system_names
from ..bar import BarDisplay
from ..numbers import clock, count
from ..tables import facts_grid

_NAMED = 3
_CLASSES_NAMED = 10
_EARLIER = "those that this folder was begun under: system files are images, splits are not told apart"
_WITHOUT_CLASSES = "none: images without labels, all with label 0"


class EncodingDisplay(BarDisplay):
    """Progress of an encoding."""

    doing, unit, starting = "encode", "images", "source, autoencoder, Ray"

    def show(self, report: EncodingProgress) -> None:
        """Show how far the encoding is."""
        if not report.images_per_second:
            return
        numbers = f"{report.images_per_second:.1f} images/s  ETA {clock(report.eta_seconds)}"
        if report.faults:
            most = list(report.faults.items())
            numbers += "  " + ", ".join(f"{count} {kind}" for kind, count in most[:_NAMED])
            numbers += f", {sum(count for _, count in most[_NAMED:])} others" if len(most) > _NAMED else ""
        self.draw(report.items, report.total, numbers)


def plan_facts(listing: Listing) -> dict[str, object]:
    """Return what is to be encoded, for other programs."""
    selection = listing.selection
    return {
        "kind": listing.kind,
        "items": listing.table.num_rows + len(listing.findings),
        "classes": len(listing.class_names) if listing.has_classes else 0,
        "class_names": listing.class_names[:_CLASSES_NAMED] if listing.has_classes else [],
        "empty_classes": listing.empty_classes(),
        "split": selection.split,
        "splits": dict(selection.splits),
        "counts_as": split_of_shards(listing.location, selection),
        "left_out": count_system_names(selection.left_out),
        **({} if listing.captions is None else {"captions": asdict(listing.captions)}),
    }


def plan_panel(listing: Listing, plan: EncodingPlan, folder: str) -> Panel:
    """Return the panel that begins an encoding: images, split, classes, and what is left out."""
    rows = facts_grid()
    selection = listing.selection
    rows.add_row("source", escape(f"{listing.kind}, {listing.location}"))
    faults = Counter(finding.kind for _, finding in listing.findings)
    without = f", without {_list([f'{number:,} {kind}' for kind, number in faults.items()])}" if faults else ""
    rows.add_row("images", f"{listing.table.num_rows:,}{without}")
    rows.add_row("split", escape(f"{_split_text(listing)}\n{_counts_as(listing, plan.description.split)}"))
    rows.add_row("classes", escape(_class_text(listing.class_names) if listing.has_classes else _WITHOUT_CLASSES))
    if listing.captions is not None:
        rows.add_row("captions", escape(_caption_text(listing.captions)))
    empty = listing.empty_classes()
    if empty:
        rows.add_row("no images", escape(f"in {_class_text(empty)}"))
    system = count_system_names(selection.left_out)
    if system:
        names = _list([f"{number:,} {name}" for name, number in system.items()])
        rows.add_row("left out", escape(f"system files: {names}"))
    if selection.rules == EARLIER_RULES:
        rows.add_row("rules", _EARLIER)
    shape = "×".join(map(str, plan.description.shape))
    rows.add_row("shards", f"{plan.num_shards:,}, latents {shape} {plan.description.dtype}")
    return Panel(rows, title=f"to encode into {escape(folder)}", title_align="left", expand=True)


def _split_text(listing: Listing) -> str:
    selection = listing.selection
    others = _list([f"{name} ({count(number, 'file')})" for name, number in selection.splits.items()])
    if selection.split is not None:
        return f"{selection.split}, of {others}" if others else f"{selection.split}, as given"
    return f"{others}, by its name" if others else "not named: every file is taken"


def _counts_as(listing: Listing, split: Split) -> str:
    """Return the split of the shards, and how Karpathy's restval counts."""
    chosen, there = listing.selection.split or "", listing.selection.splits
    text = f"the shards are marked {split}"
    if "restval" not in there:
        return text
    number = count(there["restval"], "image")
    if "restval" in chosen.split("+") or chosen == ALL:
        return f"{text}: restval ({number}) counts as train"
    if chosen == "train":
        return f"{text}, without restval ({number}), which counts as train too: --split train+restval"
    return text


def _caption_text(found: CaptionsFound) -> str:
    form = f"{found.form} (keys {', '.join(found.keys)})" if found.keys else found.form
    others = [
        (found.uncaptioned, "image", "without caption"),
        (found.other_splits, "image", "of other splits"),
        (found.other_files, "other file", "passed over"),
    ]
    parts = [f"{count(number, one)} {what}" for number, one, what in others if number]
    if found.absent:
        more = ", …" if found.absent > len(found.first_absent) else ""
        named = ", ".join(found.first_absent) + more
        parts.append(f"{count(found.absent, 'captioned image')} not there: {named}")
    return "\n".join([f"{found.captions:,}, {form}, {found.location}, joined by {found.by}", *parts])


def _class_text(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_CLASSES_NAMED])
    return f"{len(names):,}: {shown}{', …' if len(names) > _CLASSES_NAMED else ''}"


def _list(texts: Sequence[str]) -> str:
    more = f", {len(texts) - _CLASSES_NAMED:,} others" if len(texts) > _CLASSES_NAMED else ""
    return ", ".join(texts[:_CLASSES_NAMED]) + more


def encoding_panel(
    manifest: Manifest,
    faults: list[Fault],
    seconds: float,
    made: int,
    folder: str,
    empty_classes: Sequence[str] = (),
    faults_file: str = NAMES.faults,
    captions: CaptionsFound | None = None,
) -> Panel:
    """Return the panel that ends an encoding: its shards, and every kind of fault with some of its images."""
    rows = facts_grid()
    shape = "×".join(map(str, manifest.shape))
    rows.add_row("latents", f"{manifest.rows} of {manifest.source.items} items, {shape} {manifest.dtype}")
    size = sum(shard.bytes for shard in manifest.shards)
    there = len(manifest.shards) - made
    rows.add_row(
        "shards",
        f"{len(manifest.shards)} ({there} were there), {size / 2**20:.1f} MiB"
        if there > 0
        else f"{len(manifest.shards)}, {size / 2**20:.1f} MiB",
    )
    rows.add_row("classes", escape(_class_text(manifest.class_names)))
    if empty_classes:
        rows.add_row("no rows", escape(f"in {_class_text(empty_classes)}"))
    if captions is not None:
        rows.add_row("captions", escape(_caption_text(captions)))
    rows.add_row("autoencoder", f"{manifest.autoencoder.name}, scale {manifest.autoencoder.scale:g}")
    rows.add_row("time", f"{seconds:.1f} s")
    rows.add_row("digest", manifest.digest[:16])
    parts: list[RenderableType] = [rows]
    if manifest.faults:
        place = escape(f"{folder}/{faults_file}")
        parts += ["", _fault_table(manifest, faults), f"every image with its fault: {place}"]
    return Panel(Group(*parts), title=f"encoded into {escape(folder)}", title_align="left", expand=True)


def _fault_table(manifest: Manifest, faults: list[Fault]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, justify in (("fault", "left"), ("action", "left"), ("images", "right"), ("such as", "left")):
        table.add_column(name, justify=justify, no_wrap=name != "such as", overflow="fold")  # type: ignore[arg-type]
    order = list(FAULT_KINDS)
    for kind in sorted(manifest.faults, key=order.index):
        for action, number in manifest.faults[kind].items():
            keys = sorted(fault.key for fault in faults if (fault.kind, fault.action) == (kind, action))
            more = " …" if number > _NAMED else ""
            table.add_row(kind, action, str(number), escape(", ".join(keys[:_NAMED]) + more))
    return table
