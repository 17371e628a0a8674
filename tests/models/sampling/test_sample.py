"""Sampling: where on the plane, in which order, of which law; DiT too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
from tests.models.naive_sampling import (
    adm_times,
    generate,
    generator_of,
    picture,
    random_order,
    relative_error,
    reverse_step,
)
from tests.models.random_models import random_dit

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, sample
from causalfusion.draws import stream
from causalfusion.factorization.ordering import blockwise_order
from causalfusion.factorization.steps import random_step_sizes

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]

DIFFUSION = DiffusionConfig()


def test_a_float64_model_samples_in_float64(make_model: ModelMaker) -> None:
    """Otherwise no comparison could be tighter than float32; smaller models sample in float32."""
    config = SamplingConfig(num_ar_steps=2, num_inference_steps=2)
    labels = torch.tensor([0, 1])
    model = make_model()
    assert sample(model, labels, config, DIFFUSION, seed=0).dtype == torch.float64
    assert sample(model.float(), labels, config, DIFFUSION, seed=0).dtype == torch.float32
    assert sample(model.bfloat16(), labels, config, DIFFUSION, seed=0).dtype == torch.float32


def test_the_class_decides_the_sample(make_model: ModelMaker) -> None:
    """With and without guidance; all else is shared by the index."""
    model = make_model()
    for guidance in (1.0, 2.0):
        config = SamplingConfig(num_ar_steps=2, num_inference_steps=2, guidance_scale=guidance)
        one, other = (sample(model, torch.tensor([label]), config, DIFFUSION, seed=0) for label in (0, 1))
        assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(("steps", "sizes"), [(1, [16]), (3, [6, 5, 5]), (4, [4, 4, 4, 4]), (16, [1] * 16)])
def test_equal_sizes_are_the_default(make_model: ModelMaker, steps: int, sizes: list[int]) -> None:
    """By hand: larger steps first; the same samples as with these sizes given."""
    config = SamplingConfig(num_ar_steps=steps, num_inference_steps=2)
    assert config.sizes(16, seed=0) == sizes
    own = SamplingConfig(step_sizes=tuple(sizes), num_inference_steps=2)
    assert own.sizes(16, seed=0) == sizes
    one, other = (sample(make_model(), torch.tensor([1]), c, DIFFUSION, seed=0) for c in (config, own))
    assert torch.equal(one, other)


def test_random_sizes_are_those_of_training(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    """Cut at random by a stream of the seed's own, the same for all samples; the seed changes them."""
    config = SamplingConfig(num_ar_steps=4, num_inference_steps=2, step_sizes="random")
    expected = [random_step_sizes(16, 4, stream(seed, "generated split")) for seed in range(20)]
    assert [config.sizes(16, seed=seed) for seed in range(20)] == expected
    assert len({tuple(sizes) for sizes in expected}) > 10
    model = make_model()
    found = sample(model, torch.tensor([1, 2]), config, DIFFUSION, seed=7)
    for index, label in enumerate((1, 2)):
        generator = generator_of(index, seed=7)
        order = random_order(generator)
        patches = generate(naive(model), label, order, expected[7], generator, steps=2)
        assert relative_error(found[index], picture(patches, model.config)) < 1e-10


@pytest.mark.parametrize("order", ["raster", "blockwise"])
def test_the_patch_order_decides_what_the_first_step_generates(
    make_model: ModelMaker, order: Literal["raster", "blockwise"]
) -> None:
    """What the first AR step makes does not depend on how the rest is split."""
    model = make_model()
    one, other = (
        model.patchify(
            sample(
                model,
                torch.tensor([1]),
                SamplingConfig(num_inference_steps=3, patch_order=order, order_block=2, step_sizes=sizes),
                DIFFUSION,
                seed=0,
            )
        )[0]
        for sizes in ((4, 12), (4, 3, 9))
    )
    visited = blockwise_order(4, 2) if order == "blockwise" else torch.arange(16)
    same = (one - other).abs().amax(dim=1) < 1e-9 * float(one.abs().max())
    assert set(same.nonzero().flatten().tolist()) == set(visited[:4].tolist())


def test_a_model_that_predicts_zero_samples_a_known_normal_law(make_model: ModelMaker) -> None:
    """With ε̂ = 0 the reverse step from t to t' is x_t' = √(ᾱ_t'/ᾱ_t) x_t + √(1 − ᾱ_t/ᾱ_t') z.

    From x_T ~ N(0, 1), the variance follows v ← v ᾱ_t'/ᾱ_t + 1 − ᾱ_t/ᾱ_t'.
    """
    model = make_model()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    config = SamplingConfig(num_ar_steps=2, num_inference_steps=10)
    found = sample(model, torch.zeros(60, dtype=torch.int64), config, DIFFUSION, seed=0)

    cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    variance = 1.0
    for t in range(999, 0, -111):
        ratio = cumprod[t] / cumprod[t - 111]
        variance = variance / ratio + 1 - ratio
    variance /= cumprod[0]  # t = 0 adds no noise
    numbers = found.numel()
    assert abs(float(found.square().mean()) / variance - 1) < 4 * np.sqrt(2 / numbers)
    assert abs(float(found.mean())) < 4 * np.sqrt(variance / numbers)


def test_shapes(make_model: ModelMaker) -> None:
    model = make_model(in_channels=3)
    config = SamplingConfig(num_ar_steps=2, num_inference_steps=2)
    found = sample(model, torch.tensor([0, 1, 2]), config, DIFFUSION, seed=0)
    assert found.shape == (3, 3, 8, 8)
    assert bool(found.isfinite().all())
    nothing = sample(model, torch.empty(0, dtype=torch.int64), config, DIFFUSION, seed=0)
    assert nothing.shape == (0, 3, 8, 8)


