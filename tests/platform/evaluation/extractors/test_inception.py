"""The network of FID: the released layout to the letter, and the same numbers as a plain computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.platform.evaluation.released_inception import PARAMETERS, State, released_layout, step_by_step
from torch import Tensor

from causalfusion_platform.evaluation.extractors.inception import (
    Average,
    ConvNormRelu,
    InceptionV3,
    Maximum,
    Mixed,
    Unit,
)


@pytest.fixture(scope="module")
def network(inception_weights: State) -> InceptionV3:
    """Return the network with random weights, in float64."""
    with torch.device("meta"):
        network = InceptionV3()
    network.load_state_dict({name: value.double() for name, value in inception_weights.items()}, assign=True)
    return network.eval().requires_grad_(False)


def random_pixels(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64) * 2 - 1


def test_names_and_shapes_are_the_released_ones() -> None:
    with torch.device("meta"):
        network = InceptionV3()
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == released_layout()
    assert len(released_layout()) == 94 * 5 + 2
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS == 23_850_960


@torch.no_grad()
def test_it_computes_what_the_graph_does(network: InceptionV3, inception_weights: State) -> None:
    """Two images of 139×139 pixels, which leave 7×7 and 3×3 pixels where 299×299 leave 17×17 and 8×8."""
    images = random_pixels(2, 139, seed=1)
    pool, spatial = network(images)
    expected_pool, expected_spatial, _ = step_by_step(inception_weights, images)
    assert (pool.shape, spatial.shape) == ((2, 2048), (2, 7 * 7 * 7))
    torch.testing.assert_close(pool, expected_pool, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(spatial, expected_spatial, rtol=1e-10, atol=1e-12)
    assert pool.std(dim=0).gt(1e-3).double().mean() > 0.5  # the two images do differ


@torch.no_grad()
def test_taps_of_a_whole_image(network: InceptionV3) -> None:
    """sFID's features are those of the 1×1 branch of `Mixed_6d` behind its ReLU: row by row, 7 channels a pixel."""
    caught: dict[str, Tensor] = {}
    hooks = [
        network.Mixed_6d.get_submodule("branch1x1").register_forward_hook(lambda *a: caught.update(branch=a[2])),
        network.Mixed_7c.register_forward_hook(lambda *a: caught.update(last=a[2])),
    ]
    pool, spatial = network(random_pixels(1, 299, seed=2))
    for hook in hooks:
        hook.remove()
    assert (caught["branch"].shape, caught["last"].shape) == ((1, 192, 17, 17), (1, 2048, 8, 8))
    assert (pool.shape, spatial.shape) == ((1, 2048), (1, 2023))
    as_map = spatial.reshape(17, 17, 7)
    for row, column, channel in ((0, 0, 0), (0, 1, 3), (16, 2, 6), (5, 16, 1)):
        assert as_map[row, column, channel] == caught["branch"][0, channel, row, column]
    assert spatial.min() == 0
    assert 0.1 < spatial.eq(0).float().mean() < 0.9
    torch.testing.assert_close(pool, caught["last"].flatten(2).mean(dim=2))


@torch.no_grad()
def test_a_unit_by_loops() -> None:
    """Convolution, normalization with 1e-3 beside the variance, ReLU; on the border zeros are convolved."""
    generator = np.random.default_rng(3)
    images = generator.standard_normal((1, 2, 4, 5))
    kernel = generator.standard_normal((3, 2, 1, 3))
    mean, variance, gain, offset = generator.random((4, 3))
    variance *= 1e-3  # so that the constant counts
    unit = ConvNormRelu(2, Unit("", 3, (1, 3))).double()
    numbers = {"bn.running_mean": mean, "bn.running_var": variance, "bn.weight": gain, "bn.bias": offset}
    unit.load_state_dict(
        {"conv.weight": torch.from_numpy(kernel)} | {name: torch.from_numpy(one) for name, one in numbers.items()}
    )
    expected = np.zeros((1, 3, 4, 5))
    for channel in range(3):
        for row in range(4):
            for column in range(5):
                total = sum(
                    kernel[channel, source, 0, tap] * images[0, source, row, column + tap - 1]
                    for source in range(2)
                    for tap in range(3)
                    if 0 <= column + tap - 1 < 5
                )
                scaled = (total - mean[channel]) / np.sqrt(variance[channel] + 0.001)
                expected[0, channel, row, column] = max(0.0, scaled * gain[channel] + offset[channel])
    np.testing.assert_allclose(unit(torch.from_numpy(images)).numpy(), expected, rtol=1e-12)
    assert (expected == 0).any()


@torch.no_grad()
def test_pools_by_hand() -> None:
    """An average leaves out what is outside; a maximum of stride 2 sees nothing of it."""
    images = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], dtype=torch.float64)[None, None]
    block = Mixed(1, (Average(),), (Maximum(stride=1),)).double()
    average, maximum = block(images)[0]
    assert average.tolist() == [[3.0, 3.5, 4.0], [4.5, 5.0, 5.5], [6.0, 6.5, 7.0]]
    assert maximum.tolist() == [[5.0, 6.0, 6.0], [8.0, 9.0, 9.0], [8.0, 9.0, 9.0]]
    assert (-block(-images)[0, 1]).tolist() == [[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [4.0, 4.0, 5.0]]
    assert Mixed(1, (Maximum(stride=2),))(images).tolist() == [[[[9.0]]]]
    assert block.outputs == 2
