"""Decoding of captions against recomputation, exhaustive search and brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.models.random_models import randomised
from tests.models.text.conftest import text_config
from torch import Tensor

from causalfusion import CaptionConfig, CausalFusion, build_model, caption
from causalfusion.sampling import caption as module

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

BEGIN, END = 1, 2


def make(**changes: Any) -> CausalFusion:
    """Return a model whose logits differ, and depend on the image."""
    text = {"tied": False, **changes.pop("text", {})}
    model = randomised(build_model(text_config(text=text, **changes)))
    assert isinstance(model, CausalFusion)
    with torch.no_grad():
        assert model.text is not None and model.text.output is not None
        model.text.output.mul_(3)
        model.patch_embed.weight.mul_(4)
    return model


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def log_probabilities(
    transformer: NaiveTransformer, latents: Tensor, text: list[int], sizes: list[int], noised: bool = False
) -> np.ndarray[Any, Any]:
    """Return the log probability of each next token (T, V), from a pass over the whole sequence."""
    patches = transformer.model.patchify(latents[None])[0].numpy()
    image = transformer.image_tokens(patches, list(range(16)), 0 if noised else None)
    x = np.concatenate([image, transformer.text_tokens(text)])
    rank = [step for step, size in enumerate(sizes) for _ in range(size)]
    rank += [100 + place for place in range(len(text))]
    visible = [[other <= own for other in rank] for own in rank]
    logits = transformer.logits(transformer.run_blocks(x, visible)[16:])
    shifted: np.ndarray[Any, Any] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return shifted


@pytest.mark.parametrize(
    ("architecture", "ar_steps"), [("causalfusion", 1), ("causalfusion", 3), ("transfusion", 1)]
)
def test_greedy_decoding_over_the_cache_equals_recomputing_everything(
    naive: type[NaiveTransformer], architecture: str, ar_steps: int
) -> None:
    model, latents = make(architecture=architecture), images(4)
    found = caption(model, latents, begin=BEGIN, end=END, config=CaptionConfig(num_ar_steps=ar_steps))
    transformer, sizes = naive(model), {1: [16], 3: [6, 5, 5]}[ar_steps]
    for row in range(4):
        text, total = [BEGIN], 0.0
        while len(text) < 7 and text[-1] != END:
            logp = log_probabilities(transformer, latents[row], text, sizes, architecture == "transfusion")[-1]
            text.append(int(logp.argmax()))
            total += logp.max()
        assert found[row] == text
        assert float(found.log_probabilities[row]) == pytest.approx(total, abs=1e-10)
    assert len({tuple(found[row]) for row in range(4)}) > 1


def test_captions_do_not_depend_on_their_neighbours() -> None:
    model, latents = make(), images(5)
    for config in (CaptionConfig(), CaptionConfig(temperature=1.0, top_p=0.9), CaptionConfig(beam=3)):
        together = caption(model, latents, begin=BEGIN, end=END, config=config, seed=4)
        alone = [
            caption(model, latents[row : row + 1], begin=BEGIN, end=END, config=config, seed=4, indices=[row])
            for row in range(5)
        ]
        assert [together[row] for row in range(5)] == [one[0] for one in alone]


def test_a_beam_of_one_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, latents = make(), images(6)
    greedy = caption(model, latents, begin=BEGIN, end=END)
    config = CaptionConfig()
    monkeypatch.setattr(
        module, "_decode", lambda context, first, given, end, limit, _, step: module._beam_search(
            context, first, given, end, limit, 1, step
        )
    )  # fmt: skip
    beam = caption(model, latents, begin=BEGIN, end=END, config=config)
    assert [beam[row] for row in range(6)] == [greedy[row] for row in range(6)]
    torch.testing.assert_close(beam.log_probabilities, greedy.log_probabilities, rtol=0, atol=1e-10)


def test_a_wide_beam_equals_exhaustive_search(naive: type[NaiveTransformer]) -> None:
    """A vocabulary of 4 and up to 3 tokens behind the first: every text is scored."""
    model, latents = make(text={"vocabulary": 4, "max_tokens": 4}), images(4)
    found = caption(model, latents, begin=0, end=3, config=CaptionConfig(beam=64))
    transformer = naive(model)
    for row in range(4):
        scores = {}
        for rest in itertools.product(range(4), repeat=3):
            text = [0, *(rest[: rest.index(3) + 1] if 3 in rest else rest)]
            logp = log_probabilities(transformer, latents[row], text[:-1], [16])
            scores[tuple(text)] = sum(logp[place, token] for place, token in enumerate(text[1:]))
        best = max(scores, key=lambda text: scores[text])
        assert tuple(found[row]) == best
        assert float(found.log_probabilities[row]) == pytest.approx(scores[best], abs=1e-10)


def test_sampled_tokens_follow_the_nucleus(naive: type[NaiveTransformer]) -> None:
    """Shares of the first token over 4,000 draws, within four standard errors of the renormalised nucleus."""
    model, [latents], draws = make(text={"max_tokens": 3}), images(1), 4_000
    config = CaptionConfig(temperature=3.0, top_p=0.7)
    found = caption(
        model, latents.expand(draws, -1, -1, -1), begin=BEGIN, end=END, config=config, beginning=(), seed=1
    )
    logp = log_probabilities(naive(model), latents, [BEGIN], [16])[0] / 3.0
    probabilities = np.exp(logp) / np.exp(logp).sum()
    nucleus: dict[int, float] = {}
    for token in np.argsort(-probabilities):
        if sum(nucleus.values()) < 0.7:
            nucleus[int(token)] = float(probabilities[token])
    assert 2 < len(nucleus) < 11
    shares = np.bincount(found.tokens[:, 1].numpy(), minlength=11) / draws
    for token in range(11):
        p = nucleus.get(token, 0.0) / sum(nucleus.values())
        assert abs(shares[token] - p) <= 4 * (p * (1 - p) / draws) ** 0.5


def test_a_given_beginning_is_kept_and_not_scored(naive: type[NaiveTransformer]) -> None:
    model, latents = make(), images(2)
    for config in (CaptionConfig(), CaptionConfig(beam=2)):
        found = caption(model, latents, begin=BEGIN, end=END, beginning=(5, 6), config=config)
        for row in range(2):
            text = found[row]
            assert text[:3] == [BEGIN, 5, 6]
            logp = log_probabilities(naive(model), latents[row], text[:-1], [16])
            expected = sum(logp[place, token] for place, token in enumerate(text[1:]) if place >= 2)
            assert float(found.log_probabilities[row]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"temperature": -1.0}}, "temperature must not be negative"),
        ({"config": {"top_p": 0.0, "temperature": 1.0}}, r"top_p must lie in \(0, 1\]"),
        ({"config": {"top_p": 0.5}}, "needs a temperature above 0"),
        ({"config": {"beam": 0}}, "beam must be at least 1"),
        ({"config": {"beam": 2, "temperature": 1.0}}, "exclude each other"),
        ({"config": {"num_ar_steps": 17}}, "17"),
        ({"beginning": (4,) * 6}, "at most 7 tokens cannot begin with 7 given ones"),
        ({"beginning": (11,)}, r"text tokens must lie in \[0, 10\], got 11"),
        ({"end": -1}, r"text tokens must lie in \[0, 10\], got -1"),
        ({"indices": [0]}, "2 images need as many indices, got 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    config = arguments.pop("config", {})
    with pytest.raises(ValueError, match=message):
        caption(make(), images(2), **{"begin": BEGIN, "end": END, "config": CaptionConfig(**config), **arguments})


def test_models_and_images_that_do_not_fit_are_refused(make_model: Callable[..., CausalFusion]) -> None:
    with pytest.raises(ValueError, match="no text, so that it cannot describe"):
        caption(make_model(), images(1), begin=BEGIN, end=END)
    with pytest.raises(
        ValueError, match="a Transfusion reads images in one AR step: num_ar_steps must be 1, got 2"
    ):
        several = CaptionConfig(num_ar_steps=2)
        caption(make(architecture="transfusion"), images(1), begin=BEGIN, end=END, config=several)
    with pytest.raises(ValueError, match=r"need latents \(B, 1, 8, 8\), got \(1, 1, 8, 6\)"):
        caption(make(), images(1)[..., :6], begin=BEGIN, end=END)


@pytest.mark.parametrize("config", [CaptionConfig(), CaptionConfig(beam=3), CaptionConfig(temperature=1.0)])
def test_rows_of_the_table_without_a_token_are_never_chosen(config: CaptionConfig) -> None:
    """A table may be larger than its tokenizer. A model whose last rows are cut off decodes the same texts."""
    model, latents = make(), images(4)
    assert model.config.text is not None and model.text is not None
    size, fewer = model.config.text.vocabulary, 4
    whole = caption(model, latents, begin=BEGIN, end=END, config=config)
    assert bool((whole.tokens >= fewer).any())
    found = caption(model, latents, begin=BEGIN, end=END, config=config, vocabulary=fewer)
    smaller = make(text={"vocabulary": fewer})
    state = model.state_dict()
    cut = {name: state[name][:fewer] if state[name].shape[:1] == (size,) else state[name] for name in state}
    smaller.load_state_dict(cut)
    expected = caption(smaller, latents, begin=BEGIN, end=END, config=config)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_probabilities, expected.log_probabilities)
