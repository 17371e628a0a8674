"""The captioner against torch's own transformer layers, and its decoding against recomputation."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.random_models import randomised
from torch import Tensor, nn
from torch.nn import functional

from causalfusion import CaptionConfig, CausalFusion, DiT, Model, ModelConfig, TextConfig, caption
from causalfusion.representation import Captioner, CaptionerConfig, features, head_groups
from causalfusion.text_objective import next_token_loss

ModelMaker = Callable[..., CausalFusion]
DiTMaker = Callable[..., DiT]
BEGIN, END = 1, 2


def images(count: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 2 * torch.randn(count, channels, 8, 8, generator=generator, dtype=torch.float64)


def texts(count: int, length: int, vocabulary: int = 11) -> Tensor:
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(6))


def config_of(model: Model, **changes: Any) -> CaptionerConfig:
    text = TextConfig(**({"vocabulary": 11, "max_tokens": 7, "tied": False} | changes.pop("text", {})))
    sizes = {"layer": 2, "width": 12, "num_heads": 3, "encoder_depth": 2, "decoder_depth": 2, "dropout": 0.0}
    return CaptionerConfig(**({"backbone": model.config, "text": text} | sizes | changes))


def captioner_of(model: Model, **changes: Any) -> Captioner:
    """Return a captioner in evaluation mode with a trained model's weights, and logits that depend on the image."""
    captioner = randomised(Captioner(config_of(model, **changes)))
    captioner.load_backbone(model)
    with torch.no_grad():
        for weights in (captioner.text.output, captioner.text.table):
            if weights is not None:
                weights.mul_(2)
        for layer in captioner.decoder_layers:
            layer.cross.proj.weight.mul_(20)
    return captioner


