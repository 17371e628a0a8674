"""A scan finds what a shard's hash and schema do not show, in every bad shard, and names it."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.platform.conftest import description_of, small_rows
from tests.platform.data.damage import Change, put, rehash, rewrite

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data import fingerprints
from causalfusion_platform.data.scan import scan_shards
from causalfusion_platform.data.shards import write_shards
from causalfusion_platform.data.validate import open_shards

FILES = [f"shard-{index:05d}-of-00003.parquet" for index in range(3)]


@pytest.fixture
def folder(own_folder: Path) -> Path:
    """30 rows with everything a shard may hold: three shards of row groups with 4, 4 and 2 rows."""
    rows = dataclasses.replace(small_rows(30, posterior=True, flip=True), captions=[["a", "b"]] * 30)
    description = description_of(rows).model_copy(update={"captions": True})
    write_shards(rows, description, own_folder / "small", rows_per_shard=10, rows_per_group=4)
    return own_folder / "small"


def only_fault(folder: Path, file: str) -> str:
    """Return the fault of the one shard that is bad, which the checks before a run do not find."""
    assert not open_shards(folder).bad
    bad = scan_shards(folder).checked.bad
    assert list(bad) == [file]
    return bad[file]


def test_nothing_is_wrong(folder: Path) -> None:
    reports: list[tuple[int, int]] = []
    scan = scan_shards(folder, show=lambda done, total: reports.append((done, total)))
    assert (scan.checked.bad, scan.repeated_latents, scan.examples) == ({}, 0, [])
    assert scan.checked.usable == scan.checked.manifest
    assert reports[-1] == (30, 30)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mean", "std", "mean_flip", "std_flip"])
def test_a_latent_that_is_no_number(folder: Path, name: str, value: float) -> None:
    """Row 5 of the second shard is row 1 of its second row group, and row 15 of the source."""
    fault = only_fault(folder, rewrite(folder, 1, put(name, 5, value)))
    assert fault == f"row group 1: {name} holds NaN or infinity in row 1 (row id 15)"


@pytest.mark.parametrize("name", ["std", "std_flip"])
def test_a_negative_standard_deviation(folder: Path, name: str) -> None:
    fault = only_fault(folder, rewrite(folder, 2, put(name, 8, -(2.0**-24))))  # the smallest that fp16 has
    assert fault == f"row group 2: {name} is negative in row 0 (row id 28)"


@pytest.mark.parametrize(("name", "value"), [("std", 0.0), ("std_flip", -0.0), ("mean", -3.5), ("mean", 65504.0)])
def test_numbers_that_are_right(folder: Path, name: str, value: float) -> None:
    rewrite(folder, 2, put(name, 8, value))
    assert not scan_shards(folder).checked.bad


@pytest.mark.parametrize("value", [-1, 30, 2**40])
def test_a_row_id_out_of_range(folder: Path, value: int) -> None:
    fault = only_fault(folder, rewrite(folder, 0, put("row_id", 3, value)))
    assert (
        fault
        == f"row group 0: the row id of row 3 (row id {value}) is out of range: allowed is 0…29, the source's items"
    )


def test_a_label_that_the_statistics_hide(folder: Path) -> None:
    """The footer's largest label is forged, so that only the rows show the wrong one."""
    label = 0x1122334455667788
    file = rewrite(folder, 1, put("label", 2, label))
    content = (folder / file).read_bytes()
    start = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    footer = content[start:].replace(label.to_bytes(8, "little"), (2).to_bytes(8, "little"))
    assert footer != content[start:]
    (folder / file).write_bytes(content[:start] + footer)
    rehash(folder, 1)
    fault = only_fault(folder, file)
    assert fault == "row group 0: the label of row 2 (row id 12) is out of range: allowed is 0…2"


def without_a_number(table: pa.Table) -> pa.Table:
    """Leave one number of a tensor out; read as numpy, it would be 0."""
    column = table.column("std").combine_chunks()
    values = column.storage.flatten().to_pylist()
    values[7] = None
    storage = pa.array([values[at : at + 4] for at in range(0, len(values), 4)], column.type.storage_type)
    position = table.schema.names.index("std")
    return table.set_column(
        position, table.schema.field("std"), pa.ExtensionArray.from_storage(column.type, storage)
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without_a_number, "row group 0: std has missing numbers"),
        (put("captions", 9, ["a", None]), "row group 2: captions has a caption that is null"),
    ],
)
def test_what_is_missing(folder: Path, change: Change, expected: str) -> None:
    assert only_fault(folder, rewrite(folder, 0, change)) == expected


