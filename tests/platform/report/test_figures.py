"""Figures: what they draw, and that files show something."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from tests.platform.report.made_tables import AROUND, gammas, losses, noisy, plane, report_of, systems
from tests.platform.report.pages import colours

from causalfusion_platform.config.paper_table import Column, Metric, PaperTable, Row, Scale, ScalePlan
from causalfusion_platform.report import figures
from causalfusion_platform.report.canvas import canvas, fit_axis, is_wide, save
from causalfusion_platform.report.figures import (
    heat_map,
    loss_figure,
    plane_figure,
    step_size_figure,
)
from causalfusion_platform.report.paper.claims_figure import claims_figure, has_claims
from causalfusion_platform.report.paper.figures import is_plane, planes_figure, row_numbers, values_figure
from causalfusion_platform.report.paper.report import build_report
from causalfusion_platform.report.runs.curves import smoothed, training_loss_figure


def tick_names(axes: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in (axes.get_xticklabels() if axis == "x" else axes.get_yticklabels())]


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [label.get_text() for label in legend.get_texts()]


def bars(axes: Axes) -> list[tuple[list[float], list[float], list[float]]]:
    """Return x, y and half bar lengths of each row of marks."""
    found = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, segments = container.lines
        assert line is not None
        x, y = (np.asarray(data, dtype=float).tolist() for data in line.get_data())
        lengths = [float(np.ptp(part, axis=0).max()) / 2 for part in segments[0].get_segments()] if segments else []
        found.append((x, y, lengths))
    return found


# The canvas


def test_axes_are_logarithmic_where_numbers_span_much() -> None:
    assert not is_wide([]) and not is_wide([1, 20]) and not is_wide([0, 100]) and not is_wide([-1, 100])
    assert is_wide([1, 20.1])
    for values, scale in (([1.0, 10.0], "linear"), ([1.0, 30.0], "log"), ([1.0, 1000.0], "log")):
        _, axes = canvas()
        axes.plot(values, values)
        fit_axis(axes, "y", values)
        assert (axes.get_xscale(), axes.get_yscale()) == ("linear", scale)


def test_figures_become_files(tmp_path: Path) -> None:
    figure, axes = canvas()
    axes.plot([1, 2], [3, 4])
    path = save(figure, tmp_path / "new/folder/f.png")
    assert colours(path) > 10


# Analyses


def test_the_plane_of_an_analysis(tmp_path: Path) -> None:
    path = tmp_path / "plane.png"
    plane_figure([[1.0, 2.0], [30.0, 4.0]], [1, 2], [5, 10], what="fd", title="t", path=path)
    assert colours(path) > 30


def test_a_heat_map_ranks_what_is_there() -> None:
    for higher, light in ((False, "1"), (True, "30")):
        _, axes = canvas()
        heat_map(axes, [[1.0, None], [30.0, 4.0]], ["a", "b"], ["c", "d"], higher_is_better=higher)
        texts = {text.get_text(): text.get_color() for text in axes.texts}
        assert set(texts) == {"1", "–", "30", "4"}
        assert texts[light] == "black", "dark ink on the light ground of the best"
        assert texts["30" if light == "1" else "1"] == "white"
        assert (tick_names(axes, "y"), tick_names(axes, "x")) == (["a", "b"], ["c", "d"])


def test_a_heat_map_rounds_no_accuracy_up_to_one() -> None:
    _, axes = canvas()
    heat_map(axes, [[0.995, 0.9995]], ["a"], ["c", "d"], higher_is_better=True)
    assert [text.get_text() for text in axes.texts] == ["0.995", "0.9995"]


def losses_drawn(monkeypatch: pytest.MonkeyPatch, path: Path, losses: dict[str, list[float]], **kind: Any) -> Axes:
    """Return the axes that losses are drawn on."""
    drawn: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        drawn.append(figure)
        return save(figure, path)

    monkeypatch.setattr(figures, "save", keep)
    loss_figure(losses, title="t", path=path, **kind)
    assert colours(path) > 30
    [axes] = drawn[0].axes
    assert (legend_of(axes), axes.get_title(loc="left")) == ([*losses], "t")
    return axes


def test_losses_have_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many marks as can be told apart."""
    losses = {"a": [0.6, 0.4, 0.3], "b": list(np.linspace(0.7, 0.1, 256)), "c": [0.5]}
    axes = losses_drawn(monkeypatch, tmp_path / "rows.png", losses)
    lines = [container.lines[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
    for (x, y, _), loss in zip(bars(axes), losses.values(), strict=True):
        assert (x, y) == (list(range(1, len(loss) + 1)), loss)
    assert len(losses["b"]) / lines[1].get_markevery() <= 32  # type: ignore[operator]


def test_losses_of_several_s_share_an_axis_and_have_their_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, half = (
        {"S = 1": [0.5], "S = 4": [0.6, 0.4, 0.3, 0.2]},
        {"S = 1": [None], "S = 4": [0.1, 0.2, 0.1, 0.05]},
    )
    axes = losses_drawn(monkeypatch, tmp_path / "loss.png", losses, bars=half, shared_axis=True)
    (one, _, none), (places, _, lengths) = bars(axes)
    assert (one, places) == ([0.5], [0.125, 0.375, 0.625, 0.875])
    assert lengths == pytest.approx(half["S = 4"]) and not none


def test_the_law_of_step_sizes(tmp_path: Path) -> None:
    path = tmp_path / "sizes.png"
    step_size_figure({0.9: [0.5, 0.25, 0.25], 1.0: [0.8, 0.1, 0.1]}, {0.9: [50, 26, 24]}, path)
    assert colours(path) > 30


# A table of the paper


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["1.0", "0.95"], [1, 0.95]),
        (["γ = 1.0", "γ = 0.9"], [1, 0.9]),
        (["1.5 → 1", "2 → 1"], [1.5, 2]),
        (["S_train = 1", "S_train = 256"], [1, 256]),
        (["-1", "2"], [-1, 2]),
        (["1", "random"], None),
        (["256 / 16", "1"], None),
        (["1 (repeat 64×)", "4"], None),
        (["1", "1.0"], None),
        (["1"], None),
        ([], None),
    ],
)
def test_rows_that_are_numbers(labels: list[str], numbers: list[float] | None) -> None:
    assert row_numbers(labels) == numbers


