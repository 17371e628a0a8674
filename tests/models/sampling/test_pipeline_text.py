"""The diffusers pipeline of a model of text: prompts, captions, and its tokenizer on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from PIL import Image
from tests.models.random_models import randomised
from torch import Tensor

from causalfusion import (
    CaptionConfig,
    CausalFusion,
    CausalFusionPipeline,
    CausalFusionTransformer2DModel,
    DiffusionConfig,
    Prompts,
    SamplingConfig,
    TextConfig,
    build_model,
    caption,
    preset,
    sample,
    save_weights,
)
from causalfusion.text.tokenizer import Tokenizer, train_bpe

X0 = DiffusionConfig(prediction="x0", variance="fixed_small")
TEXTS = ["a bold seven", "three"]
TOKENIZER = train_bpe([*TEXTS, "a thin three"] * 3, vocabulary=300)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Diffusers shows a bar for each folder that it loads."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def make_model(unused: int = 0, **changes: Any) -> CausalFusion:
    """Return a model whose table has `unused` rows more than its tokenizer ids."""
    text = TextConfig(vocabulary=TOKENIZER.size + unused, max_tokens=12, tokenizer_sha256=TOKENIZER.digest)
    model = randomised(build_model(preset("tiny", class_tokens=0, text=text, **changes)))
    assert isinstance(model, CausalFusion)
    return model.float()


def make(**changes: Any) -> Any:
    return CausalFusionPipeline.from_model(make_model(**changes), X0, tokenizer=TOKENIZER)


def drawn(pipe: Any, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 3, "generator": generator, "output_type": "latent"} | arguments
    found: Tensor = pipe(prompt=TEXTS, **options).images
    return found


def described(model: CausalFusion, latents: Tensor, beginning: str = "", **options: Any) -> list[str]:
    found = caption(
        model,
        latents,
        begin=TOKENIZER.begin,
        end=TOKENIZER.end,
        config=CaptionConfig(**options),
        beginning=TOKENIZER.encode(beginning)[1:-1],
    )
    return [TOKENIZER.decode(found[row]) for row in range(len(found))]


def test_it_draws_what_sample_does() -> None:
    pipe = make()
    plane = SamplingConfig(num_ar_steps=4, num_inference_steps=3, guidance_scale=2.0)
    seed = int(torch.randint(2**32, (1,), generator=torch.Generator().manual_seed(0)))
    prompts = Prompts.of([TOKENIZER.encode(text) for text in TEXTS])
    expected = sample(pipe.transformer.model, prompts, plane, X0, seed=seed)
    assert torch.equal(drawn(pipe, num_ar_steps=4, guidance_scale=2.0), expected)
    one = pipe(prompt="three", num_inference_steps=2)
    assert [image.size for image in one.images] == [(8, 8)]


def test_it_describes_what_caption_does() -> None:
    """The same pixels as an image of Pillow, an array and a tensor."""
    pipe = make()
    gray = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    latents = torch.from_numpy(gray).float()[:, None] / 127.5 - 1
    expected = described(pipe.transformer.model, latents)
    assert pipe.caption([Image.fromarray(one) for one in gray]) == expected
    assert pipe.caption(gray[..., None].astype(np.float32) / 255) == expected
    assert pipe.caption(torch.from_numpy(gray).float()[:, None] / 255) == expected
    assert pipe.caption(Image.fromarray(gray[1])) == expected[1:]
    assert pipe.caption(Image.fromarray(np.pad(gray[1], ((0, 0), (3, 3))))) == expected[1:]
    beam = described(pipe.transformer.model, latents, "a bold", beam=3, max_tokens=8)
    images = [Image.fromarray(one) for one in gray]
    assert pipe.caption(images, prompt="a bold", beam=3, max_tokens=8) == beam
    assert all(text.startswith("a bold") for text in beam)


def test_sampled_captions_follow_their_generators() -> None:
    pipe = make()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def texts(*seeds: int) -> list[str]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found: list[str] = pipe.caption(images[: len(seeds)], temperature=3.0, generator=generators)
        return found

    assert texts(1, 2)[0] == texts(1)[0]
    assert texts(1) != texts(3)


def test_an_autoencoder_encodes_the_images() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.4,
    ).eval()
    model = make_model(in_channels=4)
    pipe: Any = CausalFusionPipeline.from_model(model, X0, vae, tokenizer=TOKENIZER)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = vae.encode(2 * images - 1).latent_dist.mean * 0.4
    assert pipe.caption(images) == described(model, latents)


# Saving and loading


def check_equal(found: Any, expected: Any) -> None:
    """Weights are equal bit for bit. Products of weights that lie elsewhere in memory may round differently."""
    state = expected.transformer.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.transformer.model.state_dict().items())
    torch.testing.assert_close(drawn(found), drawn(expected))


def test_the_tokenizer_is_a_component(tmp_path: Path) -> None:
    pipe = make()
    pipe.save_pretrained(tmp_path)
    assert pipe.tokenizer.digest == TOKENIZER.digest
    assert (tmp_path / "tokenizer/tokenizer.json").read_text() == TOKENIZER.json
    loaded: Any = CausalFusionPipeline.from_pretrained(tmp_path)
    assert loaded.tokenizer.json == TOKENIZER.json
    assert loaded.transformer.model.config == pipe.transformer.model.config
    check_equal(loaded, pipe)
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert loaded.caption(images) == pipe.caption(images)
    with pytest.raises(ValueError, match="save into a folder, and upload that"):
        pipe.save_pretrained(tmp_path / "hub", push_to_hub=True)


def test_our_own_folder_has_its_tokenizer(tmp_path: Path) -> None:
    model = make_model()
    save_weights(tmp_path, model.config, model.state_dict(), X0, tokenizer=TOKENIZER)
    pipe: Any = CausalFusionPipeline.from_weights(tmp_path)
    check_equal(pipe, make())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="there is no tokenizer at"):
        CausalFusionPipeline.from_weights(tmp_path)


def test_a_tokenizer_can_be_given_while_loading(tmp_path: Path) -> None:
    pipe: Any = CausalFusionPipeline.from_model(make_model(), X0)
    with pytest.raises(ValueError, match="this pipeline has no tokenizer"):
        drawn(pipe)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this pipeline has no tokenizer"):
        drawn(CausalFusionPipeline.from_pretrained(tmp_path))
    check_equal(CausalFusionPipeline.from_pretrained(tmp_path, tokenizer=TOKENIZER), make())


# The transformer alone


@pytest.mark.parametrize("changes", [{}, {"time_conditioning": "token"}, {"architecture": "transfusion"}])
def test_the_transformer_predicts_from_text(changes: dict[str, Any]) -> None:
    """As sampling does, with a shorter text padded; gradients reach all parameters but unused rows."""
    model = CausalFusionTransformer2DModel.from_model(make_model(**changes))
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([30, 700])
    prompts = Prompts.of([TOKENIZER.encode(text) for text in TEXTS])
    present = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    found = model(x, t, input_ids=prompts.tokens, attention_mask=present.long()).sample
    patches = model.model.patchify(x)
    for condition, predicted in ((prompts, found), (Prompts.of([[], []]), model(x, t).sample)):
        with torch.no_grad():
            expected = model.model.context(condition).predict(patches, torch.arange(16).expand(2, -1), t)
        torch.testing.assert_close(predicted, model.model.unpatchify(expected), rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 3}, "this model draws from text: give prompt in place of class_labels"),
        ({"class_labels": 3, "prompt": "three"}, "give class_labels or prompt, got both"),
        ({}, "give class_labels or prompt, got none of them"),
        ({"prompt": []}, "prompt must have at least one text"),
        ({"prompt": ["three", " "]}, "a prompt must have words"),
        ({"prompt": "xyz" * 9}, "has 29 tokens.*takes at most 12"),
        ({"prompt": TEXTS, "generator": [torch.Generator()]}, "2 prompts need as many generators, got 1"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(num_inference_steps=2, **arguments)


def test_a_model_of_classes_has_no_text() -> None:
    model = randomised(build_model(preset("tiny"))).float()
    pipe: Any = CausalFusionPipeline.from_model(model, X0)
    image = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="this model draws classes: give class_labels in place of prompt"):
        pipe(prompt="three")
    with pytest.raises(ValueError, match="this model draws classes and has no text"):
        pipe.caption(image)
    with pytest.raises(ValueError, match="leave out the tokenizer"):
        CausalFusionPipeline.from_model(model, X0, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="this model has no text: give class_labels in place of input_ids"):
        pipe.transformer(image, 3, torch.tensor([1]), input_ids=torch.zeros(1, 2, dtype=torch.int64))


def test_what_does_not_fit_a_model_of_text() -> None:
    other = Tokenizer(TOKENIZER.json + " ")
    with pytest.raises(ValueError, match="the tokenizer is not the tokenizer of the model's training"):
        CausalFusionPipeline.from_model(make_model(), X0, tokenizer=other)
    with pytest.raises(ValueError, match="leave out id2label"):
        CausalFusionPipeline.from_model(make_model(), X0, id2label={0: "zero"}, tokenizer=TOKENIZER)
    pipe, tokens = make(), torch.ones(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="must have its zeros behind the text"):
        pipe.transformer(torch.rand(1, 1, 8, 8), 3, input_ids=tokens, attention_mask=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="must have the shape of input_ids"):
        pipe.transformer(torch.rand(1, 1, 8, 8), 3, input_ids=tokens, attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="cannot begin with"):
        pipe.caption(torch.rand(1, 1, 8, 8), prompt="xyz" * 9)


def test_rows_of_the_table_without_a_token_are_never_chosen() -> None:
    """Nine of ten rows have none. Each of their ids would be an error."""
    pipe = make(unused=9 * TOKENIZER.size)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    found = [pipe.caption(images), pipe.caption(images, temperature=1.0, generator=generators)]
    assert all(set("".join(texts)) for texts in found)
