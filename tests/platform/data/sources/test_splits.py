"""Splits that names tell apart are never taken for classes, and never encoded together without being asked for."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.platform.data.sources.makers import STRICT, digit, keys_of, write_files, write_tar

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.sources import EARLIER_RULES, Listing, open_source, split_of_shards


def write_images(folder: Path, *names: str) -> None:
    write_files(folder, {name: digit(row) for row, name in enumerate(names)})


def write_parquet(folder: Path, *names: str) -> None:
    for row, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": [digit(row)], "label": [row]}), folder / name)


def listed(location: str, split: str | None = None, **options: object) -> Listing:
    return open_source(location, split=split, policies=STRICT, **options).listing()  # type: ignore[arg-type]


def refusal(location: str, split: str | None = None, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        listed(location, split, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["train", "val"], "train/ (1 file), val/ (1 file)"),
        (["train", "test", "other"], "train/ (1 file), test/ (1 file)"),
        (["training_set", "test_set"], "test_set/ (1 file), training_set/ (1 file)"),
        (["Train", "Validation"], "Train/ (1 file), Validation/ (1 file)"),
        (["train2017", "val2017"], "train2017/ (1 file), val2017/ (1 file)"),
        (["train_64x64", "valid_64x64"], "train_64x64/ (1 file), valid_64x64/ (1 file)"),
        (["train"], "train/ (1 file)"),
    ],
)
@pytest.mark.parametrize("kind", ["auto", "folders"])
def test_a_parent_of_splits_is_refused(tmp_path: Path, folders: list[str], named: str, kind: str) -> None:
    write_images(tmp_path / "s", *(f"{folder}/n01/0.png" for folder in folders))
    first, advice = refusal("s", kind=kind).split("\n")
    assert first.startswith("s is not clear: it holds the splits ")
    assert set(re.findall(r"\S+/ \(1 file\)", first)) == set(named.split(", "))
    split = advice.removeprefix("  name one: --split ").partition(",")[0]
    assert split in folders
    assert split.lower().startswith("train")
    assert listed("s", split, kind=kind).class_names == ["n01"]


@pytest.mark.parametrize("classes", [["airplane", "bus", "train"], ["test tube", "train station"], ["eval-7", "a"]])
def test_a_class_may_have_a_word_of_a_split(tmp_path: Path, classes: list[str]) -> None:
    write_images(tmp_path / "s", *(f"{name}/0.png" for name in classes))
    assert listed("s").class_names == sorted(classes)


def test_a_split_is_its_folder(tmp_path: Path) -> None:
    """The same images, classes and digest as under the folder's own name, empty classes included."""
    write_images(tmp_path / "s", "train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png", "__MACOSX/._0.png")
    (tmp_path / "s/val/empty").mkdir()
    for wanted in ("val", "validation"):
        listing = listed("s", wanted)
        assert keys_of(listing) == ["a/2.png", "b/3.png"]
        assert listing.class_names == ["a", "b", "empty"]
        assert listing.digest == listed("s/val").digest
        assert (listing.location, listing.selection.split) == ("s/val", "val")
        assert listing.selection.splits == {"train": 2, "val": 2}
    memory = fsspec.filesystem("memory")
    for name in ("train/a/0.png", "val/a/1.png"):
        memory.pipe(f"/splits/{name}", digit(0))
    try:
        assert keys_of(listed("memory://splits", "val")) == ["a/1.png"]
    finally:
        memory.rm("/splits", recursive=True)


def test_splits_deeper_in_the_folder(tmp_path: Path) -> None:
    """Beside each other in one folder (ILSVRC's CLS-LOC), in each other, or in every class (MVTec's)."""
    write_images(tmp_path / "wrapped", "CLS-LOC/train/a/0.png", "CLS-LOC/val/a/1.png")
    assert "train/ (1 file), val/ (1 file)" in refusal("wrapped")
    assert keys_of(listed("wrapped", "val")) == ["a/1.png"]
    write_images(tmp_path / "nested", "training_set/training_set/a/0.png", "test_set/test_set/a/1.png")
    assert keys_of(listed("nested", "train")) == ["a/0.png"]
    write_images(tmp_path / "inner", "a/train/0.png", "a/test/1.png", "b/train/good/2.png", "b/test/3.png")
    assert "train/ (2 files), test/ (2 files)" in refusal("inner")
    listing = listed("inner", "train")
    assert keys_of(listing) == ["a/train/0.png", "b/train/good/2.png"]
    assert listing.class_names == ["a", "b"]


