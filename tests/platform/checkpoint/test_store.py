"""The folder of checkpoints: the newest whole one counts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from causalfusion_platform.checkpoint import store
from causalfusion_platform.checkpoint.manifest import write_manifest


def save(root: Path, images: int) -> Path:
    """Write a complete checkpoint."""
    folder = store.checkpoint_folder(root, images)
    folder.mkdir(parents=True)
    (folder / "state").write_text(f"state after {images}")
    write_manifest(folder, step=images, images_seen=images, world_size=1, zero_stage=0, data_digest="")
    return folder


def images_of(root: Path) -> int | None:
    found = store.latest(root)
    if found is None:
        return None
    assert found[0] == store.checkpoint_folder(root, found[1].images_seen)
    return found[1].images_seen


def test_there_is_none_yet(own_folder: Path) -> None:
    assert store.latest(own_folder) is None
    assert store.latest(own_folder / "nowhere") is None


def test_the_newest_is_found_whatever_its_digits(own_folder: Path) -> None:
    for images in (99_999, 128, 1_000_000, 1_280):
        save(own_folder, images)
    assert images_of(own_folder) == 1_000_000


def test_damaged_ones_are_passed_over(own_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file cut short, a save that was interrupted, a file gone: each time the one before is taken."""
    for images in (100, 200, 300, 400):
        save(own_folder, images)
    with caplog.at_level(logging.WARNING):
        assert images_of(own_folder) == 400
        assert not caplog.records
        (store.checkpoint_folder(own_folder, 400) / "state").write_text("state")
        assert images_of(own_folder) == 300
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(store.checkpoint_folder(own_folder, 400)) in caplog.text
    (store.checkpoint_folder(own_folder, 300) / "checkpoint.json").unlink()
    assert images_of(own_folder) == 200
    (store.checkpoint_folder(own_folder, 200) / "state").unlink()
    assert images_of(own_folder) == 100
    (store.checkpoint_folder(own_folder, 100) / "checkpoint.json").write_text("{")
    assert images_of(own_folder) is None


def test_the_newest_are_kept(own_folder: Path) -> None:
    (own_folder / "note.txt").write_text("keep me")
    for images in (100, 99_900, 300, 200):
        save(own_folder, images)
    store.prune(own_folder, 5)
    assert len(list(own_folder.iterdir())) == 5
    store.prune(own_folder, 2)
    assert {path.name for path in own_folder.iterdir()} == {
        "note.txt",
        "images-000000000300",
        "images-000000099900",
    }
    store.prune(own_folder, 1)
    assert images_of(own_folder) == 99_900


def test_a_cleared_folder_is_gone(own_folder: Path) -> None:
    folder = save(own_folder, 100)
    store.clear(folder)
    assert not folder.exists()
    store.clear(folder)


def test_clearing_begins_with_the_manifest(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a removal that is interrupted leaves no checkpoint that looks whole."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = save(own_folder, 100)
    monkeypatch.setattr("shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        store.clear(folder)
    assert (folder / "state").is_file()
    assert store.latest(own_folder) is None
