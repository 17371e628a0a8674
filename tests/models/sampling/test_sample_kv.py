"""Sampling over the KV cache against recomputing everything: one sample at a time, no cache, explicit masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from tests.models.naive_sampling import GRID, generate, generator_of, picture, random_order, relative_error

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, sample
from causalfusion.attention.cache import KVCache
from causalfusion.noise.diffusion import Prediction

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]

LABELS, INDICES, SEED = [2, 0], [5, 11], 3
SIZES = {1: [16], 2: [8, 8], 3: [6, 5, 5], 4: [4] * 4, 8: [2] * 8, 16: [1] * 16}
# Every second patch of every second row first, then the patches to the right of them, then those below.
DILATED = [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]


def worst_error(
    model: CausalFusion,
    naive: type[NaiveTransformer],
    config: SamplingConfig,
    diffusion: DiffusionConfig,
    sizes: list[int],
) -> float:
    """Return the largest relative difference between `sample` and the plain loop, over two samples."""
    found = sample(model, torch.tensor(LABELS), config, diffusion, seed=SEED, indices=INDICES)
    assert found.dtype == torch.float64
    steps, errors = config.num_inference_steps, []
    for i, (label, index) in enumerate(zip(LABELS, INDICES, strict=True)):
        generator = generator_of(index, SEED)
        order = {"dilated": DILATED, "raster": list(range(GRID**2))}.get(config.patch_order)
        patches = generate(
            naive(model),
            label,
            random_order(generator) if order is None else order,
            sizes,
            generator,
            steps=steps if isinstance(steps, int) else list(steps),
            scales=config.guidance_scale,
            diffusion=diffusion,
        )
        errors.append(relative_error(found[i], picture(patches, model.config)))
    return max(errors)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("order", ["random", "dilated"])
@pytest.mark.parametrize("ar_steps", [1, 2, 4, 8, 16])
def test_cached_sampling_equals_recomputing_everything(
    make_model: ModelMaker, naive: type[NaiveTransformer], ar_steps: int, order: str, guidance: float
) -> None:
    """In float64, to 1e-10: S = 1 is a diffusion model, S = L generates one token a step."""
    config = SamplingConfig(
        num_ar_steps=ar_steps,
        num_inference_steps=3,
        guidance_scale=guidance,
        patch_order=order,  # type: ignore[arg-type]
        order_block=2,
    )
    assert worst_error(make_model(), naive, config, DiffusionConfig(), SIZES[ar_steps]) < 1e-10


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("ar_steps", [1, 3])
def test_a_time_token(
    make_model: ModelMaker, naive: type[NaiveTransformer], ar_steps: int, guidance: float
) -> None:
    """The time token sees the class tokens and itself, and is not kept in the cache."""
    model = make_model(time_conditioning="token")
    config = SamplingConfig(num_ar_steps=ar_steps, num_inference_steps=3, guidance_scale=guidance)
    assert worst_error(model, naive, config, DiffusionConfig(), SIZES[ar_steps]) < 1e-10


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_what_the_network_predicts(
    make_model: ModelMaker, naive: type[NaiveTransformer], prediction: Prediction, variance: str
) -> None:
    diffusion = DiffusionConfig(prediction=prediction, variance=variance)  # type: ignore[arg-type]
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=3, guidance_scale=1.5)
    assert worst_error(make_model(), naive, config, diffusion, SIZES[3]) < 1e-10


def test_other_sizes_and_diffusion_steps(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    """Own sizes, each with its own number of diffusion steps, and repeated class tokens."""
    model = make_model(class_token_repeat=2, in_channels=2)
    config = SamplingConfig(step_sizes=(9, 1, 6), num_inference_steps=(4, 1, 2), patch_order="raster")
    assert worst_error(model, naive, config, DiffusionConfig(), [9, 1, 6]) < 1e-10


@pytest.mark.usefixtures("attention_form")
def test_both_forms_of_attention(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=2, guidance_scale=2.0)
    model = make_model(time_conditioning="token")
    assert worst_error(model, naive, config, DiffusionConfig(), SIZES[3]) < 1e-10


def test_noise_of_many_diffusion_steps(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    """More diffusion steps than have their noise brought to the device at once; the next AR step follows on."""
    config = SamplingConfig(num_ar_steps=2, num_inference_steps=20)
    assert worst_error(make_model(depth=1), naive, config, DiffusionConfig(), SIZES[2]) < 1e-10


@pytest.mark.parametrize(("ar_steps", "time"), [(1, "embedding"), (4, "embedding"), (4, "token")])
def test_the_cache_is_allocated_once_and_holds_finished_steps_only(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, ar_steps: int, time: str
) -> None:
    """One memory for all steps and both branches; what the last step made, and time tokens, are not kept."""
    caches: list[KVCache] = []
    stores = []
    start, store = KVCache.__init__, KVCache.store

    def spy_start(self: KVCache, depth: int, capacity: int) -> None:
        start(self, depth, capacity)
        caches.append(self)

    def spy_store(self: KVCache, like: torch.Tensor) -> torch.Tensor:
        memory = store(self, like)
        stores.append(memory.data_ptr())
        return memory

    monkeypatch.setattr(KVCache, "__init__", spy_start)
    monkeypatch.setattr(KVCache, "store", spy_store)
    config = SamplingConfig(num_ar_steps=ar_steps, num_inference_steps=3, guidance_scale=2.0)
    sample(make_model(time_conditioning=time), torch.tensor(LABELS), config, DiffusionConfig(), seed=0)
    (cache,) = caches
    assert len(set(stores)) == 1
    assert cache.length == 2 + 16 - 16 // ar_steps
