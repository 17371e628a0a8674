"""Tables of our own questions, which the paper leaves open: what their rows sample, and of which weights."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from fractions import Fraction

import pytest
from tests.platform.config.paper_settings import MNIST_SAMPLES, experiment, flat
from tests.platform.config.test_table_experiments import KEYS, header
from tests.platform.config.trees import SHIPPED

from causalfusion import SamplingConfig
from causalfusion_platform.config.files import experiment_names
from causalfusion_platform.config.paper_table import load_table

WEIGHTS = {
    "question1": "table3c/lambda-2",
    "question2": "table3c/lambda-2",
    "question3": "table3b",
}
"""Whose trained weights the rows of a question sample. Those of Question 3: rows of the same name."""

ORDERS = {
    "raster": ("raster", 4),
    "block-8x8": ("blockwise", 4),
    "dilated": ("dilated", 2),
    "random": ("random", 4),
}
"""Row of Table 3b → order in training and block side or stride, on 8×8 tokens."""

Fall = Callable[[Fraction], Fraction | float]
FALLS: dict[str, Fall] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "two-stage": lambda x: 1.0 if x < Fraction(1, 2) else 0.0,
}
"""Schedule → share of the way from the last number of diffusion steps to the first, at x from 0 to 1."""
LAST = {10: 4, 25: 10}
"""Mean number of diffusion steps → number in the last AR step of a schedule that falls."""


def sampling(question: str, row: str) -> SamplingConfig:
    return experiment("mnist", f"{question}/{row}").sampling


def rows(question: str) -> list[str]:
    return [row.file for row in load_table(question).rows]


@pytest.mark.parametrize("question", WEIGHTS)
def test_a_question_is_ours_and_small(question: str) -> None:
    """It has no number of the paper, and no rows at its scale."""
    table = load_table(question)
    assert (table.source, set(table.scales)) == (f"Question {question[-1]}", {"mnist"})
    assert {value for row in table.rows for value in row.printed} == {None}
    assert table.claims and all(claim.ours for claim in table.claims)
    assert len({claim.says for claim in table.claims}) == len(table.claims)
    assert table.claims_at("mnist") == table.claims
    plan = table.plan("mnist")
    assert (plan.metrics, plan.samples) == ({"fid": "fd_data_cnn"}, MNIST_SAMPLES)
    assert (plan.seeds, plan.more_seeds) == ((0, 1, 2), (3, 4, 5))


@pytest.mark.parametrize("question", WEIGHTS)
def test_its_files_are_its_rows(question: str) -> None:
    files = {path.relative_to(SHIPPED / question).as_posix() for path in (SHIPPED / question).rglob("*.*")}
    assert files == {"table.yaml", *(f"mnist/{row}.yaml" for row in rows(question))}
    names = {f"{question}/mnist/{row}" for row in rows(question)}
    assert {name for name in experiment_names() if name.startswith(f"{question}/")} == names
    said = header(SHIPPED / question / "table.yaml")
    assert set(said) == set(KEYS)
    assert said["command"] == f"causalfusion reproduce {question} --scale mnist"
    for row in rows(question):
        of, path = experiment("mnist", f"{question}/{row}"), SHIPPED / question / "mnist" / f"{row}.yaml"
        assert of.name == f"{question}-mnist-{row}"
        assert path.read_text().startswith(f"# @package _global_\n# {of.description}.\n")
        said = header(path)
        assert list(said) == list(KEYS)
        reproduce = f"causalfusion reproduce {question} --scale mnist --rows {row}"
        assert said["command"] == f"{reproduce}\ncausalfusion train {question}/mnist/{row}"
        assert re.fullmatch(r"about [\d.]+ minutes a seed on one core \(two seeds at a time on two\)", said["cost"])
    for path in (SHIPPED / question).rglob("*.yaml"):
        assert all(len(line) <= 116 for line in path.read_text().splitlines()), path


@pytest.mark.parametrize("question", WEIGHTS)
def test_rows_sample_the_weights_of_a_table(question: str) -> None:
    """They differ from its row in their sampling alone, so that nothing is trained twice."""
    for row in rows(question):
        whose = WEIGHTS[question] if "/" in WEIGHTS[question] else f"{WEIGHTS[question]}/{row}"
        ours, theirs = (flat(experiment("mnist", name)) for name in (f"{question}/{row}", whose))
        changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        assert changed and all(key.startswith("sampling.") for key in changed), row


def test_question_1_has_two_numbers_of_evaluations() -> None:
    """32 and 128 evaluations of the network in 1, 2, 4 and 8 AR steps; the rows differ in nothing else."""
    places = {row: (sampling("question1", row).num_ar_steps, *sampling("question1", row).inference_steps)
              for row in rows("question1")}  # fmt: skip
    assert places == {f"s{s}-t{total // s}": (s, total // s) for total in (32, 128) for s in (1, 2, 4, 8)}
    labels = {row.file: row.label for row in load_table("question1").rows}
    assert labels == {row: f"{s} × {t}" for row, (s, t) in places.items()}
    common = {dataclasses.replace(sampling("question1", row), num_ar_steps=1, num_inference_steps=1)
              for row in places}  # fmt: skip
    assert len(common) == 1
    for claim, total in zip(load_table("question1").claims, (32, 128), strict=False):
        assert claim.better == (f"s1-t{total}",)
        assert claim.worse == tuple(f"s{s}-t{total // s}" for s in (2, 4, 8))


def scheduled(fall: Fall, first: int, last: int) -> list[int]:
    """Return the diffusion steps of 8 AR steps, by the formula of the schedules."""
    return [last + math.floor((first - last) * fall(Fraction(step, 7))) for step in range(8)]


@pytest.mark.parametrize("mean", LAST)
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "two-stage", "rising"])
def test_question_2_has_the_total_of_the_constant_schedule(name: str, mean: int) -> None:
    """As near as the first AR step's number allows. The rising one is the linear one in reverse."""
    found = sampling("question2", f"{name}-{mean}")
    assert found.num_ar_steps == 8
    steps = list(found.steps_of(8))
    if name == "constant":
        assert steps == [mean] * 8
        return
    fall = FALLS["linear" if name == "rising" else name]
    near = min(range(LAST[mean], 100), key=lambda first: abs(sum(scheduled(fall, first, LAST[mean])) - 8 * mean))
    expected = scheduled(fall, near, LAST[mean])
    assert (steps[::-1] if name == "rising" else steps) == expected
    assert f"{sum(steps)} evaluations" in header(SHIPPED / f"question2/mnist/{name}-{mean}.yaml")["shows"]


def test_question_3_samples_each_model_in_each_order() -> None:
    columns = load_table("question3").columns
    assert {column.ar_steps for column in columns} == {8}
    assert [(column.patch_order, column.order_block or 4) for column in columns] == list(ORDERS.values())
    for row, (order, block) in ORDERS.items():
        of = experiment("mnist", f"question3/{row}")
        assert (of.objective.patch_order, of.objective.order_block) == (order, block)
        assert (of.objective.ar_decay, of.objective.ar_weight, of.sampling.num_ar_steps) == (0.9, 1.0, 8)
    assert rows("question3") == list(ORDERS)
