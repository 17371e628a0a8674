"""Flat folders and their label files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    write_files,
)

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop
from causalfusion_platform.data.sources import Source, open_source

IMAGES: dict[str, bytes | str] = {"b.png": digit(0), "sub/a.jpg": photograph("china"), "a.png": digit(1)}
PAIRS: list[Any] = [["b.png", 2], ["sub/a.jpg", 0], ["a.png", 2]]
NAMED = "file,label\nb.png,dog\nsub/a.jpg,cat\na.png,dog\n"


def source_of(folder: Path, name: str, labels: str, *settings: str, **options: Any) -> Source:
    """Return the images with a label file beside their folder."""
    write_files(folder, {f"images/{key}": content for key, content in IMAGES.items()})
    write_files(folder, {name: labels})
    return open_source("images", labels=name, policies=allow(*settings), **options)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("l.csv", "file,label\nb.png,2\nsub/a.jpg,0\na.png,2\n"),
        ("l.csv", "\ufeffFileName,extra,Label\r\n\r\nb.png,x,2\r\nsub/a.jpg,1,0\r\n./a.png,,2\r\n"),
        ("l.csv", "b.png,2\nsub/a.jpg,0\n\na.png, 2"),
        ("l.CSV", '"a.png","2"\n"b.png","02"\n"sub/a.jpg",0\n'),
        ("l.json", json.dumps(dict(PAIRS))),
        ("l.json", json.dumps(PAIRS)),
        ("dataset.json", json.dumps({"labels": PAIRS, "version": 1})),
    ],
)
def test_integers_in_every_form(tmp_path: Path, name: str, labels: str) -> None:
    source = source_of(tmp_path, name, labels)
    listing = source.listing()
    assert (listing.kind, listing.shuffled, listing.class_names) == ("flat", True, ["0", "1", "2"])
    assert keys_of(listing) == ["a.png", "b.png", "sub/a.jpg"]
    assert listing.table["label"].to_pylist() == [2, 2, 0]
    assert listing.table["size"].to_pylist() == [len(IMAGES[key]) for key in keys_of(listing)]
    assert contents_of(source) == IMAGES


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("l.csv", NAMED),
        ("l.json", '{"b.png": "dog", "sub/a.jpg": "cat", "a.png": "dog"}'),
        ("l.json", '{"labels": {"b.png": "dog", "sub/a.jpg": "cat", "a.png": "dog"}}'),
    ],
)
def test_names_of_classes_are_sorted(tmp_path: Path, name: str, labels: str) -> None:
    listing = source_of(tmp_path, name, labels).listing()
    assert listing.class_names == ["cat", "dog"]
    assert labels_of(listing) == {"a.png": "dog", "b.png": "dog", "sub/a.jpg": "cat"}


def test_captions_and_columns_by_name(tmp_path: Path) -> None:
    labels = 'pic,kind,text\nb.png,1,"a dog, black"\nsub/a.jpg,0,  \na.png,1,"two\nlines"\n'
    options = {"image_column": "pic", "label_column": "Kind", "caption_column": "text"}
    listing = source_of(tmp_path, "l.csv", labels, **options).listing()
    assert dict(zip(keys_of(listing), listing.table["captions"].to_pylist(), strict=True)) == {
        "a.png": ["two\nlines"],
        "b.png": ["a dog, black"],
        "sub/a.jpg": [],
    }
    without = source_of(tmp_path, "l.csv", labels, image_column="pic", label_column="kind").listing()
    assert "captions" not in without.table.column_names
    assert without.digest != listing.digest


def test_a_label_file_among_the_images_is_no_image(tmp_path: Path) -> None:
    write_files(tmp_path / "images", {**IMAGES, "dataset.json": json.dumps({"labels": PAIRS})})
    for labels in ("images/dataset.json", f"file://{tmp_path}/images/dataset.json"):
        listing = open_source("images", labels=labels, policies=STRICT).listing()
        assert keys_of(listing) == ["a.png", "b.png", "sub/a.jpg"]


def test_images_without_labels_stop_or_are_counted(tmp_path: Path) -> None:
    with pytest.raises(FaultStop, match=r"^a\.png: unlabelled: .*no entry.* \(and 1 more\)$"):
        source_of(tmp_path, "l.csv", "b.png,3\n").listing()
    listing = source_of(tmp_path, "l.csv", "b.png,3\na.png,-1\n", "unlabelled=skip").listing()
    assert left_out(listing) == [("a.png", "unlabelled"), ("sub/a.jpg", "unlabelled")]
    assert [finding.detail for _, finding in listing.findings] == [
        "its label is negative",
        "has no entry in the label file",
    ]
    assert listing.table["label"].to_pylist() == [3]
    assert len(listing.class_names) == 4


def test_the_lines_of_caffes_val_txt(tmp_path: Path) -> None:
    """ILSVRC's validation images lie in one folder, and Caffe's list numbers classes by their sorted names."""
    listing = source_of(tmp_path, "val.txt", "b.png 65\n\na.png 970\nsub/a.jpg 0\n").listing()
    assert dict(zip(keys_of(listing), listing.table["label"].to_pylist(), strict=True)) == {
        "a.png": 970,
        "b.png": 65,
        "sub/a.jpg": 0,
    }
    assert len(listing.class_names) == 971


def test_labels_without_images_stop_or_are_counted(tmp_path: Path) -> None:
    labels = NAMED + "gone.png,dog\n"
    with pytest.raises(FaultStop, match=r"^gone\.png: missing: "):
        source_of(tmp_path, "l.csv", labels).listing()
    listing = source_of(tmp_path, "l.csv", labels, "missing=skip").listing()
    assert left_out(listing) == [("gone.png", "missing")]
    assert listing.table.num_rows == 3


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("l.csv", NAMED + "b.png,cat\n", r"l\.csv line 5: 'b\.png' is there already, in l\.csv line 2"),
        ("l.json", '{"b.png": 1, "a.png": 2, "b.png": 1}', r"entry 3: 'b\.png' is there already, in .* entry 1"),
        ("l.csv", "file,label\nb.png,1\na.png\n", "line 3 has 1 values, the first line 2"),
        ("l.csv", "file,label\nb.png,\n", "line 2: '' is not a label"),
        ("l.csv", "file,label\nb.png,1.0\n", r"line 2: '1\.0' is not a label"),
        ("l.csv", "file,label\n,1\n", "line 2: the name of the file is empty"),
        ("l.csv", "b.png,1\na.png,x\n", "not both: .* line 1 has an integer, .* line 2 a name"),
        ("l.csv", "b.png 1\n", "line 1: there is no column 'file' among b.png 1"),
        ("l.csv", "name,label,x\nb.png,1,2\n", "line 1: there is no column 'file' among name, label, x"),
        ("l.csv", 'b.png,1\n"a.png,2', "line 2 is not CSV"),
        ("l.csv", "file,label\n", "has no entry"),
        ("l.csv", "b.png,2000000\n", "label 2000000 is too large"),
        ("l.csv", "b.png,99999999999999999999\n", "a label is not a class number"),
        ("l.csv", "else/b.png,2\n", "names no file of images: its first entry is 'else/b.png'"),
        ("l.tsv", "b.png,2\n", r"neither \.csv, \.json nor \.txt"),
        ("l.txt", "b.png 2\n490\n", r"line 2 is a number alone.*\n  use Caffe's val\.txt"),
        ("l.txt", "b.png 2\na.png 1.0\n", r"line 2: '1\.0' is not a label"),
        ("l.txt", "b.png\n", "line 1: the name of the file is empty"),
        ("l.json", '{"b.png": 1', "is not JSON"),
        ("l.json", '{"labels": null}', "holds NoneType where a list should be"),
        ("l.json", '[["b.png", true]]', "entry 1 is .* not a file and its label"),
        ("l.json", '[["b.png", [0, 1]]]', "entry 1 is .* not a file and its label"),
        ("l.json", '[{"file": "b.png", "label": 1}]', "entry 1 is .* not a file and its label"),
        ("l.json", '{"b.png": 1, "a.png": null}', "entry 2 is .* not a file and its label"),
    ],
)
def test_faults_of_label_files_are_named(tmp_path: Path, name: str, labels: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        source_of(tmp_path, name, labels).listing()


def test_a_label_file_that_cannot_be_read(tmp_path: Path) -> None:
    write_files(tmp_path / "images", IMAGES)
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read: it is not there"):
        open_source("images", labels="nowhere.csv", policies=STRICT).listing()
    write_files(tmp_path, {"l.csv": b"b.png,caf\xe9\n"})
    with pytest.raises(UserError, match=r"l\.csv cannot be read: 'utf-8'"):
        open_source("images", labels="l.csv", policies=STRICT).listing()


def test_json_has_no_columns_to_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON has no columns"):
        source_of(tmp_path, "l.json", json.dumps(PAIRS), caption_column="text").listing()
