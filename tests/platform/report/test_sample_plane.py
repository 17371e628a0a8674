"""Samples in a plane."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from causalfusion_platform.report.sample_plane import sample_plane


def flat(*levels: int, channels: int = 3, side: int = 4) -> NDArray[np.uint8]:
    """Return images of one gray level each."""
    return np.stack([np.full((side, side, channels), level, dtype=np.uint8) for level in levels])


def tiles(picture: Image.Image, levels: list[int], side: int) -> dict[int, tuple[int, int]]:
    """Return where the one tile of each gray level is, all of its pixels of that level: (left, top)."""
    array = np.asarray(picture)
    found = {}
    for level in levels:
        same = (array == level).all(axis=2)
        whole = np.lib.stride_tricks.sliding_window_view(same, (side, side)).all(axis=(2, 3))
        ((y, x),) = np.argwhere(whole)
        found[level] = (int(x), int(y))
    return found


def test_rows_go_down_and_columns_across() -> None:
    samples = {("1", "5"): flat(101), ("1", "10"): flat(102), ("4", "5"): flat(103), ("4", "10"): flat(104)}
    found = tiles(sample_plane(samples, ["1", "4"], ["5", "10"], tile=20), [101, 102, 103, 104], 20)
    assert found[101][0] == found[103][0] < found[102][0] == found[104][0]
    assert found[101][1] == found[102][1] < found[103][1] == found[104][1]


def test_the_given_order_counts_not_the_samples() -> None:
    samples = {("1", "5"): flat(101), ("4", "5"): flat(103)}
    found = tiles(sample_plane(samples, ["4", "1"], ["5"], tile=20), [101, 103], 20)
    assert found[103][1] < found[101][1]


def test_images_of_a_place_stand_in_full_lines() -> None:
    levels = list(range(100, 110))
    found = tiles(sample_plane({("r", "c"): flat(*levels)}, ["r"], ["c"], tile=12), levels, 12)
    assert len({place[1] for place in found.values()}) == 2, "ten images: two lines of five"
    assert [level for level, place in sorted(found.items(), key=lambda item: (item[1][1], item[1][0]))] == levels


def test_gray_images_and_missing_places() -> None:
    picture = sample_plane({("a", "x"): flat(90, channels=1)}, ["a", "b"], ["x"], tile=16)
    found = tiles(picture, [90, 225], 16)
    assert found[225][0] == found[90][0]
    assert found[225][1] > found[90][1]


def test_small_images_stay_sharp() -> None:
    checks = np.zeros((1, 2, 2, 3), np.uint8)
    checks[0, 0, 0] = checks[0, 1, 1] = 200
    picture = sample_plane({("a", "x"): checks}, ["a"], ["x"], tile=20)
    corner = np.asarray(picture)[-30:-10, -30:-10]
    assert set(np.unique(corner).tolist()) == {0, 200}


def test_rows_and_columns_are_named() -> None:
    named = np.asarray(sample_plane({}, ["a row"], ["a column"], tile=30)).copy()
    unnamed = np.asarray(sample_plane({}, ["     "], ["a column"], tile=30))
    assert (named[:, :40] < 100).any()
    assert not (unnamed[40:, :20] < 100).any()


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        ({("a", "z"): flat(1)}, "no place"),
        ({("a", "x"): flat(1).astype(np.float32)}, "float32"),
        ({("a", "x"): flat(1)[0]}, r"\(4, 4, 3\)"),
        ({("a", "x"): flat(1, channels=4)}, r"\(1, 4, 4, 4\)"),
    ],
)
def test_other_arrays_are_refused(samples: dict[tuple[str, str], NDArray[np.uint8]], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        sample_plane(samples, ["a"], ["x"])


def test_the_signs_of_the_paper_are_drawn() -> None:
    """A font without them draws the same box for each."""
    pictures = {sample_plane({}, [sign], ["x"]).tobytes() for sign in "×γλ→"}
    assert len(pictures) == 4
