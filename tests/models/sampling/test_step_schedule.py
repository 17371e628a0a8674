"""Diffusion steps that fall over AR steps (DiSA), and samples made with them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor
from typing import Any

import pytest
import torch

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, edit, keep_region, outpaint, sample
from causalfusion.sampling.step_schedule import StepSchedule, scheduled_steps

ModelMaker = Callable[..., CausalFusion]

DIFFUSION = DiffusionConfig()
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("schedule", "first", "last", "expected"),
    [
        ("constant", 50, 50, [50] * 5),
        # 5 + 45 · (1, ¾, ½, ¼, 0), rounded down.
        ("linear", 50, 5, [50, 38, 27, 16, 5]),
        # 5 + 45 · (1, .8536, .5, .1464, 0), rounded down.
        ("cosine", 50, 5, [50, 43, 27, 11, 5]),
        ("two_stage", 50, 5, [50, 50, 5, 5, 5]),
        ("linear", 7, 7, [7] * 5),
    ],
)
def test_five_ar_steps_by_hand(schedule: StepSchedule, first: int, last: int, expected: list[int]) -> None:
    assert list(scheduled_steps(schedule, first, last, 5)) == expected


def test_the_published_schedule_of_mar() -> None:
    """50 to 5 over 64 AR steps: the sums over AR steps of the authors' released code, run apart from this one."""
    sums = {name: sum(scheduled_steps(name, 50, 5, 64)) for name in ("linear", "cosine", "two_stage")}
    assert sums == {"linear": 1733, "cosine": 1729, "two_stage": 1760}


@pytest.mark.parametrize("num_ar_steps", [2, 3, 16, 64, 256])
def test_a_linear_schedule_is_the_straight_line_rounded_down(num_ar_steps: int) -> None:
    """In exact fractions. Products of floats may fall just below a whole number."""
    for first, last in ((50, 5), (250, 20), (3, 1), (100, 99)):
        line = [last + (first - last) * (1 - Fraction(k, num_ar_steps - 1)) for k in range(num_ar_steps)]
        assert list(scheduled_steps("linear", first, last, num_ar_steps)) == [floor(value) for value in line]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "two_stage"])
@pytest.mark.parametrize("num_ar_steps", [1, 2, 7, 16])
def test_steps_fall_from_the_first_to_the_last(schedule: StepSchedule, num_ar_steps: int) -> None:
    steps = scheduled_steps(schedule, 20, 4, num_ar_steps)
    assert len(steps) == num_ar_steps
    assert steps[0] == 20
    assert num_ar_steps == 1 or steps[-1] == 4
    assert list(steps) == sorted(steps, reverse=True)


def test_samples_are_those_of_the_list_of_steps(make_model: ModelMaker) -> None:
    """Bit for bit. The total that progress is counted against is that of the calls."""
    model, calls = make_model(), 0

    def count() -> None:
        nonlocal calls
        calls += 1

    falling = SamplingConfig(
        num_ar_steps=4, num_inference_steps=6, step_schedule="linear", last_inference_steps=2, guidance_scale=2.0
    )
    listed = SamplingConfig(num_ar_steps=4, num_inference_steps=(6, 4, 3, 2), guidance_scale=2.0)
    found = sample(model, LABELS, falling, DIFFUSION, seed=0, on_step=count)
    assert torch.equal(found, sample(model, LABELS, listed, DIFFUSION, seed=0))
    assert calls == falling.total_steps == listed.total_steps == 15


def test_a_constant_schedule_changes_nothing(make_model: ModelMaker) -> None:
    model = make_model()
    plain = SamplingConfig(num_ar_steps=3, num_inference_steps=3)
    level = SamplingConfig(num_ar_steps=3, num_inference_steps=3, step_schedule="linear", last_inference_steps=3)
    found = [sample(model, LABELS, config, DIFFUSION, seed=0) for config in (plain, level)]
    assert torch.equal(*found)


def test_edits_and_windows_fall_over_their_own_ar_steps(make_model: ModelMaker) -> None:
    """Where fewer tokens are generated than AR steps were asked for, the schedule spans those that are left."""
    model, config = (
        make_model(),
        SamplingConfig(num_ar_steps=12, num_inference_steps=3, step_schedule="cosine", last_inference_steps=1),
    )
    latents = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    calls: list[None] = []
    changed = edit(
        model, latents, keep_region("top", 8), LABELS, config, DIFFUSION, seed=1, on_step=lambda: calls.append(None)
    )
    assert torch.equal(changed[:, :, :4], latents[:, :, :4])
    assert len(calls) == sum(scheduled_steps("cosine", 3, 1, 8))
    wide = outpaint(model, LABELS, config, DIFFUSION, rows=4, columns=6, overlap=2, seed=0)
    assert wide.shape == (2, 1, 8, 12)
    assert bool(wide.isfinite().all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_schedule": "quadratic"}, "step_schedule must be one of .*'two_stage'.*, got 'quadratic'"),
        ({"step_schedule": "linear"}, "step_schedule linear falls from num_inference_steps 50 to .*give it too"),
        ({"last_inference_steps": 5}, "last_inference_steps 5 needs a step_schedule that falls: linear, cosine or"),
        ({"step_schedule": "linear", "last_inference_steps": 51}, r"must lie in \[1, 50\].*, got 51"),
        ({"step_schedule": "linear", "last_inference_steps": 0}, r"must lie in \[1, 50\].*, got 0"),
        (
            {"step_schedule": "cosine", "last_inference_steps": 2, "num_inference_steps": (4, 2)},
            "step_schedule cosine and a list of num_inference_steps both say",
        ),
    ],
)
def test_schedules_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**({"num_ar_steps": 2, "num_inference_steps": 50} | changes))
