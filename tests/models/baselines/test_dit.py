"""The AdaLN-zero DiT: its arithmetic, its size, and the interface that it shares with CausalFusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from causalfusion.attention.plan import AttentionPlan
from causalfusion.baselines import DiT, DiTConfig
from causalfusion.embed import sinusoids_2d

Array = npt.NDArray[np.float64]
ConfigMaker = Callable[..., DiTConfig]
ModelMaker = Callable[..., DiT]


class Batch(NamedTuple):
    """The arguments of a training pass."""

    noised: Tensor
    clean: Tensor
    positions: Tensor
    t: Tensor
    labels: Tensor
    plan: AttentionPlan | None = None


def random_batch(config: DiTConfig, batch: int = 2) -> Batch:
    """Make a batch whose patches come in an order of each sample's own."""
    generator = torch.Generator().manual_seed(5)
    length = config.num_tokens
    return Batch(
        noised=torch.randn(batch, length, config.token_dim, generator=generator, dtype=torch.float64),
        clean=torch.empty(batch, 0, config.token_dim, dtype=torch.float64),
        positions=torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)]),
        t=torch.randint(1000, (batch,), generator=generator),
        labels=torch.arange(batch) % (config.num_classes + 1),
    )


class NaiveDiT:
    """A DiT's arithmetic for one sample, in numpy float64, one token, head, query and channel at a time."""

    def __init__(self, model: DiT) -> None:
        self.model, self.config = model, model.config
        self.weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def linear(self, x: Array, name: str) -> Array:
        y: Array = self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]
        return y

    def modulated(self, x: Array, shift: Array, scale: Array) -> Array:
        y: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * (1 + scale) + shift
        return y

    def attention(self, tokens: list[Array], name: str) -> list[Array]:
        heads, width = self.config.num_heads, self.config.head_dim
        projected = [self.linear(token, f"{name}.qkv") for token in tokens]
        outputs = []
        for query in projected:
            out = np.zeros(heads * width)
            for head in range(heads):
                q, k, v = (
                    slice((part + head) * width, (part + head + 1) * width) for part in (0, heads, 2 * heads)
                )
                scores = np.array([math.exp(float(key[k] @ query[q]) / math.sqrt(width)) for key in projected])
                values = [score * key[v] for score, key in zip(scores, projected, strict=True)]
                out[head * width : (head + 1) * width] = sum(values) / scores.sum()
            outputs.append(self.linear(out, f"{name}.proj"))
        return outputs

    def mlp(self, x: Array, name: str) -> Array:
        hidden = self.linear(x, f"{name}.0")
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        return self.linear(gelu, f"{name}.2")

    def __call__(self, patches: Array, positions: list[int], t: int, label: int) -> Array:
        table = self.model.positions.numpy()
        tokens = [
            self.linear(patch, "patch_embed") + table[position]
            for patch, position in zip(patches, positions, strict=True)
        ]
        with torch.no_grad():
            time = self.model.time_embed(torch.tensor(t)).numpy()
        condition = time + self.weights["class_embed.weight"][label]
        condition = condition / (1 + np.exp(-condition))
        for layer in range(self.config.depth):
            block = f"blocks.{layer}"
            parts = np.split(self.linear(condition, f"{block}.modulation"), 6)
            attended = self.attention([self.modulated(x, *parts[:2]) for x in tokens], f"{block}.attn")
            tokens = [x + parts[2] * y for x, y in zip(tokens, attended, strict=True)]
            tokens = [x + parts[5] * self.mlp(self.modulated(x, *parts[3:5]), f"{block}.mlp") for x in tokens]
        shift, scale = np.split(self.linear(condition, "modulation"), 2)
        outputs = [self.linear(self.modulated(x, shift, scale), "head") for x in tokens]
        pixels, channels = self.config.patch_size**2, self.config.in_channels
        per_pixel = len(outputs[0]) // pixels
        epsilon = [i * per_pixel + c for i in range(pixels) for c in range(channels)]
        return np.stack([out[epsilon] for out in outputs])


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize(
    "changes",
    [
        {"learn_sigma": True},
        {"learn_sigma": False},
        {"patch_size": 1, "input_size": 3, "mlp_ratio": 2.5, "num_heads": 4},
    ],
)
@torch.no_grad()
def test_against_loops(make_dit: ModelMaker, changes: dict[str, object]) -> None:
    """Patches in any order, classes and the null class, with a variance and without."""
    model = make_dit(**changes)
    batch = random_batch(model.config, batch=4)
    found = model(*batch)
    reference = NaiveDiT(model)
    assert model.config.null_class in batch.labels
    for i in range(4):
        arguments = batch.noised[i].numpy(), batch.positions[i].tolist(), int(batch.t[i]), int(batch.labels[i])
        np.testing.assert_allclose(found[i].numpy(), reference(*arguments), rtol=0, atol=1e-10)


