"""Recorded forward passes against `sample`: bit for bit where the same keys are read, else to rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.random_models import random_dit
from tests.models.sampling.replay import OperatorReplay
from torch import Tensor

from causalfusion import (
    CausalFusion,
    DiffusionConfig,
    DiT,
    Prompts,
    SamplingConfig,
    TextConfig,
    sample,
)
from causalfusion.baselines.transfusion import Transfusion
from causalfusion.sampling.recorded import CudaGraphs, Recording, Recordings

ModelMaker = Callable[..., CausalFusion]

DIFFUSION = DiffusionConfig()
BATCHES = [(torch.tensor([1, 0, 2]), 3), (torch.tensor([2, 2, 0]), 4)]
"""Labels and seeds of two batches of one shape."""


def both(
    model: CausalFusion | DiT, config: SamplingConfig, recordings: Recordings, labels: Tensor | Prompts, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the samples of recorded forward passes, and those of `sample` without them."""
    found = sample(model, labels, config, DIFFUSION, seed=seed, recordings=recordings)
    return found, sample(model, labels, config, DIFFUSION, seed=seed)


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({}, 1),
        ({"guidance_scale": 2.5}, 1),
        # Steps of 6, 5 and 5 tokens at three lengths, and as clean tokens two of them.
        ({"num_ar_steps": 3, "guidance_scale": 2.5}, 3 + 2),
        # Times 999, 666, 333 and 0: guided and unguided passes, for each length.
        ({"num_ar_steps": 2, "guidance_scale": 2.5, "guidance_interval": (300, 700)}, 2 * 2 + 1),
        ({"num_ar_steps": 2, "guidance_scale": 2.5, "guidance_schedule": "linear_ar", "sampler": "unipc"}, 2 + 1),
        ({"num_ar_steps": 2, "sampler": "dpm-solver++"}, 2 + 1),
    ],
    ids=["diffusion", "guided", "ar", "interval", "unipc", "solver"],
)
def test_a_recording_for_each_length_gives_the_same_bits(
    make_model: ModelMaker, changes: dict[str, Any], made: int
) -> None:
    """The second batch, of other labels and another seed, is made by the recordings of the first."""
    model, recordings = make_model().float(), Recordings(OperatorReplay(), keys_multiple=1)
    config = SamplingConfig(**({"num_inference_steps": 4} | changes))
    for labels, seed in BATCHES:
        assert torch.equal(*both(model, config, recordings, labels, seed))
        assert recordings.made == made


@pytest.mark.parametrize("time", ["embedding", "token"])
@pytest.mark.parametrize(("multiple", "made"), [(64, 3), (8, 3 + 2 * 2)])
def test_few_recordings_serve_all_lengths(make_model: ModelMaker, time: str, multiple: int, made: int) -> None:
    """Up to the hidden keys' effect on rounding, in float64. Next-token generation needs three recordings.

    Noised and clean tokens with the masked keys of a multiple, and the last step, which fills the cache.
    """
    model, recorder = make_model(time_conditioning=time), OperatorReplay()
    recordings = Recordings(recorder, keys_multiple=multiple)
    config = SamplingConfig(num_ar_steps=16, num_inference_steps=2, guidance_scale=2.0)
    for labels, seed in BATCHES:
        found, expected = both(model, config, recordings, labels, seed)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    assert recordings.made == recorder.recorded == made
    assert recorder.replayed == 2 * (16 * 2 + 15)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_prompts_of_all_lengths_share_recordings(make_model: ModelMaker, guidance: float) -> None:
    """Each batch is padded to the longest prompt that the model takes, and padding changes nothing but rounding."""
    model = make_model(text=TextConfig(vocabulary=11, max_tokens=6), class_tokens=0)
    recordings = Recordings(OperatorReplay())
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=2, guidance_scale=guidance)
    for texts in ([[1, 2, 3], [4]], [[5, 6, 7, 8, 9, 10], []], [[3, 3], [4, 1]]):
        found, expected = both(model, config, recordings, Prompts.of(texts), seed=0)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    # Three lengths of two sizes, of which the last fills the cache: 6 and 5 masked, 5 not, 6 and 5 clean.
    assert recordings.made == 5


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_dit_is_recorded_too(guidance: float) -> None:
    model, recordings = random_dit(), Recordings(OperatorReplay())
    config = SamplingConfig(num_inference_steps=4, guidance_scale=guidance)
    for labels, seed in BATCHES:
        assert torch.equal(*both(model, config, recordings, labels, seed))
    assert recordings.made == 1


