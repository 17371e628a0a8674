"""An imported checkpoint computes what the authors' code computes from it, written here anew from the key names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, Draws, Objective, ObjectiveConfig
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out
from causalfusion.weights import import_release

Array = npt.NDArray[np.float64]
StateMaker = Callable[..., dict[str, Tensor]]

# 16 patches of 2×2 pixels and 2 channels, 2 class tokens, 2 heads; class 3 is the null class.
SIDE, PATCH, CHANNELS, TOKENS, CLASS_TOKENS, HEADS = 8, 2, 2, 16, 2, 2
SIZES = [3, 1, 7, 5]


def patches_of(latent: Array) -> Array:
    """Cut a latent (channels, height, width) into rows of patches; in a patch, channels vary fastest."""
    places = range(0, SIDE, PATCH)
    return np.stack(
        [latent[:, y : y + PATCH, x : x + PATCH].transpose(1, 2, 0).ravel() for y in places for x in places]
    )


class Release:
    """The release's model for one sample, in numpy float64."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.weights: dict[str, Array] = {name: tensor.double().numpy() for name, tensor in state.items()}

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return y

    def norm(self, x: Array, name: str) -> Array:
        variance = x.var(axis=-1, keepdims=True)
        y: Array = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5)
        return y * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def time(self, t: int) -> Array:
        # The release embeds in float32, which is 1e-5 off the exact angles at large t.
        frequencies = torch.exp(-np.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
        angles = float(t) * frequencies
        features: Array = torch.cat([angles.cos(), angles.sin()]).double().numpy()
        hidden = self.linear(features, "t_embedder.mlp.0")
        return self.linear(hidden / (1 + np.exp(-hidden)), "t_embedder.mlp.2")

    def image(self, patches: Array, places: list[int]) -> Array:
        return self.linear(patches, "x_proj") + self.weights["pos_embed"][0, places]

    def classes(self, label: int) -> Array:
        table = self.weights["y_embedder.embedding_table.weight"]
        tokens: Array = table[label].reshape(CLASS_TOKENS, -1) + self.weights["cond_pos_embed"][0]
        return tokens

    def attention(self, x: Array, visible: npt.NDArray[np.bool_], name: str) -> Array:
        q, k, v = np.split(x @ self.weights[f"{name}.qkv.weight"].T, 3, axis=1)
        heads = []
        for qh, kh, vh in zip(*(np.split(y, HEADS, axis=1) for y in (q, k, v)), strict=True):
            scores = self.norm(qh, f"{name}.q_norm") @ self.norm(kh, f"{name}.k_norm").T / np.sqrt(qh.shape[1])
            weights = np.where(visible, np.exp(scores), 0.0)
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ vh)
        return self.linear(np.concatenate(heads, axis=1), f"{name}.proj")

    def predict(self, classes: Array, clean: Array, noised: Array, steps: list[int]) -> Array:
        """Predict for embedded tokens; `steps` names the AR steps of the clean tokens, then of the noised ones."""
        x = np.concatenate([classes, clean, noised])
        step = np.array([-1] * len(classes) + steps)
        is_noised = np.arange(len(x)) >= len(x) - len(noised)
        visible = np.zeros((len(x), len(x)), dtype=np.bool_)
        for i in range(len(x)):
            for j in range(len(x)):
                if is_noised[i] and not is_noised[j]:
                    visible[i, j] = step[j] < step[i]
                elif is_noised[i]:
                    visible[i, j] = step[j] == step[i]
                else:
                    visible[i, j] = not is_noised[j] and step[j] <= step[i]
        for block in ("blocks.0", "blocks.1"):
            x = x + self.attention(self.norm(x, f"{block}.norm1"), visible, f"{block}.attn")
            h = self.linear(self.norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
            gelu = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            x = x + self.linear(gelu, f"{block}.mlp.fc2")
        return self.linear(self.norm(x[is_noised], "final_layer.0"), "final_layer.1")


@pytest.fixture
def both(tmp_path: Path, release_state: StateMaker) -> tuple[Release, CausalFusion]:
    """The release's arithmetic and our model, from one file."""
    state = {name: 2 * tensor for name, tensor in release_state().items()}
    torch.save({"model": release_state(seed=1), "ema": state}, tmp_path / "0050000.pt")
    return Release(state), import_release(tmp_path / "0050000.pt", patch_size=PATCH).double()


class Batch:
    """Three samples, the last without a class, with permutations and times of their own."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(8)
        shape = (3, CHANNELS, SIDE, SIDE)
        self.x0, self.noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        self.order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(3)])
        self.labels, self.t = torch.tensor([0, 2, 3]), torch.tensor([999, 321, 0])

    def signal_and_noise(self, sample: int) -> tuple[float, float]:
        level = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: int(self.t[sample]) + 1])
        return float(np.sqrt(level)), float(np.sqrt(1 - level))

    def visited(self, latents: Tensor, sample: int) -> Array:
        patches = patches_of(latents[sample].numpy())
        visited: Array = patches[self.order[sample].numpy()]
        return visited

    def noised(self, sample: int) -> Array:
        signal, sigma = self.signal_and_noise(sample)
        return signal * self.visited(self.x0, sample) + sigma * self.visited(self.noise, sample)

    def predictions(self, release: Release) -> list[Array]:
        """The release's training pass, sample by sample."""
        steps = [s for s, size in enumerate(SIZES) for _ in range(size)]
        kept = TOKENS - SIZES[-1]
        out = []
        for i, (label, t) in enumerate(zip(self.labels.tolist(), self.t.tolist(), strict=True)):
            places = self.order[i].tolist()
            clean = release.image(self.visited(self.x0, i)[:kept], places[:kept])
            noised = release.image(self.noised(i), places) + release.time(t)
            out.append(release.predict(release.classes(label), clean, noised, steps[:kept] + steps))
        return out


def test_the_training_pass(both: tuple[Release, CausalFusion]) -> None:
    release, model = both
    batch = Batch()
    noised = torch.from_numpy(np.stack([batch.noised(i) for i in range(3)]))
    clean = torch.from_numpy(np.stack([batch.visited(batch.x0, i)[: -SIZES[-1]] for i in range(3)]))
    plan = AttentionPlan.of(lay_out(SIZES, class_tokens=CLASS_TOKENS))
    with torch.no_grad():
        predicted = model(noised, clean, batch.order, batch.t, batch.labels, plan)
    expected = np.stack(batch.predictions(release))
    assert expected.std() > 0.5
    np.testing.assert_allclose(predicted.numpy(), expected, rtol=0, atol=1e-12)


def test_the_loss_of_each_token(both: tuple[Release, CausalFusion]) -> None:
    """From latents on: patches, permutation, noise and class dropout included; the objective ends in float32."""
    release, model = both
    batch = Batch()
    objective = Objective(model, ObjectiveConfig(), DiffusionConfig())
    drawn = Draws(
        sizes=SIZES,
        orders=batch.order,
        times=batch.t.view(3, 1, 1),
        noise=batch.noise[:, None],
        dropped=batch.labels == 3,
    )
    loss = objective(model, batch.x0, torch.where(batch.labels == 3, 1, batch.labels), drawn)
    errors = [(batch.visited(batch.noise, i) - said) ** 2 for i, said in enumerate(batch.predictions(release))]
    np.testing.assert_allclose(loss.error_L.numpy(), np.mean(errors, axis=(0, 2)), rtol=2e-6)


def test_prediction_over_cached_keys_and_values(both: tuple[Release, CausalFusion]) -> None:
    """Class tokens, then two AR steps as clean tokens, then noised tokens: as if all were computed at once."""
    release, model = both
    batch = Batch()
    patches = torch.from_numpy(np.stack([batch.visited(batch.x0, i) for i in range(3)]))
    with torch.no_grad():
        context = model.context(batch.labels)
        for before, start in [(0, 0), (0, SIZES[0]), (SIZES[0], sum(SIZES[:2]))]:
            if start:
                context.append(patches[:, before:start], batch.order[:, before:start])
            for t, count in ((700, 4), (0, TOKENS - start)):
                now = slice(start, start + count)
                said = context.predict(patches[:, now], batch.order[:, now], torch.tensor([t]))
                for i, label in enumerate(batch.labels.tolist()):
                    places, seen = batch.order[i].tolist(), patches[i].numpy()
                    clean = release.image(seen[:start], places[:start])
                    noised = release.image(seen[now], places[now]) + release.time(t)
                    steps = [0] * min(start, SIZES[0]) + [1] * max(0, start - SIZES[0]) + [2] * count
                    expected = release.predict(release.classes(label), clean, noised, steps)
                    np.testing.assert_allclose(said[i].numpy(), expected, rtol=0, atol=1e-12)
