"""Bad shards are set aside, nothing is lost, and an interrupted call can be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.platform.data.damage import put, rehash, rewrite

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.quarantine import quarantine_shards
from causalfusion_platform.data.scan import scan_shards
from causalfusion_platform.data.shards import Rows
from causalfusion_platform.data.validate import open_shards

FILES = [f"shard-{index:05d}-of-00004.parquet" for index in range(4)]


@pytest.fixture
def folder(write_small: Callable[..., tuple[Path, Rows, Manifest]]) -> Path:
    """34 rows in shards of 10, 10, 10 and 4; the second holds NaN and the third is missing."""
    folder, _, _ = write_small(34, rows_per_shard=10, rows_per_group=4)
    rewrite(folder, 1, put("mean", 5, np.nan))
    (folder / FILES[2]).unlink()
    return folder


def quarantine(folder: Path) -> Manifest:
    checked = scan_shards(folder).checked
    return quarantine_shards(folder, checked.manifest, checked.bad)


def test_bad_shards_are_set_aside(folder: Path) -> None:
    content = (folder / FILES[1]).read_bytes()
    old = Manifest.read(folder)
    new = quarantine(folder)
    assert new == Manifest.read(folder) == open_shards(folder).manifest
    assert not scan_shards(folder).checked.bad
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "_manifest.json",
        ".huggingface.yaml",
        FILES[0],
        FILES[3],
        f"_quarantine/{FILES[1]}",
    }
    assert (folder / "_quarantine" / FILES[1]).read_bytes() == content
    assert new.rows == 14
    assert new.shards == [old.shards[0], old.shards[3]]
    assert [part.model_dump() for part in new.quarantined] == [
        {"file": FILES[1], "rows": 10, "reason": "row group 1: mean holds NaN or infinity in row 1 (row id 15)"},
        {"file": FILES[2], "rows": 10, "reason": "the file is missing"},
    ]
    assert new.digest != old.digest


@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_call_that_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Before the manifest is written, or between two moves: the next call finishes, and every file is there."""
    rewrite(folder, 0, put("mean", 0, np.inf))
    contents = {file: (folder / file).read_bytes() for file in (FILES[0], FILES[1], FILES[3])}
    before = (folder / "_manifest.json").read_bytes()
    owner, name = (Manifest, "write") if when == "write" else (Path, "rename")
    rename = Path.rename
    moved: list[Path] = []

    def killed(path: Path, *target: Path) -> Path:
        if when == "write" or moved:
            raise KeyboardInterrupt
        moved.append(path)
        return rename(path, *target)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            quarantine(folder)
    assert (folder / "_manifest.json").read_bytes() == before
    assert not (folder / FILES[0]).exists()
    new = quarantine(folder)
    assert [part.file for part in new.quarantined] == FILES[:3]
    assert new.quarantined[0].reason == (
        "it was in _quarantine/ already: row group 0: mean holds NaN or infinity in row 0 (row id 0)"
    )
    assert new.quarantined[2].reason == "the file is missing"
    assert (folder / FILES[3]).read_bytes() == contents[FILES[3]]
    for file in FILES[:2]:
        assert (folder / "_quarantine" / file).read_bytes() == contents[file]
    assert not scan_shards(folder).checked.bad


def test_all_shards_are_bad(folder: Path) -> None:
    for file in (FILES[0], FILES[3]):
        (folder / file).write_bytes(b"nothing")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        UserError, match=r"all 4 shards in .* are bad; none was moved\n  .*causalfusion data encode"
    ):
        quarantine(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_twice_the_same_shard(folder: Path) -> None:
    """Set aside, made anew, and bad again: both files are kept."""
    manifest = (folder / "_manifest.json").read_text()
    first = (folder / FILES[1]).read_bytes()
    quarantine(folder)
    (folder / "_manifest.json").write_text(manifest)
    (folder / FILES[1]).write_bytes(b"bad again")
    quarantine(folder)
    assert (folder / "_quarantine" / FILES[1]).read_bytes() == first
    assert (folder / "_quarantine" / f"{FILES[1]}.2").read_bytes() == b"bad again"


def test_earlier_entries_are_kept(folder: Path) -> None:
    quarantine(folder)
    tree = json.loads((folder / "_manifest.json").read_text())
    assert len(tree["shards"]) == 2
    rewrite(folder, 1, put("row_id", 0, 3))
    rehash(folder, 1)
    new = quarantine(folder)
    assert [part.file for part in new.quarantined] == FILES[1:]
    assert new.rows == 10


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "_quarantine").touch()
    with pytest.raises(UserError, match=r"shard-00001-of-00004.parquet cannot be moved to .*quarantine"):
        quarantine(folder)
    assert Manifest.read(folder).rows == 34
