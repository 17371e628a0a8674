"""Display of a training run: the preflight line, its progress, and the closing panel."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from ..train.progress import Progress as Report

_PLAIN_EVERY_SECONDS = 10.0


def preflight_line() -> str:
    """Return the resources of this machine in one line: cores, memory, GPUs, versions."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = torch.cuda.device_count()
    gpu = f"{gpus} × {torch.cuda.get_device_name(0)}" if gpus else "no GPU"
    versions = " · ".join(f"{name} {version(name)}" for name in ("torch", "ray", "deepspeed", "mlflow"))
    return f"{cores} cores · {memory:.0f} GiB · {gpu} · python {platform.python_version()} · {versions}"


def as_path(path: Path) -> str:
    """Return a path as short as it can be typed from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def progress_bar(console: Console) -> Progress:
    """Return a bar of 80 columns, with free text at its right (the field `numbers`). Hidden off a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[numbers]}"),
        console=console,
        disable=not console.is_terminal,
    )


class TrainingDisplay:
    """A progress bar on a terminal, and a line every ten seconds elsewhere (a log file, a submitted job)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = progress_bar(console)
        self.task: TaskID | None = None
        self.last: Report | None = None
        self.printed_at = 0.0

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        self.task = self.bar.add_task("start", total=None, numbers="workers, engine, data")
        if not self.console.is_terminal:
            self.console.print("starting workers, engine and data")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, report: Report) -> None:
        """Show how far training is. Showing the same report again does nothing."""
        if report == self.last:
            return
        self.last = report
        numbers = (
            f"{report.images_per_second:.0f} images/s  loss {report.loss:.4f}  ETA {clock(report.eta_seconds)}"
        )
        if report.mfu is not None:
            numbers += f"  MFU {report.mfu:.{0 if report.mfu >= 0.1 else 1}%}"
        assert self.task is not None
        self.bar.update(
            self.task, description="train", total=report.total, completed=report.images, numbers=numbers
        )
        due = time.monotonic() - self.printed_at >= _PLAIN_EVERY_SECONDS or report.images == report.total
        if not self.console.is_terminal and due:
            self.printed_at = time.monotonic()
            self.console.print(
                f"train {report.images}/{report.total} images  {numbers}", highlight=False, soft_wrap=True
            )


def closing_panel(summary: dict[str, Any], open_dashboard: str) -> Panel:
    """Return the panel that ends a run."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    if summary.get("class_accuracy") is not None:
        rows.add_row(
            "class accuracy",
            f"{summary['class_accuracy']:.3f} of {summary['num_samples']} samples; the classifier itself has "
            f"{summary['judge_accuracy']:.3f} on real images it has not seen",
        )
        rows.add_row(
            "fd_digits_cnn",
            f"{summary['fd_digits_cnn']:.2f} (as many real images: {summary['fd_digits_cnn_real']:.2f})",
        )
    stages = " · ".join(f"{stage} {seconds:.0f} s" for stage, seconds in summary["stage_seconds"].items())
    rows.add_row("time", f"{summary['total_seconds']:.0f} s: {stages}")
    rows.add_row("training", f"{summary['images_seen']} images, {summary['images_per_second']:.0f} images/s")
    if "grid_path" in summary:
        rows.add_row("sample grid", escape(as_path(Path(summary["grid_path"]))))
    rows.add_row("run folder", escape(as_path(Path(summary["run_dir"]))))
    rows.add_row("MLflow run", summary["mlflow_run_id"])
    rows.add_row("dashboard", escape(open_dashboard))
    return Panel(rows, title=f"run {summary['name']}", title_align="left", expand=True)


def clock(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
