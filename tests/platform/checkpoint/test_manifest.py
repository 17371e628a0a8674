"""The checkpoint manifest: a checkpoint is trusted only when every file is there and unchanged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from causalfusion_platform.checkpoint.manifest import read_verified, write_manifest

FILES = {"engine/state/rank-0.pt": b"one", "ema/rank-00000.safetensors": b"two" * 99_999, "empty": b""}


@pytest.fixture
def folder(own_folder: Path) -> Path:
    """Return a complete checkpoint."""
    folder = own_folder / "checkpoint"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, step=7, images_seen=896, world_size=2, zero_stage=1, data_digest="abc")
    return folder


def test_a_complete_checkpoint(folder: Path) -> None:
    manifest = read_verified(folder)
    assert manifest is not None
    assert (manifest.step, manifest.images_seen, manifest.world_size) == (7, 896, 2)
    assert (manifest.zero_stage, manifest.data_digest) == (1, "abc")
    assert manifest.files == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert {path.name for path in folder.iterdir()} == {"engine", "ema", "empty", "checkpoint.json"}


def test_a_checkpoint_can_be_moved(folder: Path, own_folder: Path) -> None:
    before = read_verified(folder)
    assert before is not None
    assert read_verified(folder.rename(own_folder / "elsewhere")) == before


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert read_verified(folder) is None


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file(folder: Path, name: str) -> None:
    content = bytearray(FILES[name] or b"\0")
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert read_verified(folder) is None


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert read_verified(folder) is None


def test_a_file_too_many_does_no_harm(folder: Path) -> None:
    """Such as a note, or what a network file system leaves behind."""
    (folder / "note.txt").write_text("good one")
    assert read_verified(folder) is not None


def test_no_manifest(folder: Path, own_folder: Path) -> None:
    (folder / "checkpoint.json").unlink()
    assert read_verified(folder) is None
    assert read_verified(own_folder / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"version": 1}'])
def test_a_manifest_that_cannot_be_read(folder: Path, content: bytes) -> None:
    (folder / "checkpoint.json").write_bytes(content)
    assert read_verified(folder) is None


def test_a_manifest_of_another_version(folder: Path) -> None:
    """Its files may mean something else."""
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    assert read_verified(folder) is None


def test_the_manifest_comes_last(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    (own_folder / "file").write_text("content")
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(own_folder, step=1, images_seen=1, world_size=1, zero_stage=0, data_digest="")
    assert read_verified(own_folder) is None