def closed_form_count(*, width: int, depth: int, token: int) -> int:
    """Count an ImageNet DiT's trained parameters by hand, learned variance included."""
    attention = (width + 1) * 3 * width + (width + 1) * width
    mlp = (width + 1) * 4 * width + (4 * width + 1) * width
    block = attention + mlp + (width + 1) * 6 * width
    embeddings = (token + 1) * width + (256 + 1) * width + (width + 1) * width + 1001 * width
    output = (width + 1) * 2 * width + (width + 1) * 2 * token
    return depth * block + embeddings + output


@pytest.mark.parametrize(
    ("size", "millions", "with_positions"),
    [
        ({"hidden_size": 1024, "depth": 24}, "457.8", "458.1"),  # DiT-L/2, Table 1: 458M
        ({"hidden_size": 1152, "depth": 28}, "674.8", "675.1"),  # DiT-XL/2, of which the release has weights
    ],
)
def test_parameter_counts(size: dict[str, int], millions: str, with_positions: str) -> None:
    """The release counts the frozen position table too: 675.1M for its XL/2."""
    with torch.device("meta"):
        model = DiT(DiTConfig(**size))  # type: ignore[arg-type]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == closed_form_count(width=size["hidden_size"], depth=size["depth"], token=16)
    assert f"{count / 1e6:.1f}" == millions
    assert f"{(count + model.positions.numel()) / 1e6:.1f}" == with_positions


@torch.no_grad()
def test_a_new_model_predicts_zero_and_its_blocks_are_the_identity(make_dit_config: ConfigMaker) -> None:
    model = DiT(make_dit_config()).double()
    batch = random_batch(model.config)
    assert torch.equal(model(*batch), torch.zeros(2, 16, 8, dtype=torch.float64))
    x, condition = torch.randn(2, 16, 16).double(), torch.randn(2, 16).double()
    for block in model.blocks:
        assert torch.equal(block(x, condition), x)


@torch.no_grad()
def test_initial_weights(make_dit_config: ConfigMaker) -> None:
    """Modulations and output are zero, class table and time MLP N(0, .02²), other Linears Xavier-uniform."""
    torch.manual_seed(0)
    model = DiT(make_dit_config(hidden_size=64, num_classes=100))
    zero, normal, xavier = 0, 0, 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        assert not module.bias.any(), name
        if "modulation" in name or name == "head":
            assert not module.weight.any(), name
            zero += 1
        elif name.startswith("time_embed"):
            assert abs(float(module.weight.std()) / 0.02 - 1) < 4 / math.sqrt(2 * module.weight.numel()), name
            assert float(module.weight.abs().max()) > 0.05, name  # beyond any uniform distribution of that width
            normal += 1
        else:
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.98 * bound < float(module.weight.abs().max()) <= bound, name
            xavier += 1
    assert (zero, normal, xavier) == (2 + 2, 2, 1 + 2 * 4)
    table = model.class_embed.weight
    assert table.shape == (101, 64)
    assert abs(float(table.std()) / 0.02 - 1) < 4 / math.sqrt(2 * table.numel())


def test_positions_are_frozen_and_not_saved(make_dit_config: ConfigMaker) -> None:
    model = DiT(make_dit_config())
    assert "positions" not in dict(model.named_parameters())
    assert "positions" not in model.state_dict()
    assert torch.equal(model.positions, sinusoids_2d(16, 4, 4))


@torch.no_grad()
def test_the_order_of_the_tokens_does_not_matter(make_dit: ModelMaker) -> None:
    """Permuting the patches with their positions permutes the predictions; without them it does not."""
    model = make_dit()
    batch = random_batch(model.config)
    before = model(*batch)
    shuffle = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(shuffle, torch.arange(16))
    noised, positions = batch.noised[:, shuffle], batch.positions[:, shuffle]
    after = model(*batch._replace(noised=noised, positions=positions))
    torch.testing.assert_close(after, before[:, shuffle], rtol=0, atol=1e-12)
    assert float((model(*batch._replace(noised=noised)) - before[:, shuffle]).abs().max()) > 1e-3


@torch.no_grad()
def test_samples_do_not_mix(make_dit: ModelMaker) -> None:
    model = make_dit()
    batch = random_batch(model.config)
    alone = model(batch.noised[1:], batch.clean[1:], batch.positions[1:], batch.t[1:], batch.labels[1:])
    torch.testing.assert_close(alone, model(*batch)[1:], rtol=0, atol=1e-12)


