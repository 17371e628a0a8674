"""Parts of a sample set: a finished one is known by its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tests.platform.sampling.plans import images_of, make_plan

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.sampling.parts import SamplePart, finished_parts, part_images, write_part

IMAGES = images_of(make_plan())


@pytest.fixture
def parts(tmp_path: Path) -> dict[int, SamplePart]:
    """Three parts, written in another order."""
    return {index: write_part(tmp_path, index, IMAGES[3 * index : 3 * index + 3]) for index in (2, 0, 1)}


def test_parts_are_found_again(tmp_path: Path, parts: dict[int, SamplePart]) -> None:
    assert finished_parts(tmp_path) == parts
    for index, part in parts.items():
        assert np.array_equal(np.load(part.path), IMAGES[3 * index : 3 * index + 3])
        assert part.path.name == f"part-00000{index}.{hashlib.sha256(part.path.read_bytes()).hexdigest()}.npy"
    assert np.array_equal(np.concatenate(list(part_images(parts))), IMAGES[:9])
    assert finished_parts(tmp_path / "none") == {}


def test_what_is_not_whole_goes(tmp_path: Path, parts: dict[int, SamplePart]) -> None:
    cut, flipped = parts[0].path, parts[1].path
    cut.write_bytes(cut.read_bytes()[:-1])
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    half = tmp_path / "parts" / f".{parts[2].path.name}.4321"
    half.write_bytes(b"half")
    assert finished_parts(tmp_path) == {2: parts[2]}
    assert list((tmp_path / "parts").iterdir()) == [parts[2].path]


def test_a_part_that_changes_under_way_is_not_used(parts: dict[int, SamplePart]) -> None:
    parts[1].path.write_bytes(parts[0].path.read_bytes())
    with pytest.raises(UserError, match=r"part-000001.* has changed since it was written"):
        list(part_images(parts))
    parts[1].path.unlink()
    with pytest.raises(UserError, match=r"part-000001.* has changed"):
        list(part_images(parts))
