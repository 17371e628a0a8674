"""Subsets of shards: which rows they have, by counting on the whole, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from causalfusion_platform.cli.main import app
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import DataConfig, SubsetConfig
from causalfusion_platform.data.captioned_digits import write_captioned_digits
from causalfusion_platform.data.digits import description_of_digits, digits, write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.overlap import ShardsOf, shared_rows
from causalfusion_platform.data.prepare import is_written_later, prepare_data
from causalfusion_platform.data.shards import write_shards
from causalfusion_platform.data.split_digits import write_split_digits
from causalfusion_platform.data.subset import draw_rows, ensure_subset, write_subset
from causalfusion_platform.data.validate import open_shards


@pytest.fixture
def split(own_folder: Path) -> Path:
    """The digits in two parts."""
    write_captioned_digits(own_folder / "split")
    return own_folder / "split"


def test_rows_of_a_subset_are_those_of_the_whole(split: Path, own_folder: Path) -> None:
    written = write_subset(split, own_folder / "few", per_class=10)
    assert open_shards(own_folder / "few").manifest == written
    few, whole = pq.read_table(own_folder / "few"), pq.read_table(split)
    labels = np.array(few.column("label").to_pylist())
    assert np.bincount(labels).tolist() == [10] * 10
    row_ids = few.column("row_id").to_pylist()
    assert few.equals(whole.filter(np.isin(whole.column("row_id").to_numpy(), row_ids)))
    whole_manifest = Manifest.read(split)
    assert (written.split, written.captions, written.rows) == ("train", True, 100)
    assert written.source.location == f"{whole_manifest.source.location}; subset: 10 of each class, seed 0"
    assert written.class_names == whole_manifest.class_names
    again = write_subset(split, own_folder / "again", per_class=10)
    assert again.digest == written.digest


def test_the_draw_does_not_depend_on_other_rows() -> None:
    """Neither on their order, nor on other classes. Fewer rows are a part of more, and seeds differ."""
    generator = np.random.default_rng(0)
    row_ids, labels = np.arange(1000), generator.integers(0, 4, 1000)
    drawn = draw_rows(row_ids, labels, per_class=20, seed=1)
    order = generator.permutation(1000)
    assert np.array_equal(draw_rows(row_ids[order], labels[order], per_class=20, seed=1), drawn)
    two = labels == 2
    of_two = draw_rows(row_ids[two], labels[two], per_class=20, seed=1)
    assert set(of_two) == set(drawn) & set(row_ids[two])
    assert set(draw_rows(row_ids, labels, per_class=5, seed=1)) < set(drawn)
    other = draw_rows(row_ids, labels, per_class=20, seed=2)
    # Of about 250 rows a class, 20 and 20 have 1.6 in common on average.
    assert len(set(other) & set(drawn)) < 20


def test_each_row_is_drawn_as_often_as_another() -> None:
    counts = np.zeros(8)
    for seed in range(800):
        counts[draw_rows(np.arange(8), np.zeros(8, np.int64), per_class=2, seed=seed)] += 1
    assert np.abs(counts - 200).max() < 5 * np.sqrt(800 * 0.25 * 0.75)


def test_a_shuffled_set_with_mirrored_latents(own_folder: Path) -> None:
    """All columns go along, whatever the order of the rows and the shards."""
    order = np.random.default_rng(3).permutation(1797)
    rows = digits()
    rows = replace(
        rows,
        row_ids=rows.row_ids[order],
        labels=rows.labels[order],
        keys=[rows.keys[row] for row in order],
        mean=rows.mean[order],
        std=np.abs(rows.mean[order]),
        mean_flip=rows.mean[order][..., ::-1],
        std_flip=np.abs(rows.mean[order][..., ::-1]),
    )
    tree = description_of_digits("x").model_copy(update={"flip": True, "posterior": True, "order": "shuffled"})
    write_shards(rows, tree, own_folder / "all", rows_per_shard=500, rows_per_group=64)
    write_subset(own_folder / "all", own_folder / "few", per_class=3, seed=7)
    few, whole = pq.read_table(own_folder / "few"), pq.read_table(own_folder / "all")
    kept = np.isin(whole.column("row_id").to_numpy(), few.column("row_id").to_numpy())
    assert few.num_rows == 30 and few.equals(whole.filter(kept))


def test_it_is_prepared_once(own_folder: Path) -> None:
    subset = SubsetConfig(of=own_folder / "all", per_class=4, seed=2)
    data = DataConfig(path=own_folder / "few", prepare="split", subset=subset)
    assert is_written_later(data)
    prepare_data(data)
    assert not is_written_later(data)
    assert {path.name: Manifest.read(path).rows for path in own_folder.iterdir()} == {
        "all": 1497,
        "all-validation": 300,
        "few": 40,
    }
    before = (own_folder / "few/_manifest.json").stat().st_mtime_ns
    prepare_data(data)
    assert (own_folder / "few/_manifest.json").stat().st_mtime_ns == before


def test_validation_must_not_share_its_rows(own_folder: Path) -> None:
    """A subset is of the source that it is taken from."""
    write_split_digits(own_folder / "split")
    write_subset(own_folder / "split-validation", own_folder / "few", per_class=10)
    names = ("few", "split-validation", "split")
    few, whole, train = (ShardsOf(own_folder / name, Manifest.read(own_folder / name)) for name in names)
    found = shared_rows(whole, few)
    assert found is not None and len(found.keys) == 100
    apart = shared_rows(train, few)
    assert apart is not None and not apart.keys


def test_refusals(own_folder: Path) -> None:
    whole = own_folder / "whole"
    write_digits(whole)
    with pytest.raises(UserError, match="class 8 has 174 rows, fewer than 175"):
        write_subset(whole, own_folder / "few", per_class=175)
    assert not (own_folder / "few").exists()
    with pytest.raises(UserError, match="the folder of all rows"):
        write_subset(whole, whole, per_class=3)
    with pytest.raises(UserError, match="does not exist"):
        write_subset(own_folder / "none", own_folder / "few", per_class=3)
    ensure_subset(whole, own_folder / "few", per_class=3)
    for per_class, seed in ((3, 1), (13, 0)):
        with pytest.raises(UserError, match=f"holds other rows than {per_class} of each class with seed {seed}"):
            ensure_subset(whole, own_folder / "few", per_class=per_class, seed=seed)
    with pytest.raises(UserError, match="data subset"):
        ensure_subset(whole, whole, per_class=3)


def test_the_verb(own_folder: Path) -> None:
    write_digits(own_folder / "whole")
    result = CliRunner().invoke(app, ["data", "subset", "whole", "few", "--per-class", "2", "--seed", "5"])
    assert result.exit_code == 0, result.output
    assert result.output == "few: 20 of whole, 2 of each class, seed 5\n"
    manifest = Manifest.read(own_folder / "few")
    assert manifest.source.location.endswith("; subset: 2 of each class, seed 5")
