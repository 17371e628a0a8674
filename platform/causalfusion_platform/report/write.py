"""Writing reports into a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..storage.atomic import write_atomically
from .canvas import save
from .html import Picture
from .paper.claims_figure import claims_figure, has_claims
from .paper.figures import is_plane, planes_figure, values_figure
from .paper.json import report_json
from .paper.latex import render_latex
from .paper.pages import paper_page, render_markdown
from .paper.report import PaperReport
from .sweeps.figures import history_figure, pareto_figure, slices_figure
from .sweeps.html import SweepReport, sweep_page
from .sweeps.parallel_coordinates import parallel_coordinates_figure
from .sweeps.records import has_result, metric_of, swept_keys

_PAPER_FIGURES = {
    "claims.png": "Gain of each pair of a claim, with the interval that decides it. Above 0 it is as claimed. "
    "Green holds, red fails, and a pair without colour is undecided. Bars at an edge go on.",
    "values.png": "Printed values and ours. Bars are 95% intervals over seeds.",
    "plane.png": "The same as planes. Colour is the rank within a panel, as their units differ.",
}


def write_paper_report(report: PaperReport, folder: Path, *, pictures: Sequence[Picture] = ()) -> list[Path]:
    """Write report.md, report.tex, report.json, its figures and report.html, and return the paths.

    Args:
        folder: made if need be. Files of an earlier report are replaced.
        pictures: more figures for the page, such as Figure 4's curves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = [save(claims_figure(report), folder / "claims.png")] if has_claims(report) else []
    figures.append(save(values_figure(report), folder / "values.png"))
    if is_plane(report):
        figures.append(save(planes_figure(report), folder / "plane.png"))
    shown = [Picture(path.stem, path.read_bytes(), _PAPER_FIGURES[path.name]) for path in figures]
    shown += pictures
    texts = {
        "report.md": render_markdown(report, shown),
        "report.tex": render_latex(report),
        "report.json": json.dumps(report_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": paper_page(report, shown),
    }
    return [*_write(texts, folder), *figures]


def write_sweep_report(report: SweepReport, folder: Path) -> list[Path]:
    """Write report.html and the figures that its trials allow, and return the paths.

    parallel.png needs two keys and two finished trials, slices.png a key, history.png two results, and pareto.png a
    second metric.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    paths = []
    for name, figure, caption in _sweep_figures(report):
        paths.append(save(figure, folder / name))
        shown.append(Picture(Path(name).stem, paths[-1].read_bytes(), caption))
    return [*_write({"report.html": sweep_page(report, shown)}, folder), *paths]


def _sweep_figures(report: SweepReport) -> Iterator[tuple[str, Figure, str]]:
    trials, metric, mode, title = report.trials, report.metric, report.mode, f"sweep {report.name}"
    results = sum(metric_of(trial, metric) is not None for trial in trials)
    finished = sum(has_result(trial, metric) for trial in trials)
    keys = swept_keys(trials)
    if finished > 1 and len(keys) > 1:
        figure = parallel_coordinates_figure(trials, keys, metric, mode, title=title)
        yield (
            "parallel.png",
            figure,
            "Each line is a finished trial: the metric at the left, then its values of the swept keys.",
        )
    if results and keys:
        figure = slices_figure(trials, keys, metric, mode, title=title)
        yield "slices.png", figure, "The metric over each swept key; the spread at one value comes from the others."
    if results > 1:
        figure = history_figure(trials, metric, mode, title=title)
        yield "history.png", figure, "Trials in the order in which they ended."
    if results and report.second:
        figure = pareto_figure(trials, (metric, mode), report.second, title=title)
        yield "pareto.png", figure, "What one metric costs in the other."


def _write(texts: dict[str, str], folder: Path) -> list[Path]:
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]
