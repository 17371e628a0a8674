"""Display of an encoding: its progress, and a panel with its faulty images."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from ...data.encode.progress import EncodingProgress
from ...data.encode.records import Fault
from ...data.faults import FAULT_KINDS
from ...data.manifest import Manifest
from ..bar import BarDisplay
from ..numbers import clock
from ..tables import facts_grid

_NAMED = 3


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


def encoding_panel(manifest: Manifest, faults: list[Fault], seconds: float, made: int, folder: str) -> Panel:
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
    rows.add_row("classes", str(len(manifest.class_names)))
    rows.add_row("autoencoder", f"{manifest.autoencoder.name}, scale {manifest.autoencoder.scale:g}")
    rows.add_row("time", f"{seconds:.1f} s")
    rows.add_row("digest", manifest.digest[:16])
    parts: list[RenderableType] = [rows]
    if manifest.faults:
        parts += ["", _fault_table(manifest, faults), f"every image with its fault: {escape(folder)}/faults.csv"]
    return Panel(Group(*parts), title=f"encoded into {escape(folder)}", title_align="left", expand=True)


def _fault_table(manifest: Manifest, faults: list[Fault]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, justify in (("fault", "left"), ("action", "left"), ("images", "right"), ("such as", "left")):
        table.add_column(name, justify=justify, no_wrap=name != "such as", overflow="fold")  # type: ignore[arg-type]
    order = list(FAULT_KINDS)
    for kind in sorted(manifest.faults, key=order.index):
        for action, count in manifest.faults[kind].items():
            keys = sorted(fault.key for fault in faults if (fault.kind, fault.action) == (kind, action))
            more = " …" if count > _NAMED else ""
            table.add_row(kind, action, str(count), escape(", ".join(keys[:_NAMED]) + more))
    return table
