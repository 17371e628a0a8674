"""What the model tests share: tiny float64 models and a naive transformer to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.models.random_models import SIZES, dit_config, random_dit, randomised
from torch import Tensor

from causalfusion import CausalFusion, CausalFusionConfig, Draws
from causalfusion.attention.dense import AttentionForm
from causalfusion.baselines import DiT, DiTConfig

Array = npt.NDArray[np.float64]


@pytest.fixture
def make_config() -> Callable[..., CausalFusionConfig]:
    """Return a function that makes the configuration of a tiny model: 16 tokens of 4 numbers, 2 blocks."""
    return lambda **changes: CausalFusionConfig(**(SIZES | {"class_tokens": 2} | changes))


@pytest.fixture
def make_model(make_config: Callable[..., CausalFusionConfig]) -> Callable[..., CausalFusion]:
    """Return a function that makes a tiny float64 model, every parameter of which is random."""
    return lambda **changes: randomised(CausalFusion(make_config(**changes)))


class TrainingExample(NamedTuple):
    """What an objective takes besides the model."""

    latents: Tensor
    labels: Tensor
    drawn: Draws


@pytest.fixture
def make_example() -> Callable[..., TrainingExample]:
    """Return a function that makes float64 latents, labels and draws for a model of 3 classes.

    The draws are random, not the product of `draw`; some classes are dropped and some are not.
    """

    def make(
        config: CausalFusionConfig, sizes: list[int], *, copies: int = 1, per_step: bool = False, batch: int = 3
    ) -> TrainingExample:
        generator = torch.Generator().manual_seed(3)
        shape = (config.in_channels, config.input_size, config.input_size)
        drawn = Draws(
            sizes=sizes,
            orders=torch.stack([torch.randperm(config.num_tokens, generator=generator) for _ in range(batch)]),
            times=torch.randint(1000, (batch, copies, len(sizes) if per_step else 1), generator=generator),
            noise=torch.randn(batch, copies, *shape, generator=generator),
            dropped=torch.arange(batch) % 2 == 1,
        )
        latents = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
        return TrainingExample(latents, (2 + torch.arange(batch)) % 3, drawn)

    return make


class NaiveTransformer:
    """A CausalFusion's arithmetic for one sample, in numpy float64, with a loop over heads and queries.

    Tokens are given as a list; `visible[i][j]` says whether token i attends to token j.
    """

    def __init__(self, model: CausalFusion) -> None:
        self.model = model
        self.config = model.config
        self.weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        scale = self.weights[f"{name}.weight"]
        y: Array = centred / np.sqrt(variance + 1e-5) * scale + self.weights[f"{name}.bias"]
        return y

    def class_tokens(self, label: int) -> Array:
        width, tokens = self.config.hidden_size, self.config.class_tokens
        row = self.weights["class_tokens.table.weight"][label]
        positions = self.weights["class_tokens.positions"]
        count = tokens * self.config.class_token_repeat
        return np.stack([row[(k % tokens) * width :][:width] + positions[k] for k in range(count)])

    def text_tokens(self, tokens: Sequence[int], start: int = 0) -> Array:
        table, positions = self.weights["text.table"], self.weights["text.positions"]
        rows = [table[token] + positions[start + place] for place, token in enumerate(tokens)]
        return np.array(rows).reshape(len(tokens), self.config.hidden_size)

    def logits(self, x: Array) -> Array:
        out: Array = self.norm(x, "norm") @ self.weights.get("text.output", self.weights["text.table"]).T
        return out

    def condition(self, condition: Any) -> tuple[Array, list[int]]:
        """Return the tokens of a class, or of a tuple of text tokens, and the step of each."""
        if isinstance(condition, tuple):
            return self.text_tokens(condition), [*range(-len(condition), 0)]
        if self.config.text is not None:  # the null class: no text at all
            return self.text_tokens(()), []
        tokens = self.class_tokens(condition)
        return tokens, [-1] * len(tokens)

    def image_tokens(self, patches: Array, positions: list[int], t: int | None = None) -> Array:
        table = self.model.positions.detach().double().numpy()
        rows = [
            self.linear(patch, "patch_embed") + table[position]
            for patch, position in zip(patches, positions, strict=True)
        ]
        tokens = np.array(rows).reshape(len(rows), self.config.hidden_size)
        return tokens if t is None else tokens + self.time(t)

    def time(self, t: int) -> Array:
        with torch.no_grad():
            embedded: Array = self.model.time_embed(torch.tensor(t)).double().numpy()
        return embedded

    def attention(self, x: Array, visible: list[list[bool]], name: str) -> Array:
        heads, width = self.config.num_heads, self.config.head_dim
        projected = self.linear(x, f"{name}.qkv")
        out = np.zeros_like(x)
        for head in range(heads):
            q, k, v = (projected[:, (part * heads + head) * width :][:, :width] for part in range(3))
            if self.config.qk_norm:
                q, k = self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm")
            for i in range(len(x)):
                keys = [j for j in range(len(x)) if visible[i][j]]
                weights = np.exp(k[keys] @ q[i] / np.sqrt(width))
                out[i, head * width : (head + 1) * width] = weights @ v[keys] / weights.sum()
        return self.linear(out, f"{name}.proj")

    def run_blocks(self, x: Array, visible: list[list[bool]]) -> Array:
        for layer in range(self.config.depth):
            block = f"blocks.{layer}"
            x = x + self.attention(self.norm(x, f"{block}.norm1"), visible, f"{block}.attn")
            hidden = self.linear(self.norm(x, f"{block}.norm2"), f"{block}.mlp.0")
            gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
            x = x + self.linear(gelu, f"{block}.mlp.2")
        return x

    def predict(self, x: Array) -> Array:
        return self.linear(self.norm(x, "norm"), "head")


@pytest.fixture
def naive() -> type[NaiveTransformer]:
    """Return the naive transformer's class."""
    return NaiveTransformer


@pytest.fixture(params=get_args(AttentionForm))
def attention_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test once with each form of attention, whatever the device, dtype and length."""
    form = str(request.param)
    monkeypatch.setattr("causalfusion.attention.dense.attention_form", lambda *_: form)
    return form


@pytest.fixture
def make_dit_config() -> Callable[..., DiTConfig]:
    """Return a function that makes the configuration of a tiny DiT: 16 tokens of 8 numbers, 2 blocks."""
    return lambda **changes: dit_config(**({"in_channels": 2} | changes))


@pytest.fixture
def make_dit() -> Callable[..., DiT]:
    """Return a function that makes a tiny float64 DiT, every parameter of which is random."""
    return lambda **changes: random_dit(**({"in_channels": 2} | changes))
