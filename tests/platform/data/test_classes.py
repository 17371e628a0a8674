"""How classes are spread over rows and row groups, and which rows are picked to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.platform.conftest import description_of, small_rows

from causalfusion_platform.data.classes import pick_rows, read_classes, read_rows
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import read_all
from causalfusion_platform.data.shards import write_shards

# Row groups of 4, 4 and 2 rows, twice; no row is of class 2.
LABELS = np.array([0, 0, 0, 0, 0, 1, 3, 0, 1, 1, 3, 3, 3, 0, 0, 1, 0, 1, 0, 3])


@pytest.fixture
def manifest(own_folder: Path) -> Manifest:
    rows = small_rows(20, labels=LABELS, flip=True)
    description = description_of(rows).model_copy(update={"class_names": ["a", "b", "c", "d"]})
    return write_shards(rows, description, own_folder / "small", rows_per_shard=10, rows_per_group=4)


def test_classes(manifest: Manifest) -> None:
    classes = read_classes(Path("small"), manifest)
    assert classes.labels.tolist() == LABELS.tolist()
    assert classes.counts.tolist() == [10, 5, 0, 5]
    assert classes.per_group.tolist() == [1, 3, 1, 2, 2, 2]
    generator = np.random.default_rng(0)
    drawn = [len(set(generator.choice(LABELS, 4))) for _ in range(20_000)]
    assert classes.mixed == pytest.approx(np.mean(drawn), abs=0.02)


def test_the_digits(digits_folder: Path, digit_images: tuple[torch.Tensor, torch.Tensor]) -> None:
    classes = read_classes(digits_folder, Manifest.read(digits_folder))
    assert classes.labels.tolist() == digit_images[1].tolist()
    assert len(classes.per_group) == 16


def test_rows_are_picked_by_class_from_all_over(digits_folder: Path) -> None:
    classes = read_classes(digits_folder, Manifest.read(digits_folder))
    picked = pick_rows(classes, 0, max_classes=10, per_class=6)
    assert len(set(picked)) == 60
    assert classes.labels[picked].tolist() == [label for label in range(10) for _ in range(6)]
    assert np.bincount(np.array(picked) // 450, minlength=4).min() >= 5  # every shard
    assert picked == pick_rows(classes, 0, max_classes=10, per_class=6)
    assert picked != pick_rows(classes, 1, max_classes=10, per_class=6)


def test_few_classes_and_rows(manifest: Manifest) -> None:
    classes = read_classes(Path("small"), manifest)
    everything = pick_rows(classes, 0, max_classes=9, per_class=99)
    assert sorted(everything) == list(range(20))
    assert LABELS[everything].tolist() == sorted(LABELS)
    seen = {tuple(LABELS[pick_rows(classes, seed, max_classes=2, per_class=1)]) for seed in range(20)}
    assert seen == {(0, 1), (0, 3), (1, 3)}


@pytest.mark.parametrize("rows", [[0], [19, 3, 4, 11, 10, 3], list(range(20))])
def test_rows_are_read_in_the_order_asked_for(manifest: Manifest, rows: list[int]) -> None:
    whole = read_all(Path("small"), manifest)
    picked = read_rows(Path("small"), manifest, rows)
    assert picked.labels.tolist() == LABELS[rows].tolist()
    assert picked.keys == [f"key {row}" for row in rows]
    assert picked.mean.equal(whole.latents[rows])
    assert picked.mean_flip is not None
    expected = small_rows(20, flip=True).mean_flip
    assert expected is not None
    assert np.array_equal(picked.mean_flip.numpy(), expected[rows].astype(np.float32))