def test_every_parameter_gets_a_gradient(make_dit: ModelMaker) -> None:
    """Except for rows of classes that are not in the batch, and of the variance, which no loss reads."""
    model = make_dit()
    model(*random_batch(model.config)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name == "class_embed.weight":
            assert parameter.grad.abs().sum(dim=1).bool().tolist() == [True, True, False, False]
        elif name.startswith("head"):
            # 4 pixels, each with 2 channels of ε and 2 of the variance
            used = parameter.grad.reshape(16, -1).abs().sum(dim=1).bool().tolist()
            assert used == [True, True, False, False] * 4, name
        else:
            assert bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.usefixtures("attention_form")
@torch.no_grad()
def test_bf16_autocast(make_dit: ModelMaker) -> None:
    model = make_dit()
    batch = random_batch(model.config)
    exact = model(*batch)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch.noised.float(), batch.clean.float(), *batch[2:])
    error = (found.double() - exact).square().mean().sqrt()
    assert error < 0.03 * exact.square().mean().sqrt()


@pytest.mark.parametrize("tokens", [1, 16])
def test_clean_tokens_are_refused(make_dit: ModelMaker, tokens: int) -> None:
    model = make_dit()
    batch = random_batch(model.config)
    with pytest.raises(ValueError, match=f"no AR steps and takes no clean tokens, got {tokens}.*num_ar_steps 1"):
        model(*batch._replace(clean=batch.noised[:, :tokens]))


@pytest.mark.parametrize("tokens", [15, 32])
def test_anything_but_one_whole_sample_is_refused(make_dit: ModelMaker, tokens: int) -> None:
    """A part of the tokens (an AR step), or several noised copies (Table 7)."""
    model = make_dit()
    batch = random_batch(model.config)
    noised, positions = (torch.cat([x, x], dim=1)[:, :tokens] for x in (batch.noised, batch.positions))
    with pytest.raises(ValueError, match=f"the 16 tokens of a sample at once, got {tokens}: use num_ar_steps 1"):
        model(*batch._replace(noised=noised, positions=positions))
    with pytest.raises(ValueError, match=f"the 16 tokens of a sample at once, got {tokens}: use num_ar_steps 1"):
        model.context(batch.labels).predict(noised, positions, batch.t)


def test_times_per_token_are_refused(make_dit: ModelMaker) -> None:
    model = make_dit()
    batch = random_batch(model.config)
    with pytest.raises(ValueError, match=r"one diffusion time per sample.*got shape \(2, 16\)"):
        model(*batch._replace(t=batch.t[:, None].expand(-1, 16)))


@torch.no_grad()
def test_a_context_predicts_what_a_training_pass_does(make_dit: ModelMaker) -> None:
    model = make_dit()
    batch = random_batch(model.config, batch=4)
    context = model.context(batch.labels, model.config.num_tokens)
    assert torch.equal(context.predict(batch.noised, batch.positions, batch.t), model(*batch))
    shared = context.predict(batch.noised, batch.positions, torch.tensor([321]))
    expected = model(*batch._replace(t=torch.full((4,), 321)))
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_fewer_samples_stand_for_the_first_labels_of_a_context(make_dit: ModelMaker) -> None:
    model = make_dit()
    batch = random_batch(model.config, batch=4)
    context = model.context(batch.labels)
    first = context.predict(batch.noised[:2], batch.positions[:2], batch.t[:2])
    torch.testing.assert_close(first, model(*batch)[:2], rtol=0, atol=1e-12)


def test_a_context_takes_no_clean_tokens(make_dit: ModelMaker) -> None:
    model = make_dit()
    batch = random_batch(model.config)
    with pytest.raises(ValueError, match=r"no AR steps and takes no clean tokens, got 5.*num_ar_steps 1"):
        model.context(batch.labels).append(batch.noised[:, :5], batch.positions[:, :5])


@torch.no_grad()
def test_patches_and_properties(make_dit: ModelMaker) -> None:
    model = make_dit()
    latents = torch.randn(2, 2, 8, 8)
    patches = model.patchify(latents)
    assert torch.equal(patches[1, 6], latents[1, :, 2:4, 4:6].permute(1, 2, 0).flatten())  # row 1, column 2 of 4
    assert torch.equal(model.unpatchify(patches), latents)
    assert (model.dtype, model.device) == (torch.float64, torch.device("cpu"))


def test_derived_sizes() -> None:
    config = DiTConfig()
    assert config.architecture == "dit"
    assert (config.grid_size, config.num_tokens, config.token_dim) == (16, 256, 16)
    assert (config.num_class_tokens, config.head_dim, config.null_class) == (0, 64, 1000)
    assert (config.out_channels, DiTConfig(learn_sigma=False).out_channels) == (8, 4)
