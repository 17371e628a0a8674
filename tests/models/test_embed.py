"""Embeddings of positions, diffusion time and classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from causalfusion.embed import ClassTokens, TimeEmbedding, sinusoids_2d

Array = npt.NDArray[np.float64]


def mae_sinusoids_1d(width: int, positions: Array) -> Array:
    omega = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2.0))
    out = np.einsum("m,d->md", positions, omega)
    return np.concatenate([np.sin(out), np.cos(out)], axis=1)


def mae_sinusoids_2d(width: int, rows: int, columns: int) -> Array:
    """Compute MAE's `get_2d_sincos_pos_embed`, for any grid: "here w goes first"."""
    across, down = np.meshgrid(np.arange(columns, dtype=np.float64), np.arange(rows, dtype=np.float64))
    halves = [mae_sinusoids_1d(width // 2, across.ravel()), mae_sinusoids_1d(width // 2, down.ravel())]
    return np.concatenate(halves, axis=1)


@pytest.mark.parametrize(
    ("width", "rows", "columns"),
    [(4, 1, 1), (8, 3, 3), (24, 5, 5), (1024, 16, 16), (24, 2, 5), (24, 5, 2), (8, 1, 4)],
)
def test_positions_against_maes_formula(width: int, rows: int, columns: int) -> None:
    found = sinusoids_2d(width, rows, columns)
    assert found.shape == (rows * columns, width)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), mae_sinusoids_2d(width, rows, columns), rtol=0, atol=6e-8)


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (7, 3), (9, 9)])
def test_a_larger_grid_begins_with_the_smaller(rows: int, columns: int) -> None:
    """A patch at row y and column x has the same position in every grid."""
    small, large = sinusoids_2d(16, 3, 3).view(3, 3, 16), sinusoids_2d(16, rows, columns).view(rows, columns, 16)
    assert torch.equal(large[:3, :3], small)


def time_features(module: TimeEmbedding, t: Tensor) -> Array:
    """Return what the MLP of the time embedding is given."""
    seen: list[Tensor] = []
    hook = module.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(t)
    hook.remove()
    return np.asarray(seen[0].detach().double().numpy())


def test_time_features_are_cosines_then_sines() -> None:
    """Feature i is cos(t · 10000^(−i/128)), feature 128 + i the sine, as in DiT.

    The angles are float32: up to 999 · 2^−24, plus the rounding of the frequency, is lost.
    """
    times = [0, 1, 17, 250, 999]
    expected = np.zeros((len(times), 256))
    for row, t in enumerate(times):
        for i in range(128):
            angle = t * 10000.0 ** (-i / 128)
            expected[row, i], expected[row, 128 + i] = np.cos(angle), np.sin(angle)
    found = time_features(TimeEmbedding(8), torch.tensor(times))
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * 999 * 2**-24)
    np.testing.assert_array_equal(found[0], [1.0] * 128 + [0.0] * 128)


def test_time_mlp_against_numpy() -> None:
    """The embedding is W₂ SiLU(W₁ features + b₁) + b₂."""
    module = TimeEmbedding(8).double()
    features = time_features(module, torch.tensor([3, 700]))
    weights = {name: value.detach().numpy() for name, value in module.named_parameters()}
    hidden = features @ weights["mlp.0.weight"].T + weights["mlp.0.bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    expected = hidden @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]
    found = module(torch.tensor([3, 700])).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_times_per_token() -> None:
    """Times of shape (B, N) give one embedding per token."""
    module = TimeEmbedding(8).double()
    times = torch.tensor([[0, 500, 999], [7, 7, 8]])
    found = module(times)
    assert found.shape == (2, 3, 8)
    for b in range(2):
        for n in range(3):
            torch.testing.assert_close(found[b, n], module(times[b, n : n + 1])[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("tokens", "repeat"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_class_tokens_against_loops(tokens: int, repeat: int) -> None:
    """Table 8: the n tokens of a class come one after the other, r times; each place has its own position."""
    width, classes = 4, 5
    module = ClassTokens(classes, width, tokens, repeat)
    torch.nn.init.normal_(module.positions)
    labels = torch.tensor([4, 0, classes])  # the last is the null class
    found = module(labels)
    assert found.shape == (3, tokens * repeat, width)
    for b, label in enumerate(labels.tolist()):
        place = 0
        for _ in range(repeat):
            for token in range(tokens):
                for d in range(width):
                    own = module.table.weight[label, token * width + d]
                    assert found[b, place, d] == own + module.positions[place, d]
                place += 1
