"""Classifier-free guidance: its strength at each point of sampling, and where it is not computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.models.naive_sampling import generate, generator_of, picture, random_order, relative_error
from torch import Tensor, nn

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, sample
from causalfusion.sampling.guidance import GuidanceSchedule, guidance_scales

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]

DIFFUSION = DiffusionConfig()
LABELS = torch.tensor([0, 2, 1])
# ADM's 5 times of 1000: 999, 749.25, 499.5, 249.75 and 0, rounded (half to even).
TIMES = [999, 749, 500, 250, 0]


def samples(model: CausalFusion, classes: Tensor | None = None, **changes: Any) -> Tensor:
    options: dict[str, Any] = {"num_ar_steps": 3, "num_inference_steps": 5, "guidance_scale": 2.5}
    config = SamplingConfig(**(options | changes))
    return sample(model, LABELS if classes is None else classes, config, DIFFUSION, seed=0)


def rows_of_forwards(model: CausalFusion, **changes: Any) -> list[int]:
    """Return how many sequences went through the blocks in each forward pass while sampling."""
    rows: list[int] = []

    def count(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(len(inputs[0]))

    hook = model.blocks[0].register_forward_pre_hook(count)
    samples(model, **changes)
    hook.remove()
    return rows


def close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) < 1e-10 * float(other.abs().max())


def test_scale_one_is_the_class_alone(make_model: ModelMaker) -> None:
    """Bit for bit, and in as many rows: neither samples nor time are spent on guidance by 1."""
    model = make_model()
    conditional = samples(model, guidance_scale=1.0)
    for schedule in ("linear", "linear_ar"):
        assert torch.equal(samples(model, guidance_scale=1.0, guidance_schedule=schedule), conditional)
    # Three AR steps of five diffusion steps, the class tokens, and two finished steps.
    assert rows_of_forwards(model, guidance_scale=1.0) == [3] * (15 + 1 + 2)
    assert not close(samples(model), conditional)


def test_scale_zero_is_unconditional(make_model: ModelMaker) -> None:
    """ε = ε_null + w (ε_class − ε_null): w = 0 is the null class."""
    model = make_model()
    null = torch.full_like(LABELS, model.config.null_class)
    assert close(samples(model, guidance_scale=0.0), samples(model, null, guidance_scale=1.0))


@pytest.mark.parametrize("schedule", ["constant", "linear", "linear_ar"])
def test_guidance_of_the_null_class_changes_nothing(make_model: ModelMaker, schedule: str) -> None:
    """Both branches agree, so every scale gives the same samples."""
    model = make_model()
    null = torch.full_like(LABELS, model.config.null_class)
    found = samples(model, null, guidance_scale=4.0, guidance_schedule=schedule)
    assert close(found, samples(model, null, guidance_scale=1.0))


@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_the_null_class_is_the_row_after_the_last_class(make_model: ModelMaker, classes: int) -> None:
    """For every number of classes; no class's own row is taken for it."""
    model = make_model(num_classes=classes)
    labels = torch.tensor([0, classes - 1])
    guided = samples(model, labels)
    table = model.class_tokens.table.weight
    assert len(table) == classes + 1

    def with_changed(rows: list[int]) -> Tensor:
        before = table.detach().clone()
        with torch.no_grad():
            table[rows] = table[rows].flip(-1)
        found = samples(model, labels)
        with torch.no_grad():
            table.copy_(before)
        return found

    assert close(with_changed(list(range(1, classes - 1))), guided)
    for changed, rows in (([False, True], [classes - 1]), ([True, True], [classes])):
        found = with_changed(rows)
        expected = [True, True] if classes == 1 else changed
        assert [not close(*pair) for pair in zip(found, guided, strict=True)] == expected


def test_an_interval_over_all_times_is_plain_guidance(make_model: ModelMaker) -> None:
    model = make_model()
    plain = samples(model)
    assert torch.equal(samples(model, guidance_interval=(0, 1000)), plain)
    assert rows_of_forwards(model, guidance_interval=(0, 1000)) == rows_of_forwards(model) == [6] * 18


