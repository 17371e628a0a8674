"""Figures of a reproduced table that need more than its numbers: loss curves, sampled images."""

from __future__ import annotations

from pathlib import Path

from ..report.canvas import save
from ..report.html import Picture
from ..report.training_curves import Curve, training_loss_figure
from ..tracking.journal import Journal, Progressed
from .reproduction import Reproduction


def draw_more(reproduction: Reproduction, folder: Path) -> list[Picture]:
    """Draw the training loss of every row (Figure 4a), mean and range over seeds; return figures for the page."""
    curves: dict[str, list[Curve]] = {}
    for row in reproduction.rows:
        found = [
            curve
            for seed in reproduction.table.plan(reproduction.scale).seeds
            if len((curve := loss_curve(reproduction.run_dir(row, seed)))[0]) > 1
        ]
        if found:
            label = (row.digits_label if reproduction.scale == "digits" else None) or row.label
            curves[f"{reproduction.table.varied} {label}"] = found
    if not curves:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    path = save(training_loss_figure(curves, title="Training loss"), folder / "loss.png")
    return [Picture("loss", path.read_bytes(), "Training loss over images seen: mean over seeds.")]


def loss_curve(run_dir: Path) -> Curve:
    """Return images seen and losses, from a run's journal; of steps that were made twice, the later ones."""
    found = {event.images: event.loss for event in Journal(run_dir).events() if isinstance(event, Progressed)}
    return list(found), list(found.values())
