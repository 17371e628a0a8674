"""Tables and the picture of probes: each score at its place."""

from __future__ import annotations

import itertools
from io import StringIO

import numpy as np
from matplotlib.collections import FillBetweenPolyCollection
from rich.console import Console

from causalfusion_platform.evaluation.probe.scores import ProbeScore
from causalfusion_platform.report.probe import probe_figure, probe_tables


def score_of(kind: str, t: int, layer: int, random: bool) -> ProbeScore:
    """Return a score that tells its place."""
    correct = 100 + 40 * layer + t // 5 + 7 * random + 3 * (kind == "knn")
    return ProbeScore(
        kind=kind,
        t=t,
        layer=layer,
        random=random,
        correct=correct,
        total=1000,
        accuracy=correct / 1000,
        low=correct / 1000 - 0.01,
        high=correct / 1000 + 0.02,
    )


def scores(*times: int) -> list[ProbeScore]:
    places = itertools.product(("linear", "knn"), times, (0, 1, 5, 12), (False, True))
    return [score_of(*place) for place in places]


def shown(*times: int) -> str:
    console = Console(width=80, file=StringIO(), highlight=False)
    for table in probe_tables(scores(*times)):
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_each_time_has_random_initialization_beside_it() -> None:
    text = shown(0, 50, 200)
    assert text.count("random") == 6
    assert "accuracy, linear classifier" in text
    assert "accuracy, nearest neighbours" in text
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 8
    for row, (kind, layer) in zip(rows, itertools.product(("linear", "knn"), (0, 1, 5, 12)), strict=True):
        found = [score_of(kind, t, layer, random).accuracy for t in (0, 50, 200) for random in (False, True)]
        assert row == [str(layer), *(f"{value:.3f}" for value in found)]


def test_many_times_fit_80_columns() -> None:
    text = shown(0, 10, 50, 100, 200, 300, 400, 500, 999)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    heads = [line.split() for line in text.splitlines() if line.strip().startswith("layer")]
    assert [head[1::2] for head in heads[:3]] == [
        ["t=0", "t=10", "t=50", "t=100"],
        ["t=200", "t=300", "t=400", "t=500"],
        ["t=999"],
    ]


def test_the_picture_has_a_line_for_each_time_and_a_dashed_one_beside_it() -> None:
    figure = probe_figure(scores(0, 50), title="Probes of run pre", about="300 rows")
    panels = figure.get_axes()
    assert [axes.get_title(loc="left") for axes in panels] == ["linear classifier", "nearest neighbours"]
    for axes, kind in zip(panels, ("linear", "knn"), strict=True):
        drawn = [line for line in axes.get_lines() if len(np.asarray(line.get_xdata()))]
        bands = [band for band in axes.collections if isinstance(band, FillBetweenPolyCollection)]
        places = list(itertools.product((0, 50), (False, True)))
        for line, band, (t, random) in zip(drawn, bands, places, strict=True):
            own = [score_of(kind, t, layer, random) for layer in (0, 1, 5, 12)]
            assert np.asarray(line.get_xdata()).tolist() == [0, 1, 5, 12]
            assert np.asarray(line.get_ydata()).tolist() == [score.accuracy for score in own]
            assert line.get_linestyle() == ("--" if random else "-")
            corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).round(9).tolist()}
            ends = {(float(score.layer), round(end, 9)) for score in own for end in (score.low, score.high)}
            assert ends <= corners
        colours = [line.get_color() for line in drawn]
        assert colours[0] == colours[1] != colours[2] == colours[3]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["clean", "t = 50", "random initialization"]
    assert figure.get_suptitle() == "Probes of run pre\n300 rows"
