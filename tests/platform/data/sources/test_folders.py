"""Class folders, read from every kind of storage."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
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
from causalfusion_platform.data.sources import open_source

PETS: dict[str, bytes | str] = {
    "zebra/b.png": digit(0),
    "zebra/deep/er/a.JPEG": photograph("china"),
    "ant/10.png": digit(1),
    "ant/9.png": digit(2),
    "Ant/flower.jpg": photograph("flower"),
    "ant/notes.txt": b"not an image",
}


def test_every_file_is_an_item_with_its_folder_as_class(tmp_path: Path) -> None:
    write_files(tmp_path / "pets", PETS)
    (tmp_path / "pets" / "empty").mkdir()
    source = open_source(str(tmp_path / "pets"), policies=STRICT)
    listing = source.listing()
    assert (listing.kind, listing.class_names) == ("folders", ["Ant", "ant", "empty", "zebra"])
    assert keys_of(listing) == sorted(PETS, key=str.encode)
    assert labels_of(listing) == {key: key.split("/")[0] for key in PETS}
    assert listing.table["size"].to_pylist() == [len(PETS[key]) for key in keys_of(listing)]
    assert contents_of(source) == PETS
    assert listing.shuffled
    assert listing.findings == []
    assert "captions" not in listing.table.column_names


def test_a_reader_travels_to_another_process(tmp_path: Path) -> None:
    write_files(tmp_path / "pets", PETS)
    source = open_source("pets", policies=STRICT)
    table = source.listing().table
    reader = pickle.loads(pickle.dumps(source.reader()))
    os.chdir("/")  # where another process may have been started
    picked = table.take([4, 0, 4])
    assert list(reader.read(picked)) == [PETS[key] for key in picked["key"].to_pylist()]


def test_keys_sort_by_their_bytes(tmp_path: Path) -> None:
    """UTF-8's order is not UTF-16's, and not an alphabet's."""
    names = ["a/\U0001f600.png", "a/\uff5e.png", "a/é.png", "a/z.png", "a/Z.png", "a/0.png"]
    write_files(tmp_path / "s", dict.fromkeys(names, digit(0)))
    listing = open_source(str(tmp_path / "s"), policies=STRICT).listing()
    assert [key.encode() for key in keys_of(listing)] == sorted(name.encode() for name in names)
    assert keys_of(listing)[-2:] == ["a/\uff5e.png", "a/\U0001f600.png"]


def test_files_beside_the_classes_stop_or_are_counted(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path / "pets", {**PETS, "README": "hello", "x.png": digit(3), ".cache/x.png": digit(4)}
    )
    with pytest.raises(FaultStop) as stop:
        open_source(str(folder), policies=STRICT).listing()
    assert (stop.value.key, stop.value.finding.kind) == ("README", "unlabelled")
    assert "1 more" in stop.value.finding.detail
    listing = open_source(str(folder), policies=allow("unlabelled=skip")).listing()
    assert left_out(listing) == [("README", "unlabelled"), ("x.png", "unlabelled")]
    assert listing.class_names == ["Ant", "ant", "zebra"]
    assert keys_of(listing) == sorted(PETS, key=str.encode)


def test_links_are_followed_and_dangling_ones_cannot_be_read(tmp_path: Path) -> None:
    write_files(tmp_path / "far", {"1.png": digit(0)})
    write_files(tmp_path / "s", {"a/0.png": digit(1)})
    (tmp_path / "s/b").symlink_to(tmp_path / "far")
    (tmp_path / "s/a/2.png").symlink_to(tmp_path / "far/1.png")
    (tmp_path / "s/a/3.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(str(tmp_path / "s"), policies=STRICT)
    listing = source.listing()
    assert dict(zip(keys_of(listing), listing.table["size"].to_pylist(), strict=True)) == {
        "a/0.png": len(digit(1)),
        "a/2.png": len(digit(0)),
        "a/3.png": -1,
        "b/1.png": len(digit(0)),
    }
    contents = contents_of(source)
    dangling = contents.pop("a/3.png")
    assert isinstance(dangling, FileNotFoundError)
    assert contents == {"a/0.png": digit(1), "a/2.png": digit(0), "b/1.png": digit(0)}


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_above_is_refused(tmp_path: Path, target: str) -> None:
    write_files(tmp_path / "s", {"a/0.png": digit(1)})
    (tmp_path / "s/a/loop").symlink_to(target)
    with pytest.raises(UserError, match="a link to a folder that it lies in"):
        open_source(str(tmp_path / "s"), policies=STRICT)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"a/0.png": digit(1), "b/0.png": digit(1)})
    (tmp_path / "s/a/x").symlink_to("../b")
    (tmp_path / "s/b/y").symlink_to("../a")
    with pytest.raises(UserError, match="a link to a folder that it lies in"):
        open_source(str(tmp_path / "s"), policies=STRICT)


def test_a_pipe_is_refused_before_it_blocks_a_reader(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"a/0.png": digit(1)})
    os.mkfifo(tmp_path / "s/a/pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is neither a file nor a folder"):
        open_source(str(tmp_path / "s"), policies=STRICT)


def test_names_must_be_utf8(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"a/0.png": digit(1)})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/s/a/\xff.png")).write_bytes(digit(2))
    with pytest.raises(UserError, match=r"not UTF-8: 'a/\\udcff.png'"):
        open_source(str(tmp_path / "s"), policies=STRICT).listing()


def test_every_storage_gives_the_same_listing(tmp_path: Path) -> None:
    """Local, file://, fsspec's memory and zip, the latter from root and from a folder, written in other orders."""
    local = write_files(tmp_path / "pets", PETS)
    names = list(PETS)
    random.Random(0).shuffle(names)
    memory = fsspec.filesystem("memory")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive, zipfile.ZipFile(tmp_path / "q.zip", "w") as nested:
        for name in names:
            archive.writestr(name, PETS[name])
            nested.writestr(f"in/side/{name}", PETS[name])
            memory.pipe(f"/sources-test/pets/{name}", PETS[name])
    try:
        places = [
            f"{local}/",
            f"file://{local}",
            "memory://sources-test/pets",
            f"zip://::{tmp_path}/p.zip",
            f"zip://in/side::file://{tmp_path}/q.zip",
        ]
        expected = open_source(str(local), policies=STRICT).listing()
        for place in places:
            source = open_source(place, policies=STRICT)
            listing = source.listing()
            assert listing.location == place
            assert listing.digest == expected.digest
            same = ["key", "label", "size"]
            assert listing.table.select(same).equals(expected.table.select(same)), place
            assert contents_of(source) == PETS, place
    finally:
        memory.rm("/sources-test", recursive=True)


def test_columns_do_not_go_with_folders(tmp_path: Path) -> None:
    write_files(tmp_path / "pets", PETS)
    with pytest.raises(UserError, match="no columns"):
        open_source(str(tmp_path / "pets"), caption_column="text", policies=STRICT)