def test_weights_that_change_in_place_are_read(make_model: ModelMaker) -> None:
    model, recordings = make_model(), Recordings(OperatorReplay())
    config = SamplingConfig(num_inference_steps=2)
    labels, seed = BATCHES[0]
    before, _ = both(model, config, recordings, labels, seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    found, expected = both(model, config, recordings, labels, seed)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


def test_a_batch_that_was_lost_to_nan_does_not_spoil_the_next(make_model: ModelMaker) -> None:
    """A mask hides numbers, but 0 · NaN is NaN."""
    model, recordings = make_model(), Recordings(OperatorReplay())
    config = SamplingConfig(num_ar_steps=4, num_inference_steps=2)
    labels, seed = BATCHES[0]
    good = model.head.bias.detach().clone()
    model.head.bias.data.fill_(torch.nan)
    lost, _ = both(model, config, recordings, labels, seed)
    assert bool(lost.isnan().all())
    model.head.bias.data.copy_(good)
    found, expected = both(model, config, recordings, labels, seed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_another_shape_or_model_is_recorded_anew(make_model: ModelMaker) -> None:
    model, recordings = make_model(), Recordings(OperatorReplay())
    config = SamplingConfig(num_inference_steps=2)
    labels, seed = BATCHES[0]
    single = make_model().float()
    for made, (other, some) in enumerate(
        [(model, labels), (model, labels[:2]), (single, labels[:2]), (make_model(), labels[:2])], start=1
    ):
        found, expected = both(other, config, recordings, some, seed)
        assert torch.equal(found, expected)
        assert recordings.made == made
    other.float().double()  # its weights lie elsewhere now
    assert torch.equal(*both(other, config, recordings, labels[:2], seed))
    assert recordings.made == made + 1


def test_large_forward_passes_are_not_recorded(make_model: ModelMaker) -> None:
    """Of 3 samples in two branches with 16 tokens: 96 tokens."""
    config = SamplingConfig(num_inference_steps=2, guidance_scale=2.0)
    labels, seed = BATCHES[0]
    for most, made in ((95, 0), (96, 1)):
        recordings = Recordings(OperatorReplay(), most_tokens=most)
        assert torch.equal(*both(make_model(), config, recordings, labels, seed))
        assert recordings.made == made


def test_models_without_ar_steps_refuse_clean_tokens(make_model: ModelMaker) -> None:
    transfusion = Transfusion(
        dataclasses.replace(make_model().config, architecture="transfusion", text=TextConfig(vocabulary=11))
    )
    config = SamplingConfig(num_ar_steps=2, num_inference_steps=1)
    recordings = Recordings(OperatorReplay())
    with pytest.raises(ValueError, match="a Transfusion has no AR steps"):
        sample(
            transfusion,
            Prompts(torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([0])),
            config,
            DIFFUSION,
            seed=0,
            recordings=recordings,
        )
    with pytest.raises(ValueError, match="DiT takes the 16 tokens of a sample at once, got 8"):
        sample(random_dit(), torch.tensor([0]), config, DIFFUSION, seed=0, recordings=recordings)


def test_samples_are_made_without_recordings_where_none_can_be_made(make_model: ModelMaker) -> None:
    """Such as on a GPU whose driver refuses to capture. A warning says so."""

    class Refusing:
        def record(self, work: Callable[[], Tensor]) -> Recording:
            raise RuntimeError("operation not permitted when stream is capturing")

    recordings = Recordings(Refusing(), keys_multiple=1)
    config = SamplingConfig(num_ar_steps=2, num_inference_steps=3, guidance_scale=2.0)
    with pytest.warns(UserWarning, match="slower, without a CUDA graph: operation not permitted"):
        for labels, seed in BATCHES:
            assert torch.equal(*both(make_model(), config, recordings, labels, seed))
    assert recordings.made == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_the_samples_of_the_model(make_model: ModelMaker) -> None:
    """In fp32 without TF32, whose products round in another order over other numbers of keys."""
    model, recordings = make_model().float().cuda(), Recordings(CudaGraphs())
    config = SamplingConfig(
        num_ar_steps=3, num_inference_steps=5, guidance_scale=2.0, guidance_interval=(300, 1000)
    )
    for labels, seed in BATCHES:
        found, expected = both(model, config, recordings, labels, seed)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert recordings.made > 0
