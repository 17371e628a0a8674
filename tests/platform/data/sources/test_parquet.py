"""Parquet files, in the layout of Hugging Face's data sets and others."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.platform.data.sources.makers import (
    STRICT,
    allow,
    contents_of,
    digit,
    keys_of,
    labels_of,
    left_out,
    photograph,
)

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop
from causalfusion_platform.data.sources import open_source

FEATURES = {
    "image": {"_type": "Image"},
    "age": {"dtype": "int64", "_type": "Value"},
    "species": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"},
}


def images_of(count: int, start: int = 0) -> list[bytes]:
    return [photograph("china"), *(digit(row) for row in range(start, start + count - 1))]


def write_hugging_face(path: Path, images: list[bytes], labels: Sequence[int | None], group: int = 3) -> None:
    """Write a file as `datasets` does: a struct of bytes and path, and the features in the metadata."""
    table = pa.table(
        {
            "age": pa.array(range(len(images)), pa.int64()),
            "image": pa.array(
                [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(images)],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            ),
            "species": pa.array(labels, pa.int64()),
        }
    )
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)


def write_plain(path: Path, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_hugging_face_layout(tmp_path: Path) -> None:
    first, second = images_of(11), images_of(4, start=20)
    write_hugging_face(tmp_path / "d/data/train-1.parquet", second, [0, 0, 1, 1])
    write_hugging_face(tmp_path / "d/data/train-0.parquet", first, [2, 0, 1] * 3 + [0, 2])
    (tmp_path / "d/README.md").write_text("a card")
    source = open_source("d", policies=STRICT)
    listing = source.listing()
    assert (listing.kind, listing.shuffled, listing.class_names) == ("parquet", False, ["cat", "dog", "eel"])
    expected = [(f"data/train-0.parquet#{row:09d}", image) for row, image in enumerate(first)]
    expected += [(f"data/train-1.parquet#{row:09d}", image) for row, image in enumerate(second)]
    assert keys_of(listing) == [key for key, _ in expected]  # rows sort as numbers: 2 before 10
    assert listing.table["label"].to_pylist() == [2, 0, 1] * 3 + [0, 2] + [0, 0, 1, 1]
    assert listing.table["row_group"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0, 0, 1]
    assert listing.table["offset"].to_pylist() == [*range(11), *range(4)]
    assert set(listing.table["size"].to_pylist()) == {-1}
    assert contents_of(source) == dict(expected)


def test_the_reader_jumps_between_row_groups_after_pickling(tmp_path: Path) -> None:
    images = {"a": images_of(7), "b": images_of(7, start=30)}
    for name, content in images.items():
        write_hugging_face(tmp_path / f"d/{name}.parquet", content, [0] * 7, group=2)
    source = open_source("d", policies=STRICT)
    rows = source.listing().table.take([13, 0, 6, 1, 8, 7, 5, 5])
    reader = source.reader()
    expected = [(images["a"] + images["b"])[row] for row in (13, 0, 6, 1, 8, 7, 5, 5)]
    assert list(reader.read(rows)) == expected
    assert list(pickle.loads(pickle.dumps(reader)).read(rows)) == expected


def test_a_row_group_is_read_once_for_many_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(9)
    write_hugging_face(tmp_path / "a.parquet", images, [0] * 9, group=4)
    source = open_source("a.parquet", policies=STRICT)
    table = source.listing().table
    read: list[tuple[int, list[str]]] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str], **options: object) -> pa.Table:
        read.append((group, columns))
        return original(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    reader = source.reader()
    assert [next(iter(reader.read(table.slice(row, 1)))) for row in range(9)] == images
    assert read == [(group, ["image.bytes"]) for group in range(3)]  # and the paths are not read


def test_plain_bytes_with_names_and_captions(tmp_path: Path) -> None:
    images = images_of(3)
    write_plain(
        tmp_path / "p.parquet",
        jpg=pa.array(images, pa.large_binary()),
        cls=pa.array(["dog", "ant", "dog"]).dictionary_encode(),
        text=pa.array(["one", None, "three"]),
        texts=pa.array([["x", "y"], [], None], pa.list_(pa.string())),
    )
    source = open_source("p.parquet", caption_column="text", policies=STRICT)
    listing = source.listing()
    assert listing.class_names == ["ant", "dog"]
    assert list(labels_of(listing).values()) == ["dog", "ant", "dog"]
    assert listing.table["captions"].to_pylist() == [["one"], [], ["three"]]
    assert list(contents_of(source).values()) == images
    listing = open_source("p.parquet", caption_column="texts", policies=STRICT).listing()
    assert listing.table["captions"].to_pylist() == [["x", "y"], [], []]


def test_columns_by_name(tmp_path: Path) -> None:
    write_plain(
        tmp_path / "p.parquet", left=[digit(0)], right=[digit(1)], label=[5], other=pa.array([2], pa.uint8())
    )
    with pytest.raises(UserError, match=r"columns of bytes: left, right\n.*--image-column"):
        open_source("p.parquet", policies=STRICT).listing()
    source = open_source("p.parquet", image_column="right", label_column="other", policies=STRICT)
    assert source.listing().table["label"].to_pylist() == [2]
    assert source.listing().class_names == ["0", "1", "2"]
    assert list(contents_of(source).values()) == [digit(1)]


def test_rows_without_labels_stop_or_are_counted(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "a.parquet", images_of(4), [None, 1, -1, 0])
    with pytest.raises(FaultStop, match=r"^a\.parquet#000000000: unlabelled: .*and 1 more"):
        open_source("a.parquet", policies=STRICT).listing()
    source = open_source("a.parquet", policies=allow("unlabelled=skip"))
    assert left_out(source.listing()) == [
        ("a.parquet#000000000", "unlabelled"),
        ("a.parquet#000000002", "unlabelled"),
    ]
    assert list(contents_of(source).values()) == [images_of(4)[1], images_of(4)[3]]


def test_a_row_without_bytes_cannot_be_read(tmp_path: Path) -> None:
    write_plain(
        tmp_path / "a.parquet",
        image=[{"bytes": None, "path": "x.png"}, {"bytes": digit(0), "path": ""}],
        label=[0, 1],
    )
    # Arrow takes a field of nulls and bytes for bytes.
    missing, there = contents_of(open_source("a.parquet", policies=STRICT)).values()
    assert isinstance(missing, OSError)
    assert there == digit(0)


def test_a_damaged_row_group_is_an_error_of_its_rows_only(tmp_path: Path) -> None:
    """Its bytes are broken without checksums, so that decoding fails."""
    images = [np.random.default_rng(row).bytes(2000) for row in range(4)]
    write_hugging_face(tmp_path / "a.parquet", images, [0] * 4, group=2)
    source = open_source("a.parquet", policies=STRICT)
    table = source.listing().table
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(1)
    column = next(
        group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "image.bytes"
    )
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 200] = bytes(200)
    (tmp_path / "a.parquet").write_bytes(content)
    contents = list(source.reader().read(table))
    assert contents[:2] == images[:2]
    assert all(isinstance(content, OSError) for content in contents[2:])


def test_extension_types_are_refused_before_arrow_makes_them(tmp_path: Path) -> None:
    """Whatever the alignment of the word in the footer's base64."""
    made: list[bytes] = []

    class Trap(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.int64(), "tests.trap")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Trap:
            made.append(serialized)
            return cls()

    for length in range(1, 9):
        name = "x" * length
        trap = pa.ExtensionArray.from_storage(Trap(), pa.array([1]))
        write_plain(tmp_path / f"{length}.parquet", image=[digit(0)], label=[0], **{name: trap})
    pa.register_extension_type(Trap())
    try:
        for length in range(1, 9):
            with pytest.raises(UserError, match=f"{length}.parquet has a column of an extension type"):
                open_source(f"{length}.parquet", policies=STRICT).listing()
        assert made == []
        pq.read_schema(tmp_path / "1.parquet")
        assert made  # it would have been made
    finally:
        pa.unregister_extension_type("tests.trap")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": [b"x"], "kind": [0]}, {}, "no column 'label' among image, kind\n.*--label-column"),
        ({"image": ["x"], "label": [0]}, {}, "no column of bytes: image, label"),
        ({"image": ["x"], "label": [0]}, {"image_column": "image"}, "column 'image' is string; allowed: bytes"),
        ({"image": [b"x"], "label": [0]}, {"image_column": "pic"}, "no column 'pic' among image, label"),
        ({"image": [b"x"], "label": [0.5]}, {}, "column 'label' is double; allowed: integers or strings"),
        ({"image": [b"x"], "label": [True]}, {}, "column 'label' is bool"),
        ({"image": [b"x"], "label": [3_000_000]}, {}, "label 3000000 is too large"),
        ({"image": [b"x"], "label": pa.array([2**64 - 1], pa.uint64())}, {}, "cannot be read as Parquet"),
        (
            {"image": [b"x"], "label": [0]},
            {"caption_column": "text"},
            "no column 'text' among .*\n.*--caption-column",
        ),
        (
            {"image": [b"x"], "label": [0]},
            {"caption_column": "label"},
            "'label' is int64; allowed: strings or lists",
        ),
    ],
)
def test_faults_of_columns_are_named(
    tmp_path: Path, columns: dict[str, object], options: dict[str, str], message: str
) -> None:
    write_plain(tmp_path / "p.parquet", **columns)
    with pytest.raises(UserError, match=message):
        open_source("p.parquet", policies=STRICT, **options).listing()  # type: ignore[arg-type]


def test_a_label_beyond_the_names_is_refused(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "a.parquet", images_of(2), [0, 3])
    with pytest.raises(UserError, match="label 3 is too large: there are names of 3 classes"):
        open_source("a.parquet", policies=STRICT).listing()


@pytest.mark.parametrize("other", [{"image": [b"x"], "label": ["dog"]}, {"jpg": [b"x"], "label": [0]}])
def test_files_must_belong_together(tmp_path: Path, other: dict[str, object]) -> None:
    write_plain(tmp_path / "s/a.parquet", image=[b"x"], label=[0])
    write_plain(tmp_path / "s/b.parquet", **other)
    with pytest.raises(UserError, match=r"b\.parquet has other columns, class names or labels than a\.parquet"):
        open_source("s", policies=STRICT).listing()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"x" * 100])
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet in a\.parquet cannot be read as Parquet"):
        open_source("a.parquet", policies=STRICT).listing()
