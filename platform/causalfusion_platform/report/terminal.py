"""Display of a training run: the preflight line, its progress, and the closing panel."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from rich.markup import escape
from rich.panel import Panel

from ..storage.objects import ObjectUrl, is_object_url
from ..train.progress import Progress as Report
from .bar import BarDisplay
from .numbers import clock, share
from .tables import facts_grid


def preflight_line() -> str:
    """Return the resources of this machine in one line: cores, memory, GPUs, versions."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = torch.cuda.device_count()
    gpu = f"{gpus} × {torch.cuda.get_device_name(0)}" if gpus else "no GPU"
    versions = " · ".join(f"{name} {version(name)}" for name in ("torch", "ray", "deepspeed", "mlflow"))
    return f"{cores} cores · {memory:.0f} GiB · {gpu} · python {platform.python_version()} · {versions}"


def as_path(path: Path | ObjectUrl) -> str:
    """Return a path as short as it can be typed from here, or an address."""
    if not isinstance(path, Path):
        return str(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _place(run: str) -> str:
    return run if is_object_url(run) else as_path(Path(run))


class TrainingDisplay(BarDisplay):
    """Progress of training. The first report is printed at once."""

    doing, unit, starting = "train", "images", "workers, engine, data"
    last: Report | None = None

    def __enter__(self) -> Self:
        if not self.console.is_terminal:
            self.console.print("starting workers, engine and data")
        return super().__enter__()

    def show(self, report: Report) -> None:
        """Show how far training is. Showing the same report again does nothing."""
        if report == self.last:
            return
        first, self.last = self.last is None, report
        numbers = (
            f"{report.images_per_second:.0f} images/s  loss {report.loss:.4f}  ETA {clock(report.eta_seconds)}"
        )
        if report.mfu is not None:
            numbers += f"  MFU {share(report.mfu, 0 if report.mfu >= 0.1 else 1)}"
        self.draw(report.images, report.total, numbers, at_once=first)


def closing_panel(summary: dict[str, Any], open_dashboard: str, scores: Sequence[tuple[str, str]] = ()) -> Panel:
    """Return the panel that ends a run.

    Args:
        summary: content of summary.json.
        open_dashboard: command that opens the dashboard.
        scores: names and values of the task's scores, which come first.
    """
    rows = facts_grid()
    for name, value in scores:
        rows.add_row(escape(name), escape(value))
    stages = " · ".join(f"{stage} {seconds:.0f} s" for stage, seconds in summary["stage_seconds"].items())
    rows.add_row("time", f"{summary['total_seconds']:.0f} s: {stages}")
    rows.add_row("training", f"{summary['images_seen']} images, {summary['images_per_second']:.0f} images/s")
    if "grid_path" in summary:
        rows.add_row("sample grid", escape(as_path(Path(summary["grid_path"]))))
    rows.add_row("run folder", escape(_place(summary["run_dir"])))
    rows.add_row("MLflow run", summary["mlflow_run_id"])
    rows.add_row("dashboard", escape(open_dashboard))
    return Panel(rows, title=f"run {summary['name']}", title_align="left", expand=True)
