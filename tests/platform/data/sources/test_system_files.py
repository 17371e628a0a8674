"""Files that operating systems, archive tools and editors leave beside images are no images in any source."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.platform.data.sources.makers import STRICT, allow, digit, keys_of, labels_of, write_files, write_tar

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop
from causalfusion_platform.data.sources import EARLIER_RULES, open_source
from causalfusion_platform.data.sources.system_files import count_system_names, system_part

IMAGES = [f"{name}/{row}.png" for name in ("Zebra", "cat", "dog") for row in range(2)]
JUNK = [
    "__MACOSX/Zebra/._0.png",
    "__MACOSX/cat/._0.png",
    ".DS_Store",
    "._cat",
    "Thumbs.db",
    "cat/.DS_Store",
    "cat/._0.png",
    "cat/.ipynb_checkpoints/0-checkpoint.png",
    "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.png",
    "cat/thumbs.DB",
    "dog/desktop.ini",
    "dog/0.png~",
    "lost+found/0.png",
    "$RECYCLE.BIN/S-1-5/0.png",
    "System Volume Information/0.png",
]
LEFT_OUT = [
    "$RECYCLE.BIN/",
    ".DS_Store",
    "._cat",
    "System Volume Information/",
    "Thumbs.db",
    "__MACOSX/",
    "cat/.DS_Store",
    "cat/._0.png",
    "cat/.ipynb_checkpoints/",
    "cat/@eaDir/",
    "cat/thumbs.DB",
    "dog/0.png~",
    "dog/desktop.ini",
    "lost+found/",
]


def pets(folder: Path) -> dict[str, bytes | str]:
    """Write classes with what a Mac, a notebook, a NAS and Windows leave beside them."""
    contents: dict[str, bytes | str] = {name: digit(row) for row, name in enumerate([*IMAGES, *JUNK])}
    write_files(folder, contents)
    return contents


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a/b.png", None),
        ("a.b/c~d.png", None),
        ("./a.png", None),
        ("../a.png", None),
        ("lost+found.png", None),
        ("a/my desktop.ini", None),
        (".a.png", ".a.png"),
        ("a/.b/c/d.png", "a/.b/"),
        ("a/__MACOSX", "a/__MACOSX"),
        ("a/...", "a/..."),
    ],
)
def test_a_part_of_a_path(name: str, part: str | None) -> None:
    assert system_part(name) == part


def test_class_folders_hold_images_only(tmp_path: Path) -> None:
    contents = pets(tmp_path / "s")
    listing = open_source("s", policies=STRICT).listing()
    assert listing.class_names == ["Zebra", "cat", "dog"]
    assert labels_of(listing) == {name: name.partition("/")[0] for name in IMAGES}
    assert list(listing.selection.left_out) == LEFT_OUT
    memory = fsspec.filesystem("memory")
    for name, content in contents.items():
        memory.pipe(f"/system-files/{name}", content)
    try:
        other = open_source("memory://system-files", policies=STRICT).listing()
    finally:
        memory.rm("/system-files", recursive=True)
    assert (other.digest, other.selection.left_out) == (listing.digest, listing.selection.left_out)


def test_counts_are_by_name() -> None:
    counts = count_system_names([*LEFT_OUT, "dog/._1.png"])
    assert (counts[".DS_Store"], counts["._*"], counts["__MACOSX/"], counts["Thumbs.db"]) == (2, 3, 1, 1)
    assert next(iter(counts)) == "._*"


def test_system_folders_are_not_opened(tmp_path: Path) -> None:
    """A disk's lost+found can be read by root only, and sockets lie in hidden folders."""
    write_files(tmp_path / "s", {"a/0.png": digit(0), ".cache/0.png": digit(1)})
    os.mkfifo(tmp_path / "s/.cache/pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        open_source("s", policies=STRICT, rules=EARLIER_RULES)
    assert keys_of(open_source("s", policies=STRICT).listing()) == ["a/0.png"]


def test_a_class_of_system_files_has_no_images_and_is_named(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"a/0.png": digit(0), "b/.DS_Store": b"", "c/0.png": digit(1)})
    listing = open_source("s", policies=STRICT).listing()
    assert listing.class_names == ["a", "b", "c"]
    assert listing.empty_classes() == ["b"]
    assert listing.empty_classes(["a/0.png", "b/0.png"]) == ["a", "b"]


def test_nothing_but_system_files(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"__MACOSX/._0.png": digit(0)})
    with pytest.raises(UserError, match="s holds no file but system files, such as __MACOSX/"):
        open_source("s", policies=STRICT)


def test_labelled_files(tmp_path: Path) -> None:
    """A list that a script made by walking over the folder names them too."""
    pets(tmp_path / "s")
    named = json.dumps({name: name.partition("/")[0] for name in [*IMAGES, *JUNK]})
    write_files(tmp_path, {"l.json": named, "gone.json": named[:-1] + ', "cat/gone.png": "cat"}'})
    listing = open_source("s", labels="l.json", policies=STRICT).listing()
    assert keys_of(listing) == sorted(IMAGES)
    assert list(listing.selection.left_out) == LEFT_OUT
    with pytest.raises(FaultStop, match=r"^cat/gone\.png: missing: has a label, but is not there$"):
        open_source("s", labels="gone.json", policies=STRICT).listing()


def test_tars_and_their_members(tmp_path: Path) -> None:
    """As bsdtar of a Mac packs a folder: an AppleDouble file before each member."""
    members: list[tuple[str, bytes | str]] = []
    for name in ("a", "b"):
        members += [
            (f"._{name}.png", b"\0"),
            (f"{name}.png", digit(0)),
            (f"._{name}.cls", b"\0"),
            (f"{name}.cls", "1"),
        ]
    write_tar(tmp_path / "s/0.tar", [*members, ("__MACOSX/a.png", digit(1)), ("d/.DS_Store", b"")])
    write_files(tmp_path / "s", {"._0.tar": b"AppleDouble", ".git/config": b""})
    listing = open_source("s", policies=STRICT).listing()
    assert keys_of(listing) == ["0.tar/a.png", "0.tar/b.png"]
    inside = ["._a.cls", "._a.png", "._b.cls", "._b.png", "__MACOSX/", "d/.DS_Store"]
    assert list(listing.selection.left_out) == ["._0.tar", ".git/", *(f"0.tar/{name}" for name in inside)]
    assert open_source("s/*.tar", policies=STRICT).listing().digest == listing.digest


def test_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "s/.ipynb_checkpoints").mkdir(parents=True)
    for name in ("0.parquet", ".ipynb_checkpoints/0-checkpoint.parquet"):
        pq.write_table(pa.table({"image": [digit(0)], "label": [1]}), tmp_path / "s" / name)
    write_files(tmp_path / "s", {"._0.parquet": b"AppleDouble", ".gitattributes": b""})
    listing = open_source("s", policies=STRICT).listing()
    assert keys_of(listing) == ["0.parquet#000000000"]
    assert list(listing.selection.left_out) == ["._0.parquet", ".ipynb_checkpoints/"]
    named = open_source("s/._0.parquet", policies=STRICT)  # what the user names is not passed over
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        named.listing()


def test_the_earlier_rules_take_them_for_images(tmp_path: Path) -> None:
    """So that a folder that was begun under them is continued to the same bytes."""
    contents = pets(tmp_path / "s")
    listing = open_source("s", policies=allow("unlabelled=skip"), rules=EARLIER_RULES).listing()
    assert listing.class_names == sorted({name.partition("/")[0] for name in contents if "/" in name})
    assert set(keys_of(listing)) == {name for name in contents if "/" in name}
    assert listing.selection.left_out == ()
