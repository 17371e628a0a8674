"""Display of the generation of samples."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.panel import Panel

from ..sampling.progress import Generating
from ..sampling.sample_set import SamplePlan
from ..sampling.settings import describe_sampling
from .bar import BarDisplay
from .numbers import clock, size
from .tables import facts_grid
from .terminal import as_path


class GeneratingDisplay(BarDisplay):
    """Progress of the generation of samples."""

    doing, unit, starting = "generate", "samples", "weights, autoencoder, workers"

    def show(self, report: Generating) -> None:
        """Show how far it is."""
        numbers = f"{_speed(report.samples_per_second)}  ETA {clock(report.eta_seconds)}"
        self.draw(report.done, report.total, numbers)


class EvaluatingDisplay(GeneratingDisplay):
    """Progress of the samples at all places of an evaluation."""

    doing, starting = "evaluate", "real images, extractor"


def generated_panel(plan: SamplePlan, digest: str, files: list[Path], made: int, seconds: float) -> Panel:
    """Return the panel that ends a generation: `made` samples in `seconds`. The others were there."""
    rows = facts_grid()
    were_there = f" ({plan.num - made} were there)" if made < plan.num else ""
    rows.add_row("samples", f"{plan.num}{were_there}, {plan.image_size}×{plan.image_size} pixels")
    rows.add_row("sampling", describe_sampling(plan.model, plan.sampling))
    if plan.prompts is not None:
        cut = f", {plan.prompts.cut} cut" if plan.prompts.cut else ""
        rows.add_row("prompts", f"{escape(plan.prompts.file.name)}, {plan.prompts.sha256[:12]}…{cut}")
        rows.add_row("seed", f"{plan.seed}")
    else:
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