def test_parquet_files_of_several_splits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "s/data", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
    assert listed("s").selection.splits == {"train": 2}
    write_parquet(tmp_path / "s/data", "test-00000-of-00001.parquet")
    message = refusal("s")
    assert message.startswith("s is not clear: it holds the splits train (2 files), test (1 file)\n")
    assert message.endswith("--split train, or encode them together: --split all")
    assert "not clear" in refusal("s/**/*.parquet")
    listing = listed("s", "train")
    assert [key.partition("#")[0] for key in keys_of(listing)] == [
        f"data/train-0000{part}-of-00002.parquet" for part in (0, 1)
    ]
    assert (listing.selection.split, listing.selection.splits) == ("train", {"train": 2, "test": 1})
    assert listed("s", "all").table.num_rows == 3
    assert listed("s", "all").digest == listed("s", rules=EARLIER_RULES).digest
    assert listed("s/data/{train,test}-*.parquet").table.num_rows == 3  # both are named
    assert listed("s/data/train-*.parquet").table.num_rows == 2


def test_tars_of_several_splits(tmp_path: Path) -> None:
    for name in ("train/0.tar", "val/0.tar", "latest.tar"):
        write_tar(tmp_path / "s" / name, [("a.png", digit(0)), ("a.cls", "0")])
    assert "--split train" in refusal("s")
    assert keys_of(listed("s", "validation")) == ["val/0.tar/a.png"]


@pytest.mark.parametrize(
    ("location", "split", "message"),
    [
        ("folders", "test", "folders has no split 'test': only train, val\n  name one of them: --split train"),
        ("folders", "all", "which are not classes\n  name one: --split train"),
        ("folders/train", "val", "folders/train is named as another split than --split val\n  leave out --split"),
        ("folders/train", "half", "has no split 'half': its names tell no splits apart\n  leave out --split"),
        ("parquet", "test", "parquet has no split 'test': only train, validation\n"),
    ],
)
def test_a_split_that_is_not_there(tmp_path: Path, location: str, split: str, message: str) -> None:
    write_images(tmp_path / "folders", "train/a/0.png", "val/a/1.png")
    write_parquet(tmp_path / "parquet", "train-0.parquet", "valid-0.parquet")
    assert message in refusal(location, split)


def test_a_label_file_chooses_its_images(tmp_path: Path) -> None:
    write_images(tmp_path / "s", "train/0.png", "val/1.png")
    write_files(tmp_path, {"l.csv": "train/0.png,1\nval/1.png,0\n"})
    assert listed("s", labels="l.csv").table.num_rows == 2
    assert marked("s", "test", labels="l.csv") == "test"
    assert "allowed: train, val, test, or leave it out" in refusal("s", "half", labels="l.csv")


def marked(location: str, split: str | None = None, **options: object) -> str:
    listing = listed(location, split, **options)
    return split_of_shards(listing.location, listing.selection)


def test_shards_are_marked_with_the_split_that_names_tell(tmp_path: Path) -> None:
    """ImageNet's folders from above and from inside, other words for the same splits, and files."""
    write_images(tmp_path / "s", "train/a/0.png", "val/a/1.png", "test/a/2.png")
    write_images(tmp_path / "photos", "a/0.png")
    for split in ("train", "val", "test"):
        assert marked("s", split) == marked(f"s/{split}") == marked(f"s/{split}/", split) == split
    assert marked("s", "validation") == "val"
    assert (marked("photos"), marked("photos", "val"), marked("photos", "eval")) == ("train", "val", "test")
    write_parquet(tmp_path / "p", "train-0.parquet", "dev-0.parquet", "test-0.parquet")
    assert (marked("p", "dev"), marked("p/test-*.parquet"), marked("p", "all")) == ("val", "test", "train")
    assert marked("p/{test,dev}-*.parquet") == "val"
    assert marked("p/dev-0.parquet") == "val"
    write_parquet(tmp_path / "only", "validation-00000-of-00001.parquet")
    assert marked("only") == "val"
    assert marked("only", rules=EARLIER_RULES) == "train"


def test_the_earlier_rules_ask_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "s", "train/a/0.png", "val/a/1.png")
    assert listed("s", rules=EARLIER_RULES).class_names == ["train", "val"]
