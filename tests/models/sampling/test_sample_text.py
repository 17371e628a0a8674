"""Drawing from prompts of mixed lengths over the KV cache against recomputing everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.models.naive_sampling import generate, generator_of, picture, random_order, relative_error
from tests.models.random_models import randomised
from tests.models.text.conftest import text_config

from causalfusion import CausalFusion, DiffusionConfig, Prompts, SamplingConfig, build_model, edit, outpaint, sample

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

PROMPTS = [(1, 4, 9, 2), (1, 7, 7, 3, 5, 2), (), (1, 2)]
INDICES, SEED = [5, 11, 2, 7], 3
SIZES = {1: [16], 3: [6, 5, 5], 16: [1] * 16}


def make(**changes: Any) -> CausalFusion:
    model = randomised(build_model(text_config(**changes)))
    assert isinstance(model, CausalFusion)
    return model


@pytest.mark.parametrize("time_conditioning", ["embedding", "token"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("ar_steps", [1, 3, 16])
def test_each_sample_equals_one_that_is_drawn_alone_without_a_cache(
    naive: type[NaiveTransformer], ar_steps: int, guidance: float, time_conditioning: str
) -> None:
    """The second branch of guidance has no text at all."""
    model = make(time_conditioning=time_conditioning)
    config = SamplingConfig(num_ar_steps=ar_steps, num_inference_steps=3, guidance_scale=guidance)
    found = sample(model, Prompts.of(PROMPTS), config, DiffusionConfig(), seed=SEED, indices=INDICES)
    for row, (prompt, index) in enumerate(zip(PROMPTS, INDICES, strict=True)):
        generator = generator_of(index, SEED)
        order = random_order(generator)
        patches = generate(naive(model), prompt, order, SIZES[ar_steps], generator, steps=3, scales=guidance)
        assert relative_error(found[row], picture(patches, model.config)) < 1e-10


def test_a_transfusion_draws_in_one_ar_step(naive: type[NaiveTransformer]) -> None:
    model = make(architecture="transfusion")
    config = SamplingConfig(num_inference_steps=3, guidance_scale=2.0)
    found = sample(model, Prompts.of(PROMPTS[:1]), config, DiffusionConfig(), seed=SEED, indices=[5])
    generator = generator_of(5, SEED)
    order = random_order(generator)
    patches = generate(naive(model), PROMPTS[0], order, [16], generator, steps=3, scales=2.0)
    assert relative_error(found[0], picture(patches, model.config)) < 1e-10


def test_samples_do_not_depend_on_the_padding_of_their_neighbours() -> None:
    model, config = make(), SamplingConfig(num_ar_steps=2, num_inference_steps=2, guidance_scale=1.5)
    together = sample(model, Prompts.of(PROMPTS), config, DiffusionConfig(), seed=SEED, indices=INDICES)
    for row, prompt in enumerate(PROMPTS):
        alone = sample(model, Prompts.of([prompt]), config, DiffusionConfig(), seed=SEED, indices=[INDICES[row]])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-10)


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    model = make()
    plain, guided = (
        sample(
            model,
            Prompts.of(PROMPTS),
            SamplingConfig(num_inference_steps=2, guidance_scale=1.0, guidance_schedule=schedule),
            DiffusionConfig(),
            seed=0,
        )
        for schedule in ("constant", "linear")
    )
    assert torch.equal(plain, guided)


def test_a_text_changes_only_the_edited_region_and_the_new_canvas() -> None:
    """Edits and outpainting take text in place of classes. Another text gives another result there."""
    model, config = make(), SamplingConfig(num_ar_steps=2, num_inference_steps=2)
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = torch.zeros(8, 8, dtype=torch.bool)
    keep[:, :4] = True
    results = [
        edit(model, latents, keep, Prompts.of([prompt] * 2), config, DiffusionConfig(), seed=0)
        for prompt in PROMPTS[:2]
    ]
    for result in results:
        torch.testing.assert_close(result[..., :4], latents[..., :4], rtol=0, atol=0)
    assert (results[0] - results[1])[..., 4:].abs().min() > 0
    wide = [
        outpaint(
            model,
            Prompts.of([prompt]),
            config,
            DiffusionConfig(),
            rows=4,
            columns=6,
            overlap=2,
            latents=latents[:1],
            seed=0,
        )
        for prompt in PROMPTS[:2]
    ]
    torch.testing.assert_close(wide[0][..., :8], latents[:1], rtol=0, atol=0)
    assert (wide[0] - wide[1])[..., 8:].abs().min() > 0


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (torch.tensor([0]), "draws images from text: give prompts"),
        (Prompts.of([(1,) * 8]), "a prompt has 8 tokens, but the model takes at most 7"),
        (Prompts.of([(1, 11)]), r"text tokens must lie in \[0, 10\], got 11"),
        (Prompts(torch.ones(1, 2, dtype=torch.int64), torch.tensor([2]), torch.tensor([0])), "no classes"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(condition: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(make(), condition, SamplingConfig(), DiffusionConfig(), seed=0)


def test_prompts_of_a_model_of_classes_are_refused(make_model: Callable[..., CausalFusion]) -> None:
    with pytest.raises(ValueError, match="no text: give labels"):
        sample(make_model(), Prompts.of([(1, 2)]), SamplingConfig(), DiffusionConfig(), seed=0)
    with pytest.raises(ValueError, match="need as many indices, got 3"):
        sample(make(), Prompts.of(PROMPTS), SamplingConfig(), DiffusionConfig(), seed=0, indices=[0, 1, 2])
    with pytest.raises(ValueError, match=r"lengths of prompts must lie in \[0, 2\]"):
        Prompts(torch.ones(1, 2, dtype=torch.int64), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"tokens \(B, T\) and lengths \(B,\)"):
        Prompts(torch.ones(2, dtype=torch.int64), torch.tensor([1, 1]))