def test_numbers_become_curves_over_a_shared_axis() -> None:
    report = report_of(gammas())
    left, right = values_figure(report).axes
    assert left.get_shared_x_axes().joined(left, right)
    assert (left.get_ylabel(), right.get_ylabel(), right.get_xlabel()) == ("FID ↓", "fd_digits_cnn ↓", "γ")
    assert tick_names(right, "x") == ["0.8", "0.9", "1"]
    assert legend_of(right) == ["S = 1", "S = 2"]
    printed, ours = bars(left), bars(right)
    assert printed[0] == ([0.8, 0.9, 1.0], [13.0, 12.89, 21.31], [])
    for place, (x, y, lengths) in enumerate(ours):
        rows = [report.rows[index].cells[place].ours for index in (2, 1, 0)]
        assert x == pytest.approx([0.8, 0.9, 1.0], abs=0.005)
        assert y == pytest.approx([found.mean for found in rows])
        assert lengths == pytest.approx([found.half_width for found in rows])
    assert ours[0][0] != ours[1][0], "bars of two columns stand beside each other"


def test_values_of_the_papers_own_metric_share_its_scale() -> None:
    def panels(scale: Scale, value: float) -> list[Axes]:
        places = [
            (row.file, column.name, seed) for row in table.rows for column in table.columns for seed in (0, 1)
        ]
        return values_figure(build_report(table, scale, dict.fromkeys(places, value), {}, AROUND)).axes

    table = gammas()
    left, right = panels("paper", 100.0)
    assert left.get_ylim() == right.get_ylim()
    left, right = panels("digits", 100.0)
    assert left.get_ylim() != right.get_ylim()
    # A share of 1 is not drawn on the axis of percentages, where all of them would be one point.
    left, right = panels("paper", 0.5)
    assert left.get_ylim() != right.get_ylim()


def test_other_rows_are_listed_with_a_panel_for_each_metric() -> None:
    figure = values_figure(report_of(systems()))
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "FID ↓", "fid_digits ↓", "inception score ↑", "inception_score_digits ↑",
        "precision ↑", "precision_digits ↑", "recall ↑", "recall_digits ↑",
    ]  # fmt: skip
    assert legend_of(figure.axes[1]) == ["FID", "FID, CFG"]
    assert tick_names(figure.axes[0], "y") == ["CausalFusion-L", "CausalFusion-XL"]
    top, bottom = figure.axes[0].get_ylim()[1], figure.axes[0].get_ylim()[0]
    assert top < 0 < 1 < bottom, "the first row is the uppermost"
    x, y, _ = bars(figure.axes[0])[0]
    assert x == [5.12, 3.61]
    assert y == pytest.approx([0, 1], abs=0.2)


def nothing_printed(table: PaperTable, places: Container[int]) -> PaperTable:
    """Return a table that prints no values in some columns."""
    rows = tuple(
        row.model_copy(
            update={"printed": tuple(None if place in places else one for place, one in enumerate(row.printed))}
        )
        for row in table.rows
    )
    return table.model_copy(update={"rows": rows})


