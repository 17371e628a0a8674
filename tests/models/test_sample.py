"""Sampling: the KV cache against recomputing everything, guidance, and seeds per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, sample
from causalfusion.draws import stream
from causalfusion.ordering import blockwise_order

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]
Array = npt.NDArray[np.float64]

DIFFUSION = DiffusionConfig()


def naive_epsilon(
    transformer: NaiveTransformer,
    label: int,
    done: list[tuple[Array, list[int]]],
    x: Array,
    here: list[int],
    t: int,
) -> Array:
    """Predict ε of one AR step by a pass over [class | clean tokens of each finished step | noised]."""
    parts = [transformer.class_tokens(label)]
    rank = [-1] * len(parts[0])  # class tokens come before the first step
    for step, (patches, positions) in enumerate(done):
        parts.append(transformer.image_tokens(patches, positions))
        rank += [step] * len(positions)
    parts.append(transformer.image_tokens(x, here, t))
    rank += [len(done)] * len(here)
    visible = [[other <= own for other in rank] for own in rank]
    return transformer.predict(transformer.run_blocks(np.concatenate(parts), visible)[-len(here) :])


def naive_sample(
    transformer: NaiveTransformer,
    label: int,
    *,
    index: int,
    seed: int,
    sizes: list[int],
    steps: int,
    guidance: float,
) -> Array:
    """Generate one sample without batch or cache: every diffusion step recomputes the whole sequence."""
    config = transformer.config
    generator = stream(seed, "generated sample", index)
    order = torch.randperm(config.num_tokens, generator=generator).tolist()
    scheduler = DIFFUSION.scheduler()
    scheduler.set_timesteps(steps)
    done: list[tuple[Array, list[int]]] = []
    for size in sizes:
        first = sum(len(positions) for _, positions in done)
        here = order[first : first + size]
        x = torch.randn(1, size, config.token_dim, generator=generator).double()
        for t in scheduler.timesteps.tolist():
            epsilon = naive_epsilon(transformer, label, done, x[0].numpy(), here, t)
            if guidance != 1.0:
                null = naive_epsilon(transformer, config.null_class, done, x[0].numpy(), here, t)
                epsilon = null + guidance * (epsilon - null)
            x = scheduler.step(torch.from_numpy(epsilon)[None], t, x, generator=generator).prev_sample
        done.append((x[0].numpy(), here))

    side, channels, p = config.input_size, config.in_channels, config.patch_size
    image = np.full((channels, side, side), np.nan)
    for patches, positions in done:
        for values, position in zip(patches, positions, strict=True):
            y, x0 = divmod(position, side // p)
            block = values.reshape(p, p, channels)
            for c in range(channels):
                image[c, y * p : (y + 1) * p, x0 * p : (x0 + 1) * p] = block[:, :, c]
    return image


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("ar_steps", [1, 3, 16])
def test_cached_sampling_equals_recomputing_everything(
    make_model: ModelMaker, naive: type[NaiveTransformer], ar_steps: int, guidance: float
) -> None:
    """In float64, to 1e-10: S = 1 is a diffusion model, S = L generates one token a step."""
    model = make_model()
    labels, indices = [2, 0], [5, 11]
    config = SamplingConfig(num_ar_steps=ar_steps, num_inference_steps=3, guidance_scale=guidance)
    found = sample(model, torch.tensor(labels), config, DIFFUSION, seed=3, indices=indices)
    sizes = {1: [16], 3: [6, 5, 5], 16: [1] * 16}[ar_steps]
    for i in range(2):
        expected = naive_sample(
            naive(model), labels[i], index=indices[i], seed=3, sizes=sizes, steps=3, guidance=guidance
        )
        error = np.abs(found[i].double().numpy() - expected).max() / np.abs(expected).max()
        assert error < 1e-10


def test_a_float64_model_samples_in_float64(make_model: ModelMaker) -> None:
    """Otherwise no comparison could be tighter than float32; smaller models sample in float32."""
    config = SamplingConfig(num_ar_steps=2, num_inference_steps=2)
    labels = torch.tensor([0, 1])
    model = make_model()
    assert sample(model, labels, config, DIFFUSION, seed=0).dtype == torch.float64
    assert sample(model.float(), labels, config, DIFFUSION, seed=0).dtype == torch.float32
    assert sample(model.bfloat16(), labels, config, DIFFUSION, seed=0).dtype == torch.float32


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_sample_does_not_depend_on_its_neighbours(make_model: ModelMaker, guidance: float) -> None:
    """Sample i is the same alone, in a batch, and in a batch in another order."""
    model = make_model()
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=4, guidance_scale=guidance)
    labels = torch.tensor([1, 0, 2, 1])

    def samples(indices: list[int]) -> torch.Tensor:
        return sample(model, labels[indices], config, DIFFUSION, seed=0, indices=indices).double()

    batch = sample(model, labels, config, DIFFUSION, seed=0).double()
    scale = float(batch.abs().max())
    for indices in ([0], [1], [3], [2, 1], [3, 0, 2]):
        torch.testing.assert_close(samples(indices), batch[indices], rtol=0, atol=1e-10 * scale)
    assert float((batch[0] - batch[3]).abs().max()) > 1e-3 * scale  # the same class, another index


def test_the_seed_decides_the_samples(make_model: ModelMaker) -> None:
    model, config = make_model(), SamplingConfig(num_ar_steps=2, num_inference_steps=2)
    one, same, other = (sample(model, torch.tensor([1]), config, DIFFUSION, seed=s) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_class_decides_the_sample(make_model: ModelMaker) -> None:
    """With and without guidance; all else is shared by the index."""
    model = make_model()
    for guidance in (1.0, 2.0):
        config = SamplingConfig(num_ar_steps=2, num_inference_steps=2, guidance_scale=guidance)
        one, other = (sample(model, torch.tensor([label]), config, DIFFUSION, seed=0) for label in (0, 1))
        assert not torch.allclose(one, other, atol=1e-3)


def test_guidance_at_scale_zero_is_unconditional(make_model: ModelMaker) -> None:
    """ε = ε_null + w (ε_class − ε_null): w = 0 is the null class."""
    model = make_model()
    labels = torch.tensor([0, 2])
    zero = SamplingConfig(num_ar_steps=3, num_inference_steps=4, guidance_scale=0.0)
    one = SamplingConfig(num_ar_steps=3, num_inference_steps=4)
    found = sample(model, labels, zero, DIFFUSION, seed=0)
    null = torch.full_like(labels, model.config.null_class)
    expected = sample(model, null, one, DIFFUSION, seed=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_guidance_of_the_null_class_changes_nothing(make_model: ModelMaker) -> None:
    """Both branches agree, so every scale gives the same samples."""
    model = make_model()
    null = torch.tensor([model.config.null_class])
    found = [
        sample(
            model,
            null,
            SamplingConfig(num_ar_steps=2, num_inference_steps=3, guidance_scale=scale),
            DIFFUSION,
            seed=0,
        )
        for scale in (1.0, 4.0)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10 * float(found[0].abs().max()))


def test_own_sizes_replace_equal_ones(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    """Any split can be sampled; equal sizes are the default."""
    model = make_model()
    labels, config = torch.tensor([1]), SamplingConfig(num_ar_steps=4, num_inference_steps=3)
    default = sample(model, labels, config, DIFFUSION, seed=0)
    assert torch.equal(default, sample(model, labels, config, DIFFUSION, seed=0, sizes=[4, 4, 4, 4]))
    sizes = [9, 1, 6]
    found = sample(model, labels, config, DIFFUSION, seed=0, sizes=sizes)[0].double().numpy()
    expected = naive_sample(naive(model), 1, index=0, seed=0, sizes=sizes, steps=3, guidance=1.0)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-10


@pytest.mark.parametrize("order", ["raster", "blockwise"])
def test_the_patch_order_decides_what_the_first_step_generates(
    make_model: ModelMaker, order: Literal["raster", "blockwise"]
) -> None:
    """What the first AR step makes does not depend on how the rest is split."""
    model = make_model()
    config = SamplingConfig(num_inference_steps=3, patch_order=order, order_block=2)
    one, other = (
        model.patchify(sample(model, torch.tensor([1]), config, DIFFUSION, seed=0, sizes=sizes))[0]
        for sizes in ([4, 12], [4, 3, 9])
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


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0], [[0, 1]]])
def test_labels_outside_the_class_table_are_refused(make_model: ModelMaker, labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels must be one-dimensional and lie in \[0, 3\]"):
        sample(make_model(), torch.tensor(labels), SamplingConfig(), DIFFUSION, seed=0)


@pytest.mark.parametrize("sizes", [[8, 7], [16, 0], [17, -1], [4, 4, 4, 5]])
def test_sizes_that_do_not_fit_are_refused(make_model: ModelMaker, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="step sizes must be positive and add up to 16"):
        sample(make_model(), torch.tensor([0]), SamplingConfig(), DIFFUSION, seed=0, sizes=sizes)


def test_more_steps_than_tokens_are_refused(make_model: ModelMaker) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[1, 16\]"):
        sample(make_model(), torch.tensor([0]), SamplingConfig(num_ar_steps=17), DIFFUSION, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_ar_steps": 0}, "num_ar_steps must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"guidance_scale": -0.5}, "guidance_scale must not be negative"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)  # type: ignore[arg-type]


def test_defaults_are_the_papers() -> None:
    """Section 6 and Table 9: one AR step, 250 diffusion steps."""
    assert (SamplingConfig().num_ar_steps, SamplingConfig().num_inference_steps) == (1, 250)
