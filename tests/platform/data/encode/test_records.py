"""Records of finished shards, and what no longer counts as finished."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from causalfusion_platform.data.encode.records import (
    Fault,
    ShardRecord,
    count_faults,
    finished_shards,
    record_path,
    write_faults,
)
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Rows

FAULTS = [
    Fault(key="b.jpg", kind="cmyk", action="convert", detail="CMYK"),
    Fault(key='a, "b".jpg', kind="truncated", action="skip", detail="ends\nearly"),
    Fault(key="b.jpg", kind="animated", action="convert", detail="γ"),
    Fault(key="c.jpg", kind="truncated", action="skip", detail=""),
]


@pytest.fixture
def folder(write_small: Callable[..., tuple[Path, Rows, Manifest]]) -> Path:
    """Five shards of 4 rows and their records; every image of a sixth was left out."""
    folder, _, manifest = write_small(20, rows_per_shard=4, rows_per_group=4)
    (folder / "encoding").mkdir()
    for index, shard in enumerate(manifest.shards):
        ShardRecord(items=4, shard=shard, faults=FAULTS[:index]).write(record_path(folder / "encoding", index))
    ShardRecord(items=3, shard=None, faults=FAULTS).write(record_path(folder / "encoding", 5))
    return folder


def test_whole_shards_are_finished(folder: Path) -> None:
    found = finished_shards(folder / "encoding", folder, 6)
    assert list(found) == [0, 1, 2, 3, 4, 5]
    assert [record.faults for record in found.values()] == [[], FAULTS[:1], FAULTS[:2], FAULTS[:3], FAULTS, FAULTS]
    assert found[5].shard is None
    files = [record.shard.file for record in found.values() if record.shard]
    assert files == sorted(path.name for path in folder.glob("*.parquet"))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "shard missing": lambda shard, _: shard.unlink(),
    "shard is a folder": lambda shard, _: _to_folder(shard),
    "shard of the same size": lambda shard, _: _flip(shard),
    "shard cut": lambda shard, _: shard.write_bytes(shard.read_bytes()[:-1]),
    "shard longer": lambda shard, _: shard.write_bytes(shard.read_bytes() + b"\0"),
    "shard empty": lambda shard, _: shard.write_bytes(b""),
    "record missing": lambda _, record: record.unlink(),
    "record empty": lambda _, record: record.write_bytes(b""),
    "record cut": lambda _, record: record.write_bytes(record.read_bytes()[:-3]),
    "record of zeros": lambda _, record: record.write_bytes(bytes(200)),
    "record of another program": lambda _, record: record.write_bytes(b'{"shard": null}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_anything_less_is_not(folder: Path, damage: str) -> None:
    DAMAGE[damage](sorted(folder.glob("*.parquet"))[2], record_path(folder / "encoding", 2))
    assert list(finished_shards(folder / "encoding", folder, 6)) == [0, 1, 3, 4, 5]


def test_nothing_is_finished_at_first(tmp_path: Path) -> None:
    assert finished_shards(tmp_path / "encoding", tmp_path, 3) == {}


def test_faults_are_counted_by_kind_and_action() -> None:
    skipped = Fault(key="d", kind="cmyk", action="skip", detail="")
    counts = count_faults([*FAULTS, skipped])
    assert counts == {"animated": {"convert": 1}, "cmyk": {"convert": 1, "skip": 1}, "truncated": {"skip": 2}}
    assert list(counts) == sorted(counts)


def test_faults_are_listed_by_name_whatever_their_order(tmp_path: Path) -> None:
    path = write_faults(tmp_path, FAULTS)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["kind"]) for row in rows] == [
        ('a, "b".jpg', "truncated"),
        ("b.jpg", "animated"),
        ("b.jpg", "cmyk"),
        ("c.jpg", "truncated"),
    ]
    assert rows[0]["detail"] == "ends\nearly"
    before = path.read_bytes()
    assert write_faults(tmp_path, FAULTS[::-1]).read_bytes() == before
