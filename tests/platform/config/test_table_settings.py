"""What each row of a table trains: exactly the paper's settings, and no setting beside those that it varies."""

from __future__ import annotations

from collections import defaultdict

import pytest
from tests.platform.config.paper_numbers import PRINTED, scales_of
from tests.platform.config.paper_settings import (
    DIGITS,
    IMAGENET,
    MNIST,
    MNIST_RECIPE,
    TABLE_9,
    TABLE_10,
    experiment,
    flat,
    settings,
)

from causalfusion import count_parameters
from causalfusion_platform.config.paper_table import SCALES, Scale
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.train.rates import learning_rate_at, warmup_images

OF_DIT = ("class_tokens", "class_token_repeat", "position_embedding", "qk_norm", "time_conditioning")
"""Settings of a CausalFusion that a DiT does not have."""


def rows(scale: Scale) -> list[str]:
    return list(settings(scale))


def test_a_row_has_these_settings_and_no_others(subtests: pytest.Subtests) -> None:
    for scale in SCALES:
        for row in rows(scale):
            with subtests.test(scale=scale, row=row):
                check_settings(scale, row)


def check_settings(scale: Scale, row: str) -> None:
    base, changes = settings(scale)[row]
    expected = base | changes
    assert set(expected) == set(base)  # a change of a key that no test looks at would go unseen
    if expected["model.architecture"] == "dit":
        expected = {key: value for key, value in expected.items() if key.removeprefix("model.") not in OF_DIT}
    found = flat(experiment(scale, row))
    assert {key: found.get(key, "missing") for key in expected} == expected


def test_all_rows_are_looked_at() -> None:
    """And all that decides what is trained: model, objective, diffusion and optimizer."""
    for scale in SCALES:
        there = {(table, row) for table in PRINTED for row in PRINTED[table] if scale in scales_of(table, row)}
        assert set(rows(scale)) == {f"{table}/{row}" for table, row in there}
    found = flat(experiment("paper", "table3c/lambda-2"))
    decisive = {
        key for key in found if key.split(".")[0] in ("model", "objective", "diffusion", "optim", "sampling")
    }
    unseen = {"optim.ema_more_decays", "optim.ema_power", "objective.sequence_multiple"}
    unseen |= {"model.text", "objective.text", "optim.schedule", "optim.min_lr"}
    assert decisive - set(TABLE_9) == unseen
    assert not found["optim.ema_power"] and found["objective.sequence_multiple"] is None
    assert found["model.text"] is None and found["objective.text"] is None
    assert (found["optim.schedule"], found["optim.min_lr"]) == ("constant", 0)
    assert set(TABLE_9) == set(TABLE_10) == set(DIGITS) == set(MNIST)


# Identical rows


SAME = [
    {"table1/all", "table2/s-1", "figure4/s-1"},
    {"table2/s-2", "figure4/s-2"},
    {"table2/s-4", "figure4/s-4"},
    {"table2/s-8", "figure4/s-8"},
    {"table2/s-256", "figure4/s-256"},
    {"table2/random", "table3a/gamma-1.0", "figure4/random"},
    {"table3a/gamma-0.9", "table3b/random", "table3c/lambda-1"},
    {"table3c/lambda-2", "table7/shared", "table8/tokens-4"},
]
"""Rows of different tables that are one training, by the paper's numbers and text."""
SAME_ON_PAPER = [{"table1/dit", "table6b/dit"}, {"table8/tokens-64", "table6b/causalfusion"}]
"""Table 6b has its own images on digits."""
SAME_ON_DIGITS = [{"table6a/causalfusion", "figure5/causalfusion"}]
"""Figure 5's model is XL at paper scale, and Table 6a's on two cores."""
SAME_AT: dict[Scale, list[set[str]]] = {
    "mnist": SAME + SAME_ON_PAPER + SAME_ON_DIGITS,
    "digits": SAME_ON_DIGITS,
    "paper": SAME + SAME_ON_PAPER,
}


@pytest.mark.parametrize("scale", SCALES)
def test_one_training_resolves_to_one_experiment(scale: Scale) -> None:
    """All keys but name and description are equal within a set, and differ between any two others."""
    found = defaultdict(set)
    for row in rows(scale):
        found[repr(sorted(flat(experiment(scale, row)).items()))].add(row)
    groups = list(found.values())
    same = SAME_AT[scale]
    assert sorted(map(sorted, (group for group in groups if len(group) > 1))) == sorted(map(sorted, same))
    assert len(groups) == len(rows(scale)) - sum(len(group) - 1 for group in same)


def test_rows_of_one_training_have_one_printed_number() -> None:
    """With one AR step, where every table but Figure 4's has its first column; 6b prints one decimal."""
    for group in (*SAME, *SAME_ON_PAPER):
        firsts = {PRINTED[row.split("/")[0]][row.split("/")[1]][0] for row in group if "figure4" not in row}
        numbers = sorted(float(number) for number in firsts if number is not None)
        assert numbers[-1] - numbers[0] < 0.05, group


