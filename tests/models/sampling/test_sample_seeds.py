"""A sample is decided by the seed and its index: not by its neighbours, or by how noise is moved to the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, draws, sample
from causalfusion.noise.samplers import SamplerName
from causalfusion.sampling import noise

ModelMaker = Callable[..., CausalFusion]

LABELS = torch.tensor([1, 0, 2, 1])


def samples(model: CausalFusion, config: SamplingConfig, indices: list[int], seed: int = 0) -> Tensor:
    """Sample those of the four samples."""
    return sample(model, LABELS[indices], config, DiffusionConfig(), seed=seed, indices=indices)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(num_inference_steps=4),
        SamplingConfig(num_ar_steps=3, num_inference_steps=4),
        SamplingConfig(num_ar_steps=3, num_inference_steps=4, guidance_scale=3.0),
        SamplingConfig(num_ar_steps=5, num_inference_steps=3, step_sizes="random", guidance_scale=3.0),
        SamplingConfig(num_ar_steps=2, num_inference_steps=4, guidance_scale=3.0, guidance_interval=(300, 800)),
        SamplingConfig(num_ar_steps=16, num_inference_steps=2, patch_order="dilated", order_block=2),
    ],
    ids=["diffusion", "ar", "guided", "random-sizes", "interval", "next-token"],
)
def test_a_sample_does_not_depend_on_its_neighbours(make_model: ModelMaker, config: SamplingConfig) -> None:
    """Sample i is the same alone, in a batch, in another order, and where two devices share the batch."""
    model = make_model()
    batch = samples(model, config, [0, 1, 2, 3])
    scale = float(batch.abs().max())
    for indices in ([0], [1], [3], [2, 1], [3, 0, 2]):
        torch.testing.assert_close(samples(model, config, indices), batch[indices], rtol=0, atol=1e-10 * scale)
    halves = torch.cat([samples(model, config, [0, 2]), samples(model, config, [1, 3])])
    torch.testing.assert_close(halves, batch[[0, 2, 1, 3]], rtol=0, atol=1e-10 * scale)
    assert float((batch[0] - batch[3]).abs().max()) > 1e-3 * scale  # the same class, another index


def test_indices_count_from_zero_unless_given(make_model: ModelMaker) -> None:
    model, config = make_model(), SamplingConfig(num_inference_steps=2)
    found = sample(model, LABELS, config, DiffusionConfig(), seed=0)
    assert torch.equal(found, samples(model, config, [0, 1, 2, 3]))


def test_the_seed_decides_the_samples(make_model: ModelMaker) -> None:
    model, config = make_model(), SamplingConfig(num_ar_steps=2, num_inference_steps=2)
    one, same, other = (samples(model, config, [0], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_state_of_torchs_own_generator_does_not_matter(make_model: ModelMaker) -> None:
    """Nor is it moved."""
    model, config = make_model(), SamplingConfig(num_ar_steps=2, num_inference_steps=3, step_sizes="random")
    found = []
    for state in (0, 1):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(samples(model, config, [0, 1]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_samples_do_not_depend_on_how_much_noise_is_drawn_together(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, chunk: int, sampler: SamplerName
) -> None:
    """Bit for bit, over AR steps with more and with fewer diffusion steps than a chunk has."""
    model = make_model(depth=1)
    config = SamplingConfig(
        step_sizes=(5, 1, 10), num_inference_steps=(20, 33, 2), guidance_scale=2.0, sampler=sampler
    )
    before = samples(model, config, [0, 1])
    monkeypatch.setattr(noise, "_NOISE_CHUNK", chunk)
    assert torch.equal(samples(model, config, [0, 1]), before)


def test_each_diffusion_and_ar_step_has_noise_of_its_own(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every drawn number enters once: no two steps, and no two samples, share their noise."""
    drawn: list[Tensor] = []
    randn_each = draws.randn_each

    def spy(generators: list[torch.Generator], *shape: int) -> Tensor:
        drawn.append(randn_each(generators, *shape))
        return drawn[-1]

    monkeypatch.setattr(draws, "randn_each", spy)
    samples(make_model(), SamplingConfig(num_ar_steps=4, num_inference_steps=20), [0, 1])
    assert len(drawn) == 4 * (1 + 19)  # x_T, then the noise of all steps but the last
    numbers = torch.cat([noise.flatten() for noise in drawn])
    assert len(numbers) == 2 * 16 * 4 * 20
    assert len(set(numbers.tolist())) > 0.999 * len(numbers)
    assert abs(float(numbers.mean())) < 4 / len(numbers) ** 0.5
