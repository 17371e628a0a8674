"""How images become bytes: each rule against its own arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch

from causalfusion_platform.sampling.pixels import Uint8Rule, to_uint8


@pytest.mark.parametrize(
    ("value", "rounded", "truncated", "adm"),
    [
        (-1.0, 0, 0, 0),  # 0; 0.5; 0
        (1.0, 255, 255, 255),  # 255; 255.5; 255
        (0.0, 128, 128, 127),  # 127.5 goes to the even neighbour; 128; 127.5
        (1 / 127.5, 128, 129, 128),  # 128.5 goes to the even neighbour; 129; 128.5
        (0.5, 191, 191, 191),  # 191.25; 191.75; 191.25
        (-0.25, 96, 96, 95),  # 95.625; 96.125; 95.625
        (-0.5, 64, 64, 63),  # 63.75; 64.25; 63.75
        (0.999, 255, 255, 254),  # 254.87; 255.37; 254.87
        (-1.7, 0, 0, 0),
        (1.7, 255, 255, 255),
    ],
)
def test_values_computed_by_hand(value: float, rounded: int, truncated: int, adm: int) -> None:
    image = torch.full((1, 1, 1, 1), value)
    for rule, pixel in zip(get_args(Uint8Rule), (rounded, truncated, adm), strict=True):
        assert to_uint8(image, rule).tolist() == [[[[pixel] * 3]]]


def test_rounding_is_that_of_mar() -> None:
    """MAR: (x + 1) / 2 as an image in [0, 1], times 255, clipped, to the nearest."""
    values = np.linspace(-1.5, 1.5, 30_001, dtype=np.float32)
    expected = np.round(np.clip((values + 1) / 2 * 255, 0, 255)).astype(np.uint8)
    found = to_uint8(torch.from_numpy(values)[None, None, None], "round")
    assert np.array_equal(found[0, 0, :, 0], expected)


@pytest.mark.parametrize(("rule", "shift"), [("truncate", Fraction(128)), ("adm", Fraction(255, 2))])
def test_truncating_cuts_the_fraction_off(rule: Uint8Rule, shift: Fraction) -> None:
    """Compare with exact fractions, but where float32 cannot tell on which side of an integer they are."""
    values = torch.linspace(-1.5, 1.5, 30_001)
    found = to_uint8(values[None, None, None], rule)[0, 0, :, 0]
    for value, pixel in zip(values.tolist(), found.tolist(), strict=True):
        exact = Fraction(255, 2) * Fraction(value) + shift
        if abs(exact - round(exact)) > Fraction(1, 10**4):
            assert pixel == min(max(math.floor(exact), 0), 255)


def test_adms_pixels_are_half_a_level_darker() -> None:
    values = torch.rand(1, 3, 200, 200, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rounded, adm = (to_uint8(values, rule).astype(np.float64) for rule in ("round", "adm"))
    assert set(np.unique(rounded - adm)) == {0, 1}
    assert (rounded - adm).mean() == pytest.approx(0.5, abs=0.01)  # its standard deviation is 0.0014


def test_rounding_and_truncating_part_at_ties_only() -> None:
    """127.5 x + 128 without its fraction is 127.5 (x + 1) to the nearest, halves upwards."""
    values = torch.linspace(-1, 1, 100_000)
    rounded, truncated = (to_uint8(values[None, None, None], rule)[0, 0, :, 0].astype(int) for rule in RULES)
    ties = np.abs((127.5 * values.double().numpy()) % 1) < 1e-4
    assert np.array_equal(rounded[~ties], truncated[~ties])
    halves = torch.arange(-127, 128) / 127.5  # the nearest to k + 1/2 from either side
    rounded, truncated = (to_uint8(halves[None, None, None], rule)[0, 0, :, 0].astype(int) for rule in RULES)
    assert 50 < (truncated > rounded).sum() < 200


RULES: tuple[Uint8Rule, ...] = ("round", "truncate")


@pytest.mark.parametrize("rule", get_args(Uint8Rule))
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_come_last_and_gray_is_repeated(rule: Uint8Rule, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 5, channels), dtype=np.uint8)
    # A quarter of a level above: all three rules agree on these.
    images = torch.from_numpy((pixels + 0.25).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    found = to_uint8(images, rule)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.shape == (2, 4, 5, 3)
    assert np.array_equal(found, np.broadcast_to(pixels, found.shape))
