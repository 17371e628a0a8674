"""Several diffusion times for one image (Table 7), and padded sequences, against separate plain passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from causalfusion import CausalFusion, CausalFusionConfig, DiffusionConfig, Draws, Objective, ObjectiveConfig, draw
from causalfusion.objective import Loss

if TYPE_CHECKING:
    from tests.models.conftest import TrainingExample

ModelMaker = Callable[..., CausalFusion]
ExampleMaker = Callable[..., "TrainingExample"]
Gradients = dict[str, Tensor]
SIZES = [3, 1, 7, 5]


def run(
    model: CausalFusion, example: TrainingExample, predict: Callable[..., Tensor] | None = None, **options: Any
) -> tuple[Loss, Gradients]:
    """Return loss and gradients, of v-prediction with λ = 3 (whose weights are 3, 7/3, 5/3 and 1)."""
    objective = Objective(model, ObjectiveConfig(ar_weight=3.0, **options), DiffusionConfig(prediction="v"))
    loss = objective(predict or model, *example)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return loss, dict(zip(names, torch.autograd.grad(loss.weighted, parameters), strict=True))


def assert_same(found: tuple[Loss, Gradients], expected: tuple[Loss, Gradients]) -> None:
    """Compare in float64: a loss of about 3, and gradients of about 1."""
    torch.testing.assert_close(found[0].weighted, expected[0].weighted, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0].error_L, expected[0].error_L, rtol=1e-12, atol=0)
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-12, atol=1e-12)


def mean(results: list[tuple[Loss, Gradients]]) -> tuple[Loss, Gradients]:
    losses, gradients = zip(*results, strict=True)
    loss = Loss(
        weighted=torch.stack([loss.weighted for loss in losses]).mean(),
        error_L=torch.stack([loss.error_L for loss in losses]).mean(0),
    )
    return loss, {name: torch.stack([each[name] for each in gradients]).mean(0) for name in gradients[0]}


def with_draws(example: TrainingExample, times: Tensor, noise: Tensor) -> TrainingExample:
    return example._replace(drawn=dataclasses.replace(example.drawn, times=times, noise=noise))


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("per_step", [False, True])
def test_copies_that_are_alike_are_one_copy(
    make_model: ModelMaker, make_example: ExampleMaker, per_step: bool, copies: int
) -> None:
    model = make_model()
    one = make_example(model.config, SIZES, per_step=per_step)
    many = with_draws(one, one.drawn.times.repeat(1, copies, 1), one.drawn.noise.repeat(1, copies, 1, 1, 1))
    assert_same(run(model, many), run(model, one))


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, [16], [1] * 16])
def test_copies_are_separate_passes(
    make_model: ModelMaker, make_example: ExampleMaker, sizes: list[int], per_step: bool
) -> None:
    """Table 7, "4× t" and "8× t": clean tokens are computed once, and that is the only difference."""
    model = make_model()
    many = make_example(model.config, sizes, copies=4, per_step=per_step)
    times, noise = many.drawn.times, many.drawn.noise
    separate = [
        run(model, with_draws(many, times[:, copy : copy + 1], noise[:, copy : copy + 1])) for copy in range(4)
    ]
    assert_same(run(model, many), mean(separate))
    assert float(separate[0][0].mse) != pytest.approx(float(separate[1][0].mse), rel=1e-3)


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("copies", [1, 2])
def test_times_per_step_are_separate_passes(
    make_model: ModelMaker, make_example: ExampleMaker, copies: int
) -> None:
    """Table 7, "random per AR step": each step is that of a pass in which all steps have its diffusion time.

    Of the pass for step s only the predictions for step s have gradients.
    """
    model = make_model()
    example = make_example(model.config, SIZES, copies=copies, per_step=True)
    step_of = torch.tensor([step for step, size in enumerate(SIZES) for _ in range(size)])
    weights = torch.tensor([3, 7 / 3, 5 / 3, 1])[step_of]
    error_L = torch.zeros(16, dtype=torch.float64)
    gradients: Gradients = {}
    for step in range(len(SIZES)):
        own = (step_of == step).repeat(copies)

        def predict(*inputs: Tensor, own: Tensor = own) -> Tensor:
            out: Tensor = model(*inputs)
            return torch.where(own[:, None], out, out.detach())

        shared = with_draws(example, example.drawn.times[:, :, step : step + 1], example.drawn.noise)
        loss, part = run(model, shared, predict)
        error_L[step_of == step] = loss.error_L[step_of == step]
        gradients = {name: gradients.get(name, 0) + gradient for name, gradient in part.items()}
    expected = Loss(weighted=(weights * error_L).mean(), error_L=error_L)
    assert_same(run(model, example), (expected, gradients))


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("per_step", [False, True])
def test_what_the_model_is_given(
    make_model: ModelMaker, make_example: ExampleMaker, per_step: bool, copies: int
) -> None:
    """Noised patches copy after copy, each in visiting order; times per sample, per copy or per token."""
    model = make_model()
    latents, labels, drawn = make_example(model.config, SIZES, copies=copies, per_step=per_step)
    seen: list[Tensor] = []

    def predict(*inputs: Any, **named: Any) -> Tensor:
        seen.extend(inputs)
        return torch.zeros_like(inputs[0])

    Objective(model, ObjectiveConfig(), DiffusionConfig())(predict, latents, labels, drawn)
    noised, clean, positions, t = seen[:4]
    cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert noised.shape == (3, 16 * copies, 4)
    assert torch.equal(positions, drawn.orders)
    step_of = [step for step, size in enumerate(SIZES) for _ in range(size)]
    for b in range(3):
        for copy in range(copies):
            for token, position in enumerate(drawn.orders[b].tolist()):
                y, x = 2 * (position // 4), 2 * (position % 4)
                time = int(drawn.times[b, copy, step_of[token] if per_step else 0])
                x0 = latents[b, 0, y : y + 2, x : x + 2].flatten().numpy()
                noise = drawn.noise[b, copy, 0, y : y + 2, x : x + 2].flatten().numpy()
                expected = np.sqrt(cumprod[time]) * x0 + np.sqrt(1 - cumprod[time]) * noise
                np.testing.assert_allclose(noised[b, 16 * copy + token].numpy(), expected, rtol=0, atol=2e-6)
                if token < 11:
                    np.testing.assert_array_equal(clean[b, token].numpy(), x0)
                if per_step:
                    assert int(t[b, 16 * copy + token]) == time
                else:
                    assert int(t[b] if copies == 1 else t[b, copy]) == time


@pytest.mark.parametrize("multiple", [7, 64])
@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, {}),
        ({"time_conditioning": "token"}, {}),
        ({}, {"copies": 2}),
        ({}, {"copies": 2, "per_step": True}),
    ],
)
def test_padding_changes_nothing(
    make_model: ModelMaker,
    make_example: ExampleMaker,
    changes: dict[str, object],
    shape: dict[str, Any],
    multiple: int,
) -> None:
    """Sequences are as long as a multiple; loss and gradients are those of the sequences as they are."""
    model = make_model(**changes)
    for sizes in (SIZES, [16], [1] * 16):
        example = make_example(model.config, sizes, **shape)
        lengths: list[int] = []

        def predict(*inputs: Tensor, lengths: list[int] = lengths) -> Tensor:
            lengths.append(len(inputs[5]))
            out: Tensor = model(*inputs)
            return out

        plain = run(model, example, predict)
        assert_same(run(model, example, predict, sequence_multiple=multiple), plain)
        tokens = 2 + (16 - sizes[-1]) + ("time_conditioning" in changes) + 16 * shape.get("copies", 1)
        assert lengths == [tokens, tokens if sizes == [16] else -(-tokens // multiple) * multiple]


@pytest.mark.parametrize("time_sampling", ["shared", "per_step"])
@pytest.mark.parametrize("copies", [1, 4])
def test_draws(
    make_config: Callable[..., CausalFusionConfig], time_sampling: Literal["shared", "per_step"], copies: int
) -> None:
    """Shapes; and one batch of eight samples draws what two of four, or eight of one, draw."""
    config = make_config(in_channels=3)
    options = ObjectiveConfig(time_sampling=time_sampling, time_copies=copies, class_dropout=0.5, ar_decay=1.0)

    def drawn(samples: range) -> Draws:
        return draw(config, options, DiffusionConfig(), seed=7, step=4, samples=samples)

    whole = drawn(range(8))
    steps = len(whole.sizes)
    assert 1 < steps < 16
    assert whole.times.shape == (8, copies, 1 if time_sampling == "shared" else steps)
    assert whole.noise.shape == (8, copies, 3, 8, 8)
    assert len(set(whole.times.flatten().tolist())) > 0.8 * whole.times.numel()  # of 1000, few coincide
    assert len(set(whole.noise.flatten().tolist())) > 0.99 * whole.noise.numel()
    for size in (4, 2, 1):
        parts = [drawn(range(i, i + size)) for i in range(0, 8, size)]
        assert all(part.sizes == whole.sizes for part in parts)
        for name in ("orders", "times", "noise", "dropped"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