@pytest.mark.parametrize(("guidance", "interval"), [(1.0, None), (2.5, None), (2.5, (250, 749))])
@torch.no_grad()
def test_a_dit_is_sampled_in_one_ar_step(guidance: float, interval: tuple[int, int] | None) -> None:
    """A plain loop over the DiT's own forward, both branches apart, to 1e-10."""
    model, labels = random_dit(), [2, 0]
    config = SamplingConfig(num_inference_steps=5, guidance_scale=guidance, guidance_interval=interval)
    found = sample(model, torch.tensor(labels), config, DIFFUSION, seed=0)
    nothing = torch.empty(1, 0, 4, dtype=torch.float64)
    for index, label in enumerate(labels):
        generator = generator_of(index, seed=0)
        order = random_order(generator)
        places = torch.tensor([order])
        x, times = torch.randn(16, 4, generator=generator).double().numpy(), adm_times(5)
        for t, before in zip(times, [*times[1:], None], strict=True):
            conditional, null = (
                model(torch.from_numpy(x)[None], nothing, places, torch.tensor([t]), torch.tensor([y]))[0].numpy()
                for y in (label, 3)
            )
            z = np.zeros_like(x) if before is None else torch.randn(16, 4, generator=generator).double().numpy()
            guided = interval is None or t in (250, 500)
            out = null + (guidance if guided else 1.0) * (conditional - null)
            x = reverse_step(DIFFUSION, t, before, x, out, z)
        expected = picture(dict(zip(order, x, strict=True)), model.config)
        assert relative_error(found[index], expected) < 1e-10


def test_a_dit_has_no_ar_steps() -> None:
    with pytest.raises(ValueError, match=r"DiT takes the 16 tokens of a sample at once, got 8: use num_ar_steps 1"):
        config = SamplingConfig(num_ar_steps=2, num_inference_steps=2)
        sample(random_dit(), torch.tensor([0]), config, DIFFUSION, seed=0)


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0], [[0, 1]]])
def test_labels_outside_the_class_table_are_refused(make_model: ModelMaker, labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels must be one-dimensional and lie in \[0, 3\]"):
        sample(make_model(), torch.tensor(labels), SamplingConfig(), DIFFUSION, seed=0)


def test_too_few_indices_are_refused(make_model: ModelMaker) -> None:
    with pytest.raises(ValueError, match="2 labels need as many indices, got 1"):
        sample(make_model(), torch.tensor([0, 1]), SamplingConfig(), DIFFUSION, seed=0, indices=[4])


@pytest.mark.parametrize("sizes", [(8, 7), (17,), (4, 4, 4, 5)])
def test_sizes_that_do_not_fit_are_refused(make_model: ModelMaker, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="step sizes must be positive and add up to 16"):
        sample(make_model(), torch.tensor([0]), SamplingConfig(step_sizes=sizes), DIFFUSION, seed=0)


@pytest.mark.parametrize("sizes", ["equal", "random"])
def test_more_steps_than_tokens_are_refused(make_model: ModelMaker, sizes: Literal["equal", "random"]) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[1, 16\], got 17"):
        config = SamplingConfig(num_ar_steps=17, step_sizes=sizes)
        sample(make_model(), torch.tensor([0]), config, DIFFUSION, seed=0)


@pytest.mark.parametrize(
    "changes", [{"num_ar_steps": 3}, {"num_ar_steps": 3, "step_sizes": "random"}, {"step_sizes": (9, 6, 1)}]
)
def test_diffusion_steps_for_another_number_of_ar_steps_are_refused(
    make_model: ModelMaker, changes: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="num_inference_steps names 2 AR steps, but there are 3"):
        config = SamplingConfig(num_inference_steps=(4, 2), **changes)  # type: ignore[arg-type]
        sample(make_model(), torch.tensor([0]), config, DIFFUSION, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_ar_steps": 0}, "num_ar_steps must be at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"num_inference_steps": (3, 0)}, r"num_inference_steps must be at least 1, got \(3, 0\)"),
        ({"num_inference_steps": ()}, "num_inference_steps must be at least 1"),
        ({"step_sizes": "equals"}, "step_sizes must be equal, random or a list of sizes, got 'equals'"),
        ({"step_sizes": (16, 0)}, r"step_sizes must be positive, got \[16, 0\]"),
        ({"step_sizes": (17, -1)}, r"step_sizes must be positive, got \[17, -1\]"),
        ({"step_sizes": ()}, r"step_sizes must be positive, got \[\]"),
        ({"step_sizes": (8, 8), "num_ar_steps": 3}, "step_sizes names 2 AR steps, but num_ar_steps is 3"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)  # type: ignore[arg-type]


def test_own_sizes_may_repeat_their_number() -> None:
    """num_ar_steps may be left out, or agree; lists, as configuration files have them, become tuples."""
    for steps in (1, 2):
        config = SamplingConfig(step_sizes=[10, 6], num_ar_steps=steps, num_inference_steps=[3, 4])  # type: ignore[arg-type]
        assert config.sizes(16, seed=0) == [10, 6]
        assert (config.step_sizes, config.inference_steps) == ((10, 6), (3, 4))


def test_defaults_are_the_papers() -> None:
    """Section 6 and Table 9: one AR step, 250 diffusion steps of DDPM, no guidance."""
    config = SamplingConfig()
    assert (config.num_ar_steps, config.num_inference_steps, config.sampler) == (1, 250, "ddpm")
    assert (config.guidance_scale, config.guidance_interval) == (1.0, None)