@pytest.mark.parametrize("interval", [(500, 500), (0, 0), (501, 749), (1000, 2000)])
def test_an_interval_that_catches_no_time_is_no_guidance(make_model: ModelMaker, interval: tuple[int, int]) -> None:
    """Bit for bit, and the null class never enters the network."""
    model = make_model()
    assert torch.equal(samples(model, guidance_interval=interval), samples(model, guidance_scale=1.0))
    assert rows_of_forwards(model, guidance_interval=interval) == [3] * 18


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((250, 749), [500, 250]),  # low is guided, high is not
        ((249, 750), [749, 500, 250]),
        ((251, 1000), [999, 749, 500]),
        ((0, 1), [0]),
        ((0, 999), [749, 500, 250, 0]),
    ],
)
def test_outside_the_interval_only_the_class_is_computed(
    make_model: ModelMaker, interval: tuple[int, int], guided: list[int]
) -> None:
    """Rows of each forward: 2 B in [low, high), B elsewhere; clean tokens are kept for both branches."""
    a_step = [6 if t in guided else 3 for t in TIMES]
    expected = [6, *a_step, 6, *a_step, 6, *a_step]
    assert rows_of_forwards(make_model(), guidance_interval=interval) == expected


def test_half_open_ends() -> None:
    assert guidance_scales(3.0, "constant", (250, 749), TIMES, 1.0) == [None, None, 3.0, 3.0, None]
    assert guidance_scales(3.0, "constant", (0, 1000), TIMES, 1.0) == [3.0] * 5


@pytest.mark.parametrize(
    ("schedule", "interval", "done", "expected"),
    [
        ("constant", None, 0.25, [5.0, 5.0, 5.0, 5.0, 5.0]),
        ("linear", None, 0.25, [None, 2.0, 3.0, 4.0, 5.0]),
        ("linear", (0, 600), 0.25, [None, None, 3.0, 4.0, 5.0]),
        ("linear_ar", None, 0.25, [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("linear_ar", None, 1.0, [5.0, 5.0, 5.0, 5.0, 5.0]),
        ("linear_ar", (500, 999), 0.5, [None, 3.0, 3.0, None, None]),
    ],
)
def test_schedules_by_hand(
    schedule: GuidanceSchedule, interval: tuple[int, int] | None, done: float, expected: list[float | None]
) -> None:
    """w = 5: from 1 to 5 over the diffusion steps, or 1 + 4 · share of the tokens; None is w = 1, not computed."""
    assert guidance_scales(5.0, schedule, interval, TIMES, done) == expected


def test_a_single_diffusion_step_of_a_linear_schedule_has_full_strength() -> None:
    assert guidance_scales(5.0, "linear", None, [0], 1.0) == [5.0]


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({"guidance_schedule": "linear"}, [[1.0, 1.75, 2.5]] * 3),
        # Of 16 tokens, 8, 12 and 16 are done at the end of each AR step.
        ({"guidance_schedule": "linear_ar"}, [[1.75] * 3, [2.125] * 3, [2.5] * 3]),
        ({"guidance_interval": (400, 999)}, [[1.0, 2.5, 1.0]] * 3),
        (
            {"guidance_schedule": "linear_ar", "guidance_interval": (0, 600)},
            [[1, 1.75, 1.75], [1, 2.125, 2.125], [1, 2.5, 2.5]],
        ),
    ],
)
@pytest.mark.parametrize("time", ["embedding", "token"])
def test_guided_sampling_equals_recomputing_everything(
    make_model: ModelMaker,
    naive: type[NaiveTransformer],
    changes: dict[str, Any],
    scales: list[list[float]],
    time: str,
) -> None:
    """Scales by hand, for both branches the whole sequence anew: to 1e-10 in float64.

    Under an interval, guided and unguided forwards share one cache.
    """
    model = make_model(time_conditioning=time)
    found = samples(model, num_ar_steps=1, step_sizes=(8, 4, 4), num_inference_steps=3, **changes)
    for index, label in enumerate(LABELS.tolist()):
        generator = generator_of(index, seed=0)
        order = random_order(generator)
        patches = generate(naive(model), label, order, [8, 4, 4], generator, steps=3, scales=scales)
        assert relative_error(found[index], picture(patches, model.config)) < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": -0.5}, "guidance_scale must not be negative, got -0.5"),
        ({"guidance_interval": (1, 2, 3)}, "guidance_interval must be two times, 0 ≤ low ≤ high, got"),
        ({"guidance_interval": (700, 300)}, "guidance_interval must be two times, 0 ≤ low ≤ high, got"),
        ({"guidance_interval": (-5, 0)}, "guidance_interval must be two times, 0 ≤ low ≤ high, got"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)  # type: ignore[arg-type]