def test_a_damaged_page(folder: Path) -> None:
    """The last bit of one number: all would be well, were it not for the page's checksum."""
    path = folder / FILES[1]
    content = bytearray(path.read_bytes())
    latent = small_rows(30).mean[15].tobytes()
    assert content.count(latent) == 1
    content[content.index(latent)] ^= 1
    path.write_bytes(content)
    rehash(folder, 1)
    fault = only_fault(folder, FILES[1])
    assert fault.startswith("row group 1 cannot be read: ")
    assert "CRC" in fault


# Rows that are there twice


@pytest.mark.parametrize(
    ("name", "own", "others", "text"),
    [("row_id", 17, 4, "row id {}"), ("key", "key 17", "key 4", "key {!r}")],
)
def test_a_row_that_is_there_twice(folder: Path, name: str, own: object, others: object, text: str) -> None:
    file = rewrite(folder, 1, put(name, 2, own))  # row 7 of the shard has it
    expected = f"{text.format(own)} is twice in it (row 7 here, row 2 there)"
    assert scan_shards(folder).checked.bad == {file: expected}
    rewrite(folder, 1, put(name, 2, others))  # the first shard has it
    expected = f"{text.format(others)} is in {FILES[0]} too (row 2 here, row 4 there)"
    assert scan_shards(folder).checked.bad == {file: expected}
    before_a_run = open_shards(folder, max_bad_rows=0.4).bad
    assert before_a_run == ({file: expected} if name == "row_id" else {})


def test_a_shard_that_repeats_a_bad_one_is_good(folder: Path) -> None:
    """Without the second, no row id of the third is there twice."""
    rewrite(folder, 1, put("row_id", 2, 4))
    rewrite(folder, 2, put("row_id", 0, 13))
    assert list(scan_shards(folder).checked.bad) == [FILES[1]]
    rewrite(folder, 1, put("mean", 2, np.nan))
    bad = scan_shards(folder).checked.bad
    assert list(bad) == [FILES[1]]
    assert "NaN" in bad[FILES[1]]


def test_keys_are_compared_where_their_hashes_are_equal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_hashes", lambda rows: np.zeros(len(list(rows)), np.uint64))
    assert not scan_shards(folder).checked.bad


def test_equal_latents_are_reported_and_no_fault(folder: Path) -> None:
    rows = small_rows(30).mean

    def copies(table: pa.Table) -> pa.Table:
        latents = rows[20:30].copy()
        latents[[1, 3, 6]] = rows[[2, 20, 2]]
        position = table.schema.names.index("mean")
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(latents)
        return table.set_column(position, table.schema.field("mean"), column)

    rewrite(folder, 2, copies)
    scan = scan_shards(folder, num_examples=2)
    assert not scan.checked.bad
    assert scan.repeated_latents == 3
    assert scan.examples == [("key 2", "key 21"), ("key 20", "key 23")]


# Many faults at once


def test_every_bad_shard_is_listed(folder: Path) -> None:
    rewrite(folder, 0, put("std", 1, -1.0))
    (folder / FILES[1]).unlink()
    (folder / FILES[2]).write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    rehash(folder, 2)
    bad = scan_shards(folder).checked.bad
    assert list(bad) == FILES
    assert "std is negative" in bad[FILES[0]]
    assert bad[FILES[1]] == "the file is missing"
    assert "not readable Parquet" in bad[FILES[2]]


def test_a_file_that_the_storage_does_not_give(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        if path.name == FILES[0]:
            raise OSError(5, "Input/output error")
        return "0" * 64

    monkeypatch.setattr("causalfusion_platform.data.validate.sha256_of", fail)
    bad = scan_shards(folder).checked.bad
    assert bad[FILES[0]] == "the file cannot be read: Input/output error"
    assert list(bad) == FILES


def test_a_quick_scan_reads_no_rows(folder: Path) -> None:
    rewrite(folder, 0, put("mean", 1, np.nan))
    content = bytearray((folder / FILES[1]).read_bytes())
    content[1000] ^= 1
    (folder / FILES[1]).write_bytes(content)
    (folder / FILES[2]).unlink()
    assert scan_shards(folder, quick=True).checked.bad == {FILES[2]: "the file is missing"}


def test_an_exception_ends_the_pass(folder: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_shards(folder, show=interrupt)


def test_no_folder_of_shards(own_folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        scan_shards(own_folder / "nowhere")


def test_the_digits_are_whole(digits_folder: Path) -> None:
    assert not scan_shards(digits_folder).checked.bad
