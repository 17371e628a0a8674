"""Rows of captioned shards in memory, and the prompts that are taken of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.platform.conftest import small_rows
from tests.platform.data.captioned import captions_of, write_captioned

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.captioned_rows import CaptionedRows, read_captioned_rows

ROWS = 23


def rows_with(captions: list[list[str]]) -> CaptionedRows:
    count = len(captions)
    return CaptionedRows(torch.zeros(count, 1, 2, 2), torch.zeros(count), [""] * count, captions)


def test_prompts_alternate_templates_and_come_back_with_others() -> None:
    """Three images with two captions each: six prompts, all different, then the same again."""
    rows = rows_with([["a0", "a1"], ["b0", "b1"], ["c0", "c1"]])
    assert rows.prompts(9) == ["a0", "b1", "c0", "a1", "b0", "c1", "a0", "b1", "c0"]
    assert rows.prompts(2) == ["a0", "b1"]


def test_images_may_have_different_numbers_of_captions() -> None:
    assert rows_with([["a0"], ["b0", "b1", "b2"]]).prompts(6) == ["a0", "b1", "a0", "b2", "a0", "b0"]


@pytest.mark.parametrize(("at_most", "count"), [(1, 1), (10, 10), (11, 11), (100, ROWS)])
def test_the_first_rows_are_read_over_shards(tmp_path: Path, at_most: int, count: int) -> None:
    manifest = write_captioned(tmp_path, captions_of(ROWS))
    expected = small_rows(ROWS)
    found = read_captioned_rows(tmp_path, manifest, at_most)
    assert len(found) == count
    assert found.captions == captions_of(ROWS)[:count]
    assert found.keys == expected.keys[:count]
    assert np.array_equal(found.latents.numpy(), expected.mean[:count].astype(np.float32))
    assert found.labels.tolist() == expected.labels[:count].tolist()


def test_only_shards_that_are_needed_are_read(tmp_path: Path) -> None:
    manifest = write_captioned(tmp_path, captions_of(ROWS))
    (tmp_path / manifest.shards[1].file).unlink()
    assert len(read_captioned_rows(tmp_path, manifest, 10)) == 10
    with pytest.raises(UserError, match=f"shard {tmp_path}/{manifest.shards[1].file} cannot be read"):
        read_captioned_rows(tmp_path, manifest, 11)


def test_shards_without_captions_are_refused(tmp_path: Path) -> None:
    manifest = write_captioned(tmp_path, captions_of(ROWS)).model_copy(update={"captions": False})
    with pytest.raises(UserError, match="have no captions"):
        read_captioned_rows(tmp_path, manifest, 3)