@pytest.mark.parametrize("scale", SCALES)
def test_a_row_is_named_after_its_file(scale: Scale) -> None:
    names = {experiment(scale, row).name for row in rows(scale)}
    assert names == {"-".join((row.split("/")[0], scale, row.split("/")[1])) for row in rows(scale)}
    assert all(experiment(scale, row).description for row in rows(scale))


# Sizes and schedules


PARAMETERS = [
    ("table1/dit", 458, 458),
    ("table1/in-context", 305, 305),
    ("table1/new-recipe", 305, 305),
    ("table1/t-embedding", 308, 308),
    ("table1/qk-norm", 308, 308),
    ("table1/lr-warmup", 308, 308),
    ("table1/all", 308, 308),
    ("table8/tokens-4", 308, 308),
    ("table8/tokens-16", 320, 320),
    ("table8/repeat-1x64", 305, 305),
    ("table8/repeat-4x16", 308, 308),
    ("table6b/dit", 458, 458),
    # No reading of the paper's settings has the printed number:
    ("table8/tokens-64", 368, 369),
    ("table6b/causalfusion", 368, 369),
    ("table6b/causalfusion-x0", 368, 370),
    ("table4/l", 368, 370),
    ("table4/xl", 676, 714),
    ("table4/xl-512", 676, 715),
    ("table5/h", 1000, 1045),  # printed as 1B
]
"""Row, millions of parameters that are printed, and millions here."""


def test_parameters_in_millions(subtests: pytest.Subtests) -> None:
    for row, printed, here in PARAMETERS:
        with subtests.test(row=row):
            assert round(count_parameters(experiment("paper", row).model) / 1e6) == here
            assert abs(here / printed - 1) < 0.06


NATIVE = ("table1/dit", "table1/in-context", "table6b/dit")
"""Rows of DiT's own recipe, which has no warmup."""
NOT_WARMED = ("table1/new-recipe", "table1/t-embedding", "table1/qk-norm")


def test_steps_and_learning_rates_of_the_paper(subtests: pytest.Subtests) -> None:
    """150,137 steps of 2,048 images for 240 epochs, 25,000 of warmup, 8e-4: also where t's copies cut the batch."""
    for row in rows("paper"):
        with subtests.test(row=row):
            check_rates_of_the_paper(row)


def check_rates_of_the_paper(row: str) -> None:
    of = experiment("paper", row)
    native, system = row in NATIVE, row[:6] in ("table4", "table5")
    assert of.train.steps == (1_201_095 if native else 500_456 if system else 150_137)
    assert of.learning_rate == pytest.approx(1e-4 if native else 8e-4, rel=1e-12)
    warmed = 0 if native or row in NOT_WARMED else 25_000
    assert warmup_images(of, IMAGENET) / of.train.global_batch_size == pytest.approx(warmed, rel=1e-3)
    assert learning_rate_at(of, of.train.images, IMAGENET) == of.learning_rate


def test_steps_and_learning_rates_on_mnist(subtests: pytest.Subtests) -> None:
    """As many steps and the same rates in every row, also where t's copies cut the batch."""
    images, batch = MNIST_RECIPE["train.images"], MNIST_RECIPE["train.global_batch_size"]
    assert images % batch == 0
    warmed = MNIST_RECIPE["optim.warmup_images"] / batch
    for row in rows("mnist"):
        with subtests.test(row=row):
            of = experiment("mnist", row)
            check_small_rates(of, images // batch, MNIST_RECIPE["optim.base_lr"] * batch / 256)
            cold = row in (*NATIVE, *NOT_WARMED)
            assert of.optim.warmup_images / of.train.global_batch_size == (0 if cold else warmed)
            assert learning_rate_at(of, of.train.images, 4500) == of.learning_rate


def test_steps_and_learning_rates_on_digits(subtests: pytest.Subtests) -> None:
    longer = {"table6a": 1000, "figure5": 1000, "table6b": 800}
    for row in rows("digits"):
        with subtests.test(row=row):
            of = experiment("digits", row)
            check_small_rates(of, longer[row.split("/")[0]], 4e-3)
            assert of.optim.warmup_images / of.train.global_batch_size == (0 if row in NATIVE else 50)
            assert of.train.checkpoint_every_images >= of.train.images  # one checkpoint, at the end


def check_small_rates(of: Experiment, steps: int, learning_rate: float) -> None:
    assert of.train.steps == steps
    assert of.learning_rate == pytest.approx(learning_rate, rel=1e-12)
    assert of.train.num_workers == 1 and of.train.cpus_per_worker == 0.5
    assert of.train.sample_every_images > of.train.images  # no grids on the way