class SeparateHead:
    """The head of torch's own transformer layers, with the captioner's weights."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner, size = captioner, captioner.config
        options: dict[str, Any] = {
            "d_model": size.width,
            "nhead": size.num_heads,
            "dim_feedforward": round(size.width * size.mlp_ratio),
            "dropout": 0.0,
            "activation": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
            "batch_first": True,
            "norm_first": True,
            "dtype": torch.float64,
        }
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(**options) for _ in range(size.encoder_depth)
        ).eval()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), size.decoder_depth).eval()
        with torch.no_grad():
            for layer, own in zip(self.encoder, captioner.encoder, strict=True):
                self.copy(layer, own, {"self_attn": "attn"}, {"norm1": "norm1", "norm2": "norm2"})
            for layer, own in zip(self.decoder.layers, captioner.decoder, strict=True):
                names = {"self_attn": "attn", "multihead_attn": "cross"}
                self.copy(layer, own, names, {"norm1": "norm1", "norm2": "norm2", "norm3": "norm3"})

    @staticmethod
    def copy(layer: Any, own: Any, attentions: dict[str, str], norms: dict[str, str]) -> None:
        for name, other in attentions.items():
            attention, given = getattr(layer, name), getattr(own, other)
            attention.in_proj_weight.copy_(torch.cat([given.q.weight, given.kv.weight]))
            attention.in_proj_bias.copy_(torch.cat([given.q.bias, given.kv.bias]))
            attention.out_proj.load_state_dict(given.proj.state_dict())
        for name, other in norms.items():
            getattr(layer, name).load_state_dict(getattr(own, other).state_dict())
        layer.linear1.load_state_dict(own.mlp[0].state_dict())
        layer.linear2.load_state_dict(own.mlp[2].state_dict())

    @torch.no_grad()
    def logits(self, tokens_BLD: Tensor, texts_BT: Tensor) -> Tensor:
        """Return the logits of features and texts: (B, T, V)."""
        own = self.captioner
        normed = functional.layer_norm(tokens_BLD, tokens_BLD.shape[-1:], own.norm.weight, own.norm.bias, 1e-6)
        memory = normed @ own.projection.weight.T + own.projection.bias
        for layer in self.encoder:
            memory = layer(memory)
        memory = functional.layer_norm(memory, memory.shape[-1:], own.encoder_norm.weight, own.encoder_norm.bias)
        table, positions = own.text.table, own.text.positions
        x = torch.stack([torch.stack([table[t] + positions[i] for i, t in enumerate(row)]) for row in texts_BT])
        hidden = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=torch.float64).triu(1)
        out = self.decoder(x, memory, tgt_mask=hidden)
        out = functional.layer_norm(out, out.shape[-1:], own.decoder_norm.weight, own.decoder_norm.bias)
        return out @ (table if own.text.output is None else own.text.output).T


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text": {"tied": True}, "layer": 1},
        {"encoder_depth": 0, "decoder_depth": 3, "mlp_ratio": 1.5, "layer": 3},
    ],
)
@torch.no_grad()
def test_the_head_equals_torchs_layers(make_model: ModelMaker, changes: dict[str, Any]) -> None:
    model = make_model(depth=3)
    captioner, tokens = captioner_of(model, **changes), texts(3, 6)
    found = captioner(images(3), tokens)
    layer = captioner.config.layer
    expected = SeparateHead(captioner).logits(features(model, images(3), layer), tokens)
    assert found.shape == (3, 6, 11)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("condition", ["none", "null"])
@torch.no_grad()
def test_the_head_on_a_dit(make_dit: DiTMaker, condition: Any) -> None:
    model, latents = make_dit(), images(2, channels=2)
    captioner, tokens = captioner_of(model, condition=condition, layer=1), texts(2, 7)
    expected = SeparateHead(captioner).logits(features(model, latents, 1, condition=condition), tokens)
    torch.testing.assert_close(captioner(latents, tokens), expected, rtol=0, atol=1e-10)


def test_blocks_behind_the_layer_are_not_there(make_model: ModelMaker) -> None:
    captioner = captioner_of(make_model(depth=3), layer=2)
    assert len(captioner.backbone.blocks) == 2


@torch.no_grad()
def test_a_token_sees_no_later_one(make_model: ModelMaker) -> None:
    captioner, tokens = captioner_of(make_model()), texts(2, 7)
    changed = torch.cat([tokens[:, :4], (tokens[:, 4:] + 1) % 11], dim=1)
    whole, other, short = (captioner(images(2), given) for given in (tokens, changed, tokens[:, :4]))
    torch.testing.assert_close(whole[:, :4], other[:, :4], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole[:, :4], short, rtol=0, atol=1e-12)
    assert not torch.allclose(whole[:, 4:], other[:, 4:])


def log_probabilities(head: SeparateHead, tokens_LD: Tensor, text: list[int]) -> Tensor:
    """Return the log probability of each next token (T, V), recomputed from the beginning."""
    return head.logits(tokens_LD[None], torch.tensor([text]))[0].log_softmax(dim=1)


def test_greedy_decoding_over_the_cache_equals_recomputing_everything(make_model: ModelMaker) -> None:
    model = make_model()
    captioner = captioner_of(model)
    found = caption(captioner, images(5), begin=BEGIN, end=END)
    head, tokens = SeparateHead(captioner), features(model, images(5), 2).detach()
    for row in range(5):
        text, total = [BEGIN], 0.0
        while len(text) < 7 and text[-1] != END:
            logp = log_probabilities(head, tokens[row], text)[-1]
            text.append(int(logp.argmax()))
            total += float(logp.max())
        assert found[row] == text
        assert float(found.log_probabilities[row]) == pytest.approx(total, abs=1e-10)
    assert len({tuple(found[row]) for row in range(5)}) > 1


def test_a_wide_beam_equals_exhaustive_search(make_model: ModelMaker) -> None:
    """A vocabulary of 4 and up to 3 tokens behind the first: every text is scored."""
    model = make_model()
    captioner = captioner_of(model, text={"vocabulary": 4, "max_tokens": 4})
    found = caption(captioner, images(3), begin=0, end=3, config=CaptionConfig(beam=64))
    head, tokens = SeparateHead(captioner), features(model, images(3), 2).detach()
    for row in range(3):
        scores = {}
        for rest in itertools.product(range(4), repeat=3):
            text = [0, *(rest[: rest.index(3) + 1] if 3 in rest else rest)]
            logp = log_probabilities(head, tokens[row], text[:-1])
            scores[tuple(text)] = sum(float(logp[place, token]) for place, token in enumerate(text[1:]))
        best = max(scores, key=lambda text: scores[text])
        assert tuple(found[row]) == best
        assert float(found.log_probabilities[row]) == pytest.approx(scores[best], abs=1e-10)


def test_sampled_tokens_follow_the_nucleus(make_model: ModelMaker) -> None:
    """Shares of the first token over 3,000 draws, within five standard errors of the renormalised nucleus."""
    model, count = make_model(), 3_000
    captioner = captioner_of(model, text={"max_tokens": 3})
    latents = images(1)
    config = CaptionConfig(temperature=3.0, top_p=0.7)
    found = caption(captioner, latents.expand(count, -1, -1, -1), begin=BEGIN, end=END, config=config, seed=1)
    tokens = features(model, latents, 2).detach()[0]
    share = (log_probabilities(SeparateHead(captioner), tokens, [BEGIN])[0] / 3.0).softmax(dim=0).tolist()
    nucleus: dict[int, float] = {}
    for token in sorted(range(11), key=lambda token: -share[token]):
        if sum(nucleus.values()) < 0.7:
            nucleus[token] = share[token]
    assert 1 < len(nucleus) < 11
    for token in range(11):
        p = nucleus.get(token, 0.0) / sum(nucleus.values())
        drawn = float((found.tokens[:, 1] == token).double().mean())
        assert abs(drawn - p) <= 5 * (p * (1 - p) / count) ** 0.5


def test_captions_do_not_depend_on_their_neighbours_or_the_mode(make_model: ModelMaker) -> None:
    captioner, latents = captioner_of(make_model(), dropout=0.5), images(4)
    for config in (CaptionConfig(), CaptionConfig(temperature=1.0, top_p=0.9), CaptionConfig(beam=3)):
        together = caption(captioner.eval(), latents, begin=BEGIN, end=END, config=config, seed=4)
        captioner.train()  # decoding drops nothing
        for row in range(4):
            alone = caption(
                captioner, latents[row : row + 1], begin=BEGIN, end=END, config=config, seed=4, indices=[row]
            )
            assert alone[0] == together[row]


def test_a_given_beginning_and_a_smaller_vocabulary(make_model: ModelMaker) -> None:
    found = caption(captioner_of(make_model()), images(2), begin=BEGIN, end=END, beginning=[4, 0], vocabulary=5)
    assert found.tokens[:, :3].tolist() == [[BEGIN, 4, 0]] * 2
    assert int(found.tokens.max()) < 5


class TestDropout:
    def test_zero_is_off_and_evaluation_drops_nothing(self, make_model: ModelMaker) -> None:
        model, tokens = make_model(), texts(2, 5)
        plain, dropping = captioner_of(model), captioner_of(model, dropout=0.5)
        expected = plain(images(2), tokens)
        assert torch.equal(plain.train()(images(2), tokens), expected)
        assert torch.equal(dropping(images(2), tokens), expected)
        assert torch.equal(dropping(images(2), tokens, dropping.draw(0, [0, 1])), expected)
        dropped = dropping.train()(images(2), tokens, dropping.draw(0, [0, 1]))
        assert not torch.allclose(dropped, expected)

    def test_kept_numbers_are_scaled_and_all_kept_at_rate_zero(self, make_model: ModelMaker) -> None:
        """Everything kept at rate r is the plain model whose branches and embeddings are 1 / (1 − r) as large."""
        model, tokens = make_model(), texts(2, 5)
        dropping, scaled = captioner_of(model, dropout=0.2).train(), captioner_of(model)
        drawn = dropping.draw(0, [0, 1])
        ones = dataclasses.replace(drawn, image=drawn.image | True, text=drawn.text | True)
        layers: list[Any] = [*scaled.encoder, *scaled.decoder]
        with torch.no_grad():
            last = [layer.mlp[2] for layer in layers]
            attentions = [layer.attn.proj for layer in layers]
            attentions += [layer.cross.proj for layer in scaled.decoder_layers]
            for linear in (scaled.projection, *last, *attentions):
                linear.weight.div_(0.8)
                linear.bias.div_(0.8)
            scaled.text.table.div_(0.8)
            scaled.text.positions.div_(0.8)
        torch.testing.assert_close(dropping(images(2), tokens, ones), scaled(images(2), tokens), rtol=0, atol=1e-10)

    def test_every_place_has_draws_of_its_own(self, make_model: ModelMaker) -> None:
        captioner, tokens = captioner_of(make_model(), dropout=0.5).train(), texts(1, 4)
        drawn = captioner.draw(0, [0])
        assert drawn.image.shape == (1, 5, 16, 12) and drawn.text.shape == (1, 7, 7, 12)
        reference = captioner(images(1), tokens, drawn)
        for part in ("image", "text"):
            for place in range(getattr(drawn, part).shape[1]):
                flipped = getattr(drawn, part).clone()
                flipped[:, place] = ~flipped[:, place]
                changed = captioner(images(1), tokens, dataclasses.replace(drawn, **{part: flipped}))
                assert not torch.allclose(changed, reference), (part, place)

    def test_the_share_of_kept_numbers(self, make_model: ModelMaker) -> None:
        drawn = captioner_of(make_model(), dropout=0.1).draw(3, range(200))
        for part in (drawn.image, drawn.text):
            assert abs(float(part.double().mean()) - 0.9) <= 5 * (0.09 / part.numel()) ** 0.5

    def test_a_sample_draws_the_same_in_any_batch(self, make_model: ModelMaker) -> None:
        captioner = captioner_of(make_model(), dropout=0.5)
        together, alone = captioner.draw(4, range(10, 15)), captioner.draw(4, [12])
        assert torch.equal(together.image[2:3], alone.image) and torch.equal(together.text[2:3], alone.text)
        assert not torch.equal(together.image, captioner.draw(5, range(10, 15)).image)

    def test_training_needs_draws(self, make_model: ModelMaker) -> None:
        with pytest.raises(ValueError, match=r"dropout needs draws in training mode: give the result of draw"):
            captioner_of(make_model(), dropout=0.1).train()(images(1), texts(1, 3))


def test_gradients_reach_every_parameter_or_the_head_alone(make_model: ModelMaker) -> None:
    captioner, tokens = captioner_of(make_model(position_embedding="learnable")), texts(2, 7)
    captioner(images(2), tokens).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in captioner.parameters())
    captioner.zero_grad(set_to_none=True)
    captioner.backbone.requires_grad_(False)
    captioner(images(2), tokens).square().sum().backward()
    for name, parameter in captioner.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone."), name


def test_groups_of_table_13(make_model: ModelMaker) -> None:
    """The head has 1e-4 and all else 1e-5: a tenth. Matrices decay, vectors and positions do not."""
    captioner = captioner_of(make_model(position_embedding="learnable"), text={"tied": True})
    found = {}
    for group in head_groups(captioner, 0.1, 0.01):
        for name, parameter in zip(group.names, group.parameters, strict=True):
            assert parameter is captioner.get_parameter(name)
            found[name] = group.scale, group.weight_decay
    assert found.keys() == {name for name, _ in captioner.named_parameters()}
    for name, (scale, decay) in found.items():
        matrix = (name.endswith(".weight") and "norm" not in name) or name == "text.table"
        assert scale == (0.1 if "backbone" in name else 1.0), name
        assert decay == (0.01 if matrix else 0.0), name
    with pytest.raises(ValueError, match=r"backbone_scale must not be negative, got -1"):
        head_groups(captioner, -1.0, 0.01)


def test_a_captioner_learns_texts_of_images(make_model: ModelMaker) -> None:
    """Four images and their texts are learned by heart, with dropout, and decoded."""
    torch.manual_seed(1)
    model = make_model().float()
    captioner = Captioner(config_of(model, dropout=0.1, text={"tied": True}, width=24)).train()
    captioner.load_backbone(model)
    latents = images(4).float()
    tokens = torch.tensor(
        [[BEGIN, 5, 6, END, 0], [BEGIN, 7, END, 0, 0], [BEGIN, 6, 5, 9, END], [BEGIN, 9, 9, END, 0]]
    )
    lengths = torch.tensor([4, 3, 5, 4])
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=5e-3)
    for step in range(80):
        logits = captioner(latents, tokens, captioner.draw(0, range(4 * step, 4 * step + 4)))
        optimizer.zero_grad()
        (next_token_loss(logits, tokens, lengths) / 12).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = caption(captioner.eval(), latents, begin=BEGIN, end=END, config=CaptionConfig(beam=3))
    assert [found[row] for row in range(4)] == [tokens[row, : int(lengths[row])].tolist() for row in range(4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "layer must lie in [1, 2], the backbone's blocks, got 3"),
        ({"layer": 0}, "layer must lie in [1, 2]"),
        ({"num_heads": 5}, "width 12 is not a multiple of num_heads 5"),
        ({"width": 0}, "width must lie in [1, 65,536], got 0"),
        ({"decoder_depth": 0}, "decoder_depth must lie in [1, 1,000], got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must lie in (0, 100], got 0.0"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"condition": "null"}, "condition null is that of a DiT's blocks"),
        ({"width": 1.5}, "width must be a whole number, got 1.5"),
    ],
)
def test_wrong_configurations(make_model: ModelMaker, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(make_model(), **changes)


def test_a_configuration_without_text(make_config: Callable[..., ModelConfig]) -> None:
    fields: dict[str, Any] = {"backbone": make_config(), "text": None, "layer": 1}
    with pytest.raises(ValueError, match=r"text must be the configuration of text tokens, got None"):
        CaptionerConfig(**fields)


def test_wrong_input(make_model: ModelMaker) -> None:
    captioner = captioner_of(make_model())
    with pytest.raises(ValueError, match=r"images need latents \(B, 1, 8, 8\) of floats, got \(2, 2, 8, 8\)"):
        captioner(images(2, channels=2), texts(2, 3))
    with pytest.raises(ValueError, match=r"images need latents \(B, 1, 8, 8\)"):
        caption(captioner, images(2, channels=2), begin=BEGIN, end=END)
    with pytest.raises(ValueError, match=r"8 text tokens, but the model has positions for 7"):
        captioner(images(2), texts(2, 8))
    with pytest.raises(ValueError, match=r"a captioner reads images at once: num_ar_steps must be 1, got 2"):
        caption(captioner, images(1), begin=BEGIN, end=END, config=CaptionConfig(num_ar_steps=2))
    with pytest.raises(ValueError, match=r"is that of another model, the given one has depth 3, not 2$"):
        captioner.load_backbone(make_model(depth=3))