def test_metrics_without_printed_values_have_our_panel_alone() -> None:
    """Two of them share a line, and one stands beside the values of the only metric that is printed."""
    table = nothing_printed(systems(), (1, 2, 3, 5, 6, 7))
    figure = values_figure(report_of(table, lambda *_: 0.5))
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "FID ↓", "fid_digits ↓", "inception_score_digits ↑", "precision_digits ↑", "recall_digits ↑",
    ]  # fmt: skip
    assert [axes.get_title(loc="left")[:5] for axes in figure.axes] == ["paper", *["ours:"] * 4]
    columns = (Column(name="FID"), Column(name="recall", metric="recall"))
    plans = {"digits": ScalePlan(metrics={"fid": "fd", "recall": "recall"}, samples=5, seeds=(0, 1))}
    curves = nothing_printed(gammas(columns=columns, claims=(), scales=plans), (1,))
    figure = values_figure(report_of(curves, lambda *_: 0.5))
    assert [axes.get_ylabel() for axes in figure.axes] == ["FID ↓", "fd ↓", "recall ↑"]
    assert {axes.get_subplotspec().rowspan.start for axes in figure.axes} == {0}  # type: ignore[union-attr]
    for table in (nothing_printed(plane(), (0, 1, 2)), nothing_printed(gammas(), (0, 1))):
        [axes] = values_figure(report_of(table, lambda *_: 0.5)).axes
        assert axes.get_title(loc="left").startswith("ours:")
    places = {"digits": ScalePlan(metrics={"fid": "fd", "denoising_loss": "loss"}, samples=5, seeds=(0,))}
    names = ("S = 1", "S = 2", "S = 4", "loss, S = 1", "loss, S = 2", "loss, S = 4")
    metrics: list[Metric] = [*["fid"] * 3, *["denoising_loss"] * 3]  # type: ignore[list-item]
    both = plane().model_copy(
        update={
            "columns": tuple(Column(name=name, metric=metric) for name, metric in zip(names, metrics, strict=True)),
            "rows": tuple(row.model_copy(update={"printed": (*row.printed, *[None] * 3)}) for row in plane().rows),
            "scales": places,
        }
    )
    planes = planes_figure(report_of(both, lambda *_: 0.5)).axes
    assert [axes.get_title(loc="left") for axes in planes] == [
        "paper\nFID ↓", "ours, means\nfd ↓", "ours, means\nloss ↓",
    ]  # fmt: skip
    assert [tick_names(axes, "x") for axes in planes] == [["S = 1", "S = 2", "S = 4"]] * 3
    [alone] = planes_figure(report_of(nothing_printed(plane(), (0, 1, 2)), lambda *_: 0.5)).axes
    assert alone.get_title(loc="left") == "ours, means\nfd_digits_cnn ↓"


def test_claims_are_gains_with_the_interval_that_decides_them() -> None:
    """A panel for each metric, a line for each claim, a mark for each pair, coloured where it is decided."""
    report = report_of(losses(), lambda file, column, printed, seed: (printed or float(file[1:]) / 100) + seed / 50)
    by_fid, by_loss = claims_figure(report).axes
    assert (by_fid.get_xlabel(), by_loss.get_xlabel()) == ("gain in fd_digits_cnn", "gain in denoising_loss")
    assert by_fid.get_title(loc="left") == "by samples" and by_loss.get_title(loc="left") == "by held-out loss"
    assert tick_names(by_fid, "y") == ["S = 1: γ < 1 is better", "S = 2: γ = 0.9 gains from S = 2"]
    first, last = by_fid.get_yticks()
    assert by_fid.get_ylim()[1] < first < last < by_fid.get_ylim()[0], "the first claim is the uppermost"
    for axes, loss in ((by_fid, False), (by_loss, True)):
        pairs = [pair for claim in report.claims if claim.by_loss == loss for pair in claim.pairs]
        drawn = bars(axes)
        assert [x for [x], _, _ in drawn] == pytest.approx([pair.gain.mean for pair in pairs])
        assert [pair.verdict for pair in pairs][:2] == ["holds", "holds"]
        left, right = axes.get_xlim()
        assert left < min(0, *(x for [x], _, _ in drawn)) and max(0, *(x for [x], _, _ in drawn)) < right
        above, below = (y for _, [y], _ in drawn[:2])
        assert above < first < below, "the pairs of a claim stand around its name"
    assert [text.get_text() for text in by_loss.texts] == ["0.9 over 1.0", "0.8 over 1.0"]


def test_undecided_pairs_have_no_colour() -> None:
    report = report_of(losses(), noisy)
    verdicts = [pair.verdict for claim in report.claims if not claim.by_loss for pair in claim.pairs]
    assert set(verdicts) == {"undecided"}
    marks = [line for line in claims_figure(report).axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() for line in marks] == ["white"] * 3
    _, _, [half] = bars(claims_figure(report).axes[0])[0]
    assert half == pytest.approx(report.claims[0].pairs[0].gain.half_width)


