"""Images without labels: captions alone, as img2dataset writes them, or labels that are left aside."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.platform.data.sources.makers import STRICT, contents_of, digit, write_files, write_tar

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop
from causalfusion_platform.data.sources import Listing, open_source


def img2dataset(folder: Path, shard: int = 0, count: int = 3) -> None:
    """Write what img2dataset does: a tar of image, caption and metadata, its table, and its counts."""
    members: list[tuple[str, bytes | str]] = []
    table = []
    for row in range(count):
        key = f"{shard:05d}{row:04d}"
        record = {"caption": f"text {row}", "url": "http://x/y", "key": key, "status": "success", "width": 20}
        members += [(f"{key}.jpg", digit(row)), (f"{key}.json", json.dumps(record)), (f"{key}.txt", f"text {row}")]
        table.append(record)
    write_tar(folder / f"{shard:05d}.tar", members)
    pq.write_table(pa.Table.from_pylist(table), folder / f"{shard:05d}.parquet")
    write_files(folder, {f"{shard:05d}_stats.json": json.dumps({"count": count})})


def check_unlabelled(listing: Listing, captions: list[list[str]] | None) -> None:
    assert not listing.has_classes
    assert listing.class_names == ["image"]
    assert set(listing.table["label"].to_pylist()) == {0}
    if captions is not None:
        assert listing.table["captions"].to_pylist() == captions


@pytest.mark.parametrize("column", ["txt", "caption"])
@pytest.mark.parametrize("location", ["s", "s/{00000..00001}.tar"])
def test_what_img2dataset_writes(tmp_path: Path, column: str, location: str) -> None:
    img2dataset(tmp_path / "s", 0)
    img2dataset(tmp_path / "s", 1)
    source = open_source(location, caption_column=column, policies=STRICT)
    check_unlabelled(source.listing(), [["text 0"], ["text 1"], ["text 2"]] * 2)
    assert list(contents_of(source).values()) == [digit(row) for row in range(3)] * 2
    with pytest.raises(UserError, match=r"no sample of .* has a label.*\n.*--label-column none"):
        open_source(location, policies=STRICT).listing()
    check_unlabelled(open_source(location, label_column="none", policies=STRICT).listing(), None)


def test_one_label_makes_classes_of_a_tar(tmp_path: Path) -> None:
    """A sample without a label beside others with one is a fault, with captions too."""
    members: list[tuple[str, bytes | str]] = [
        ("a.png", digit(0)),
        ("a.txt", "one"),
        ("b.png", digit(1)),
        ("b.txt", "two"),
        ("b.cls", "1"),
    ]
    write_tar(tmp_path / "t.tar", members)
    with pytest.raises(FaultStop, match=r"^t\.tar/a\.png: unlabelled: the sample has no label$"):
        open_source("t.tar", caption_column="txt", policies=STRICT).listing()
    check_unlabelled(open_source("t.tar", label_column="none", policies=STRICT).listing(), None)
    write_tar(tmp_path / "bad.tar", [("a.png", digit(0)), ("a.txt", "one"), ("a.cls", "dog")])
    with pytest.raises(FaultStop, match="no class number"):
        open_source("bad.tar", caption_column="txt", policies=STRICT).listing()


def test_parquet_with_captions_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [digit(0), digit(1)], "text": ["one", None]}), tmp_path / "p.parquet")
    source = open_source("p.parquet", caption_column="text", policies=STRICT)
    check_unlabelled(source.listing(), [["one"], []])
    assert list(contents_of(source).values()) == [digit(0), digit(1)]
    with pytest.raises(UserError, match=r"no column 'label' among image, text\n.*--label-column none"):
        open_source("p.parquet", policies=STRICT).listing()
    pq.write_table(pa.table({"image": [digit(0)], "label": ["dog"]}), tmp_path / "q.parquet")
    check_unlabelled(open_source("q.parquet", label_column="none", policies=STRICT).listing(), None)


def test_a_label_file_of_captions(tmp_path: Path) -> None:
    write_files(tmp_path, {"s/a.png": digit(0), "s/b.png": digit(1)})
    write_files(tmp_path, {"l.csv": "file,text\na.png,one\nb.png,\n", "m.csv": "file,label\na.png,1\nb.png,0\n"})
    check_unlabelled(
        open_source("s", labels="l.csv", caption_column="text", policies=STRICT).listing(), [["one"], []]
    )
    check_unlabelled(open_source("s", labels="m.csv", label_column="none", policies=STRICT).listing(), None)


def test_a_class_of_that_name_is_a_class(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"image/0.png": digit(0)})
    assert open_source("s", policies=STRICT).listing().has_classes
