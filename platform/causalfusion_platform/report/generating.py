"""Display of the generation of samples."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import TaskID
from rich.table import Table

from ..sampling.progress import Generating
from ..sampling.sample_set import SamplePlan
from ..sampling.settings import describe_sampling
from .terminal import as_path, clock, progress_bar
from .units import size

_PLAIN_EVERY_SECONDS = 10.0


class GeneratingDisplay:
    """A progress bar on a terminal, and a line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = progress_bar(console)
        self.task: TaskID | None = None
        self.printed_at = time.monotonic()

    def __enter__(self) -> GeneratingDisplay:
        self.bar.start()
        self.task = self.bar.add_task("start", total=None, numbers="weights, autoencoder, workers")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, report: Generating) -> None:
        """Show how far it is."""
        assert self.task is not None
        numbers = f"{_speed(report.samples_per_second)}  ETA {clock(report.eta_seconds)}"
        self.bar.update(
            self.task, description="generate", total=report.total, completed=report.done, numbers=numbers
        )
        due = time.monotonic() - self.printed_at >= _PLAIN_EVERY_SECONDS or report.done == report.total
        if not self.console.is_terminal and due:
            self.printed_at = time.monotonic()
            self.console.print(f"generate {report.done}/{report.total} samples  {numbers}", soft_wrap=True)


def generated_panel(plan: SamplePlan, digest: str, files: list[Path], made: int, seconds: float) -> Panel:
    """Return the panel that ends a generation.

    Args:
        plan: of the set.
        digest: of its images.
        files: archives and folders that were written.
        made: samples that were generated, not found.
        seconds: that it took.
    """
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    were_there = f" ({plan.num - made} were there)" if made < plan.num else ""
    rows.add_row("samples", f"{plan.num}{were_there}, {plan.image_size}×{plan.image_size} pixels")
    rows.add_row("sampling", describe_sampling(plan.model, plan.sampling))
    classes = f"{len(plan.class_list)} class{'es' if len(plan.class_list) > 1 else ''}"
    rows.add_row("labels", f"{plan.labels}, {classes}, seed {plan.seed}")
    rows.add_row("pixels", f"{plan.uint8}, {plan.precision}, autoencoder {plan.autoencoder.name}")
    rows.add_row("time", f"{seconds:.1f} s" + (f", {_speed(made / seconds)}" if made else ""))
    for path in files:
        bytes_ = f"  {size(path.stat().st_size)}" if path.is_file() else ""
        rows.add_row("written", f"{escape(as_path(path))}{bytes_}")
    rows.add_row("digest", digest[:16])
    return Panel(rows, title="samples", title_align="left", expand=True)


def _speed(samples_per_second: float) -> str:
    form = ".0f" if samples_per_second >= 100 else ".3g"
    return f"{samples_per_second:{form}} samples/s"
