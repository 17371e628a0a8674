"""Figures of sweeps, and which trial is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rcParams
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from tests.platform.report.pages import colours

from causalfusion_platform.report.canvas import save
from causalfusion_platform.report.sweeps.figures import history_figure, pareto_figure, pareto_front, slices_figure
from causalfusion_platform.report.sweeps.parallel_coordinates import parallel_coordinates_figure
from causalfusion_platform.report.sweeps.records import Mode, TrialRecord, best_of, metric_of, ranked, swept_keys

NAN = float("nan")


def trial(
    name: str, fd: float | None, values: Mapping[str, Any] | None = None, status: str = "finished", **others: float
) -> TrialRecord:
    return TrialRecord(name, values or {}, {"fd": fd, **others}, status)


# Ranks


def test_trials_are_ranked_by_the_metric_finished_ones_first() -> None:
    trials = [
        trial("none", None),
        trial("early", 0.5, status="ended early"),
        trial("high", 3.0),
        trial("nan", NAN),
        trial("low", 1.0),
        trial("low too", 1.0),
    ]
    assert [one.name for one in ranked(trials, "fd", "min")] == ["low", "low too", "high", "early", "none", "nan"]
    assert [one.name for one in ranked(trials, "fd", "max")] == ["high", "low", "low too", "early", "none", "nan"]
    assert best_of(trials, "fd", "min") is trials[4]
    assert best_of(trials, "fd", "max") is trials[2]
    assert best_of(trials[:2], "fd", "min") is None
    assert best_of([], "fd", "min") is None
    assert metric_of(trials[3], "fd") is None
    assert metric_of(trials[4], "other") is None


def test_swept_keys_are_those_that_differ() -> None:
    trials = [
        trial("a", 1, {"x.a": 1, "x.b": [1], "x.c": 5, "seed": 0}),
        trial("b", 1, {"x.a": 1, "x.b": [2], "x.c": 5, "seed": 1}),
        trial("c", 1, {"x.a": 1, "x.b": [2], "x.c": 5, "x.d": None, "seed": 2}),
        trial("d", 1, {"x.a": 1, "x.b": [2], "x.c": 5, "x.d": 3, "seed": 2}),
    ]
    assert swept_keys(trials) == ["x.b", "x.d"]


# Parallel coordinates


def sweep() -> list[TrialRecord]:
    return [
        trial("a", 5.0, {"lr": 1e-4, "order": "raster"}),
        trial("b", 3.0, {"lr": 1e-3, "order": "random"}),
        trial("c", None, {"lr": 1e-2, "order": "random"}, "failed"),
        trial("d", 1.0, {"lr": 1e-2, "order": "raster"}, "ended early"),
    ]


def lines_of(figure: Figure) -> LineCollection:
    (lines,) = (found for found in figure.axes[0].collections if isinstance(found, LineCollection))
    return lines


@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_finished_trial_is_a_line_from_its_metric_through_its_values(mode: Mode) -> None:
    """The first axis runs over the metric. The others share its height, from their lowest value to the highest."""
    trials = [
        trial("a", 5.0, {"x.lr": 1e-4, "order": "raster"}),
        trial("b", 3.0, {"x.lr": 1e-3, "order": "random"}),
        trial("c", 4.0, {"x.lr": 1e-2}),
        *sweep()[2:],
    ]
    before = {**rcParams, "backend": ""}
    figure = parallel_coordinates_figure(trials, ["x.lr", "order"], "fd", mode, title="t")
    assert {**rcParams, "backend": ""} == before, "Optuna's settings stay its own"
    axes, lines = figure.axes[0], lines_of(figure)
    found = {segment[0][1]: segment[1:, 1].tolist() for segment in lines.get_segments()}
    assert found == {5: [3, 3], 3: [4, 4], 4: [5, 5]}, "order in the order of appearance; lr on a log axis"
    widths, ends = np.asarray(lines.get_linewidth()), [segment[0][1] for segment in lines.get_segments()]
    best = 3.0 if mode == "min" else 5.0
    assert ends[int(np.argmax(widths))] == best
    lines.update_scalarmappable()
    brightness = dict(zip(ends, np.asarray(lines.get_color())[:, :3].sum(axis=1), strict=True))
    assert sorted(brightness, key=brightness.__getitem__) == sorted(ends, reverse=mode == "max"), "better is darker"
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [f"fd {'↓' if mode == 'min' else '↑'}", "order", "lr"]
    (order,) = (one for one in figure.axes if [t.get_text() for t in one.get_yticklabels()][:1] == ["raster"])
    assert [label.get_text() for label in order.get_yticklabels()] == ["raster", "random", "–"]
    assert {one.get_yscale() for one in figure.axes} == {"linear", "log"}
    name = "b" if mode == "min" else "a"
    assert f"thick: {name}; 2 not finished are left out" in axes.get_title(loc="left")


def test_one_finished_trial_has_no_parallel_coordinates() -> None:
    with pytest.raises(ValueError, match="two finished trials"):
        parallel_coordinates_figure(sweep()[1:], ["lr"], "fd", "min", title="t")


# Slices


def test_a_sweep_of_one_key_with_seeds_is_a_curve() -> None:
    key = "objective.ar_decay"
    trials = [trial("t", 10 * gamma + seed, {key: gamma, "seed": seed}) for gamma in (1.0, 0.9) for seed in (0, 2)]
    (axes,) = slices_figure(trials, [key], "fd", "min", title="t").axes
    curve = max(axes.lines, key=lambda line: len(np.asarray(line.get_xdata())))
    assert np.asarray(curve.get_xdata()).tolist() == [0.9, 1.0]
    assert np.asarray(curve.get_ydata()).tolist() == pytest.approx([10, 11])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ar_decay", "fd ↓")


def test_every_key_has_a_panel() -> None:
    figure = slices_figure(sweep(), ["lr", "order"], "fd", "min", title="t")
    lr, order = figure.axes
    assert (lr.get_xlabel(), order.get_xlabel()) == ("lr", "order")
    assert [label.get_text() for label in order.get_xticklabels()] == ["raster", "random"]
    marks = [np.asarray(line.get_xydata()).tolist() for line in order.lines]
    points = {tuple(mark[0]) for mark in marks if len(mark) == 1}
    assert points == {(0, 5), (1, 3)}, "only trials that finished"
    five = slices_figure(sweep(), ["lr"] * 5, "fd", "min", title="t")
    assert [axes.axison for axes in five.axes] == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("values", "names", "places"),
    [
        ([None, 16, 4.0], ["4", "16", "null"], {1: 2, 2: 1, 3: 0}),
        ([1000.1, 1000.2, None], ["1000.1", "1000.2", "null"], {1: 0, 2: 1, 3: 2}),
        ([True, False, True], ["true", "false"], {1: 0, 2: 1, 3: 0}),
        ([[1, 2], "x", "only"], ["[1, 2]", "x", "only"], {1: 0, 2: 1, 3: 2}),
    ],
)
def test_categories_lie_beside_each_other_numbers_first(
    values: list[Any], names: list[str], places: dict[int, int]
) -> None:
    trials = [trial("t", fd, {"key": value}) for fd, value in enumerate(values, start=1)]
    (axes,) = slices_figure(trials, ["key"], "fd", "min", title="t").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    marks = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert {int(mark[0][1]): mark[0][0] for mark in marks if len(mark) == 1} == places


# History


def test_the_best_so_far_never_gets_worse() -> None:
    values = [5.0, 3.0, None, 4.0, 1.0, 2.0]
    trials = [trial("t", value, status="failed" if value is None else "finished") for value in values]
    trials[4] = trial("4", 1.0, status="ended early")
    (axes,) = history_figure(trials, "fd", "min", title="t").axes
    legend = axes.get_legend()
    assert legend is not None
    line = next(line for line in axes.lines if line.get_label() == "best so far")
    assert np.asarray(line.get_ydata()).tolist() == [5, 3, 3, 3, 3, 2]
    (axes,) = history_figure(trials, "fd", "max", title="t").axes
    line = next(line for line in axes.lines if line.get_label() == "best so far")
    assert np.asarray(line.get_ydata()).tolist() == [5] * 6
    assert "pale: not trained to the end; dashed: no result" in axes.get_title(loc="left")


def test_nothing_is_best_before_the_first_result() -> None:
    (axes,) = history_figure([trial("a", None, status="failed"), trial("b", 2.0)], "fd", "min", title="t").axes
    line = next(line for line in axes.lines if line.get_label() == "best so far")
    first, second = np.asarray(line.get_ydata()).tolist()
    assert math.isnan(first)
    assert second == 2


# Trade-offs


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12), st.sampled_from(["min", "max"]))
def test_the_front_is_what_no_other_beats(points: list[tuple[float, float]], mode: Any) -> None:
    sign = 1 if mode == "min" else -1
    for place, (x, y) in enumerate(points):
        beaten = any(sign * a <= sign * x and b >= y and (a, b) != (x, y) for a, b in points)
        assert (place in pareto_front(points, (mode, "max"))) == (not beaten)


def test_a_front_is_named() -> None:
    trials = [trial("a", 1.0, speed=1.0), trial("b", 2.0, speed=5.0), trial("c", 3.0, speed=4.0)]
    trials.append(trial("d", 0.1, status="failed", speed=9.0))
    (axes,) = pareto_figure(trials, ("fd", "min"), ("speed", "max"), title="t").axes
    assert {text.get_text() for text in axes.texts} == {"a", "b"}
    assert "red: 2 of 3 trials" in axes.get_title(loc="left")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("fd ↓", "speed ↑")
    (axes,) = pareto_figure([], ("fd", "min"), ("speed", "max"), title="t").axes
    assert list(axes.texts) == []


def test_figures_show_something(tmp_path: Path) -> None:
    figures = [
        parallel_coordinates_figure(sweep(), ["lr", "order"], "fd", "min", title="t"),
        slices_figure(sweep(), ["lr", "order"], "fd", "min", title="t"),
        history_figure(sweep(), "fd", "min", title="t"),
        pareto_figure(sweep(), ("fd", "min"), ("fd", "max"), title="t"),
    ]
    for figure in figures:
        assert colours(save(figure, tmp_path / "f.png")) > 30