def test_claims_without_values_are_not_drawn() -> None:
    assert has_claims(report_of(gammas()))
    assert not has_claims(report_of(gammas(), lambda *_: None))
    assert not has_claims(report_of(plane()))


def test_one_column_needs_no_legend() -> None:
    rows = tuple(Row(file=row.file, label=f"a {row.label}", printed=row.printed[:1]) for row in gammas().rows)
    figure = values_figure(report_of(gammas(rows=rows, columns=gammas().columns[:1], claims=())))
    assert [legend_of(axes) for axes in figure.axes] == [[], []]


def test_two_planes_beside_each_other() -> None:
    report = report_of(plane(), without=[("s256", seed) for seed in (0, 1, 2)])
    assert is_plane(report)
    assert not is_plane(report_of(gammas())), "two columns"
    assert not is_plane(report_of(systems())), "several metrics"
    paper, ours = planes_figure(report).axes
    assert [text.get_text() for text in paper.texts][:3] == ["13.8", "357", "405"]
    assert [text.get_text() for text in ours.texts][3:6] == ["–", "–", "–"]
    assert tick_names(paper, "y") == ["1", "256 / 16", "random"]
    assert paper.get_title(loc="left") == "paper\nFID ↓"


@pytest.mark.parametrize("rows", [0, 1])
def test_figures_of_few_values_are_no_error(tmp_path: Path, rows: int) -> None:
    curves, listed = gammas(seeds=[0]), plane()
    for table in (curves, listed):
        seeds = table.plan("digits").seeds
        measured = report_of(table, without=[(row.file, seed) for row in table.rows[rows:] for seed in seeds])
        assert colours(save(values_figure(measured), tmp_path / "f.png")) > 30
    assert colours(save(planes_figure(measured), tmp_path / "g.png")) > 30


# Training loss


def test_smoothing_is_a_mean_within_a_window() -> None:
    images = [10, 20, 30, 40, 100]
    loss = [1.0, 2.0, float("nan"), 4.0, 8.0]
    assert smoothed(images, loss, 20).tolist() == [1.5, 1.5, 3.0, 4.0, 8.0]
    assert smoothed(images, loss, 0)[:2].tolist() == [1.0, 2.0]
    assert math.isnan(smoothed(images, loss, 0)[2])
    assert smoothed(images, [3.0] * 5, 60).tolist() == [3.0] * 5


def test_a_line_is_the_mean_of_the_seeds_and_the_band_their_range() -> None:
    images = list(range(100, 10_100, 100))
    curves = {
        f"S = {s}": [(images, [level + seed * 0.1] * 100) for seed in (0, 1, 2)]
        for s, level in ((1, 0.5), (4, 0.2))
    }
    figure = training_loss_figure(curves, title="t")
    (axes,) = figure.axes
    assert legend_of(axes) == ["S = 1", "S = 4"]
    assert [float(np.asarray(line.get_ydata())[-1]) for line in axes.lines] == pytest.approx([0.6, 0.3])
    band = axes.collections[0].get_paths()[0].vertices
    assert (np.min(np.asarray(band)[:, 1]), np.max(np.asarray(band)[:, 1])) == pytest.approx((0.5, 0.7))
    assert axes.get_title(loc="left") == "t\naverages over 400 images; mean and range of 3 seeds"


def test_curves_end_where_the_shortest_seed_does() -> None:
    curves = {"a": [([0, 10, 20], [1.0, 1.0, 1.0]), ([0, 10], [3.0, 3.0])]}
    (axes,) = training_loss_figure(curves, title="t", window=0).axes
    x, y = axes.lines[0].get_data()
    assert (np.max(np.asarray(x)), set(np.asarray(y).tolist())) == (10, {2.0})


def test_the_fall_at_the_start_does_not_set_the_scale() -> None:
    images = np.arange(1, 1001) * 100
    loss = 0.2 + 5 * np.exp(-images / 500)
    (axes,) = training_loss_figure({"a": [(images.tolist(), loss.tolist())]}, title="t").axes
    assert axes.get_ylim()[1] < 0.5


def test_curves_without_points_are_left_out(tmp_path: Path) -> None:
    figure = training_loss_figure({"a": [([1, 2], [0.5, 0.4])], "b": [([], [])], "c": []}, title="t")
    assert legend_of(figure.axes[0]) == ["a"]
    assert colours(save(figure, tmp_path / "f.png")) > 20
    with pytest.raises(ValueError, match="no losses"):
        training_loss_figure({"a": [([], [])]}, title="t")
    with pytest.raises(ValueError, match="no finite loss"):
        training_loss_figure({"a": [([1, 2], [float("nan")] * 2)]}, title="t")
