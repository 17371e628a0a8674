"""The class of a label does not depend on the file that it is written in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.platform.data.sources.makers import STRICT, digit, write_files, write_tar

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop
from causalfusion_platform.data.sources import EARLIER_RULES, Listing, open_source
from causalfusion_platform.data.sources.labels import read_label

Write = Callable[[Path, Sequence[object]], dict[str, str]]


def name_of(row: int) -> str:
    return f"{row:03d}.png"


def as_csv(folder: Path, labels: Sequence[object]) -> dict[str, str]:
    lines = "".join(f"{name_of(row)},{label}\n" for row, label in enumerate(labels))
    write_files(folder, {"l.csv": f"file,label\n{lines}"})
    return {"labels": f"{folder}/l.csv"}


def as_json(folder: Path, labels: Sequence[object]) -> dict[str, str]:
    write_files(folder, {"l.json": json.dumps({name_of(row): label for row, label in enumerate(labels)})})
    return {"labels": f"{folder}/l.json"}


def as_parquet(folder: Path, labels: Sequence[object]) -> dict[str, str]:
    pq.write_table(pa.table({"image": [digit(0)] * len(labels), "label": labels}), folder / "0.parquet")
    return {"kind": "parquet"}


def as_dictionary(folder: Path, labels: Sequence[object]) -> dict[str, str]:
    column = pa.array(labels).dictionary_encode()
    pq.write_table(pa.table({"image": [digit(0)] * len(labels), "label": column}), folder / "0.parquet")
    return {"kind": "parquet"}


def as_tar(folder: Path, labels: Sequence[object]) -> dict[str, str]:
    members: list[tuple[str, bytes | str]] = []
    for row, label in enumerate(labels):
        members += [(name_of(row), digit(row)), (f"{row:03d}.json", json.dumps({"label": label}))]
    write_tar(folder / "0.tar", members)
    return {"kind": "webdataset"}


def as_cls(folder: Path, labels: Sequence[object]) -> dict[str, str]:
    members: list[tuple[str, bytes | str]] = []
    for row, label in enumerate(labels):
        members += [(name_of(row), digit(row)), (f"{row:03d}.cls", str(label))]
    write_tar(folder / "0.tar", members)
    return {"kind": "webdataset"}


FILES: list[Write] = [as_csv, as_json, as_parquet, as_dictionary, as_tar, as_cls]
NUMBERS = [10, 2, 0, 11, 2]


def listing_of(write: Write, folder: Path, labels: Sequence[object], **options: int) -> Listing:
    write_files(folder, {name_of(row): digit(row) for row in range(len(labels))})
    return open_source(str(folder), **write(folder, labels), policies=STRICT, **options).listing()  # type: ignore[arg-type]


@pytest.mark.parametrize("write", FILES)
@pytest.mark.parametrize(
    "labels", [NUMBERS, [str(label) for label in NUMBERS], [f" {label:02d} " for label in NUMBERS]]
)
def test_digits_are_numbers_in_every_file(tmp_path: Path, write: Write, labels: Sequence[object]) -> None:
    listing = listing_of(write, tmp_path / "s", labels)
    assert listing.table["label"].to_pylist() == NUMBERS
    assert listing.class_names == [str(label) for label in range(12)]


@pytest.mark.parametrize("write", FILES[:-1])
def test_names_are_sorted_in_every_file(tmp_path: Path, write: Write) -> None:
    listing = listing_of(write, tmp_path / "s", ["v10", "v2", " v10", "Z"])
    assert listing.class_names == ["Z", "v10", "v2"]
    assert listing.table["label"].to_pylist() == [1, 2, 1, 0]


@pytest.mark.parametrize("write", FILES[:-1])
def test_numbers_and_names_do_not_mix_in_any_file(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match=r"integers or names, not both: \S.* has an integer, .* a name, 'dog'\n"):
        listing_of(write, tmp_path / "s", ["10", "dog", "2"])


@pytest.mark.parametrize("write", FILES)
@pytest.mark.parametrize("label", ["", "1.0", " "])
def test_what_is_not_a_label_in_any_file(tmp_path: Path, write: Write, label: str) -> None:
    with pytest.raises((UserError, FaultStop), match=r"not a (file and its )?label|unlabelled"):
        listing_of(write, tmp_path / "s", ["1", label, "2"])


@pytest.mark.parametrize("write", [as_json, as_parquet, as_tar])
def test_the_earlier_rules_sort_digits_as_names(tmp_path: Path, write: Write) -> None:
    listing = listing_of(write, tmp_path / "s", ["10", "2", "0", "11"], rules=EARLIER_RULES)
    assert listing.class_names == ["0", "10", "11", "2"]
    assert listing.table["label"].to_pylist() == [1, 3, 0, 2]


def test_class_folders_of_numbers_are_in_their_order(tmp_path: Path) -> None:
    """0 … 11 as labels are the classes 0 … 11. Folders without a gap are no more classes than there are folders."""
    write_files(tmp_path / "s", {f"{label}/0.png": digit(label) for label in range(12)})
    listing = open_source("s", policies=STRICT).listing()
    assert listing.class_names == [str(label) for label in range(12)]
    earlier = open_source("s", policies=STRICT, rules=EARLIER_RULES).listing()
    assert earlier.class_names == sorted(map(str, range(12)))
    write_files(tmp_path / "t", {f"{name}/0.png": digit(0) for name in ("10", "9", "x")})
    assert open_source("t", policies=STRICT).listing().class_names == ["10", "9", "x"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("10", 10),
        ("-1", -1),
        ("007", 7),
        ("0" * 5000 + "7", 7),
        (" 3\n", 3),
        ("n01", "n01"),
        ("+1", "+1"),
        ("1e3", "1e3"),
        ("٣", "٣"),
        ("1.5", None),
        ("-1.", None),
        ("", None),
    ],
)
def test_the_rule(text: str, label: int | str | None) -> None:
    assert read_label(text) == label


@pytest.mark.parametrize("write", FILES)
def test_a_number_of_thousands_of_digits(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match=r"not a class number|too large"):
        listing_of(write, tmp_path / "s", ["1", "9" * 5000])
