"""The folder of checkpoints: the newest whole one counts, bad ones are set aside, old ones removed."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from tests.platform.checkpoint.made import put_checkpoint

from causalfusion_platform.checkpoint import store
from causalfusion_platform.checkpoint.manifest import read
from causalfusion_platform.checkpoint.store import Retention
from causalfusion_platform.config.errors import UserError


def images_of(root: Path) -> int | None:
    found = store.latest(root)
    if found is None:
        return None
    assert found[0] == store.checkpoint_folder(root, found[1].images_seen)
    return found[1].images_seen


def images_in(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("images-")) for path in root.glob("images-*"))


def tree_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# The newest


def test_there_is_none_yet(own_folder: Path) -> None:
    assert store.latest(own_folder) is None
    assert store.latest(own_folder / "nowhere") is None


def test_the_newest_is_found_whatever_its_digits(own_folder: Path) -> None:
    for images in (99_999, 128, 10**13, 1_000_000, 1_280):
        put_checkpoint(own_folder, images)
    assert images_of(own_folder) == 10**13


def test_a_roll_back_makes_later_ones_newer(own_folder: Path) -> None:
    """The data order was changed at 200 images, because what was learned up to 400 was bad."""
    for images, order in ((100, 0), (200, 0), (400, 0), (300, 1)):
        put_checkpoint(own_folder, images, order=order)
    assert images_of(own_folder) == 300
    store.prune(own_folder, Retention(last=2))
    assert images_in(own_folder) == [300, 400]


def test_damaged_ones_are_passed_over(own_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file cut short, a manifest gone, a file gone: each time the one before is taken, and nothing is touched."""
    for images in (100, 200, 300, 400):
        put_checkpoint(own_folder, images)
    with caplog.at_level(logging.WARNING):
        assert images_of(own_folder) == 400
        assert not caplog.records
        (store.checkpoint_folder(own_folder, 400) / "engine/state").write_text("state")
        before = tree_of(own_folder)
        assert images_of(own_folder) == 300
        assert tree_of(own_folder) == before
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"{store.checkpoint_folder(own_folder, 400)} is passed over: engine/state has 5 of" in caplog.text
    (store.checkpoint_folder(own_folder, 300) / "checkpoint.json").unlink()
    assert images_of(own_folder) == 200
    (store.checkpoint_folder(own_folder, 200) / "engine/state").unlink()
    assert images_of(own_folder) == 100
    (store.checkpoint_folder(own_folder, 100) / "checkpoint.json").write_text("{")
    assert images_of(own_folder) is None


def test_names_of_other_things(own_folder: Path) -> None:
    put_checkpoint(own_folder, 100)
    for name in (".images-000000000200.a-1", "images-000000000300.old", "images-x", "bad/images-000000000400"):
        (own_folder / name).mkdir(parents=True)
    (own_folder / "images-000000000500").write_text("a file")
    assert images_of(own_folder) == 100


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_is_reported_and_not_passed_over(own_folder: Path, version: int) -> None:
    for images in (100, 200):
        put_checkpoint(own_folder, images)
    (own_folder / "images-000000000200/checkpoint.json").write_text(json.dumps({"version": version}))
    before = tree_of(own_folder)
    with pytest.raises(UserError, match=rf"images-000000000200 was written by .*version {version}"):
        store.latest(own_folder, set_aside=True)
    assert tree_of(own_folder) == before


# Setting aside


def test_a_bad_one_is_set_aside_with_the_reason(own_folder: Path) -> None:
    told: list[tuple[Path, str]] = []
    for _ in range(3):
        put_checkpoint(own_folder, 200, content="whole")
        (own_folder / "images-000000000200/engine/state").write_text("wrong")
        if not (own_folder / "images-000000000100").exists():
            put_checkpoint(own_folder, 100)
        found = store.latest(own_folder, lambda folder, reason: told.append((folder, reason)), set_aside=True)
        assert found is not None
        assert found[0] == own_folder / "images-000000000100"
        assert images_in(own_folder) == [100]
    assert len(told) == 3
    assert {folder for folder, _ in told} == {own_folder / "images-000000000200"}
    names = ["images-000000000200", "images-000000000200.1", "images-000000000200.2"]
    assert sorted(path.name for path in (own_folder / "bad").iterdir()) == names
    for name, (_, reason) in zip(names, told, strict=True):
        assert reason.startswith("engine/state has changed")
        assert (own_folder / "bad" / name / "reason.txt").read_text().endswith(f" {reason}\n")
        assert (own_folder / "bad" / name / "engine/state").read_text() == "wrong"


def test_all_are_bad(own_folder: Path) -> None:
    for images in (100, 200):
        (put_checkpoint(own_folder, images) / "engine/state").unlink()
    assert store.latest(own_folder, set_aside=True) is None
    assert len(list((own_folder / "bad").iterdir())) == 2


# Removing


def test_what_interrupted_saves_left_is_removed(own_folder: Path) -> None:
    put_checkpoint(own_folder, 100)
    (put_checkpoint(own_folder, 300) / "checkpoint.json").unlink()
    left = own_folder / ".images-000000000200.first-1"
    (left / "parts").mkdir(parents=True)
    (left / "parts/rank-00000.json").write_text("{}")
    (own_folder / ".images-note").write_text("keep")
    before = tree_of(own_folder / "images-000000000100")
    assert store.clear_partial(own_folder) == [left]
    assert tree_of(own_folder / "images-000000000100") == before
    assert images_in(own_folder) == [100, 300]  # one that lost its manifest is damage, and for `latest` to report
    assert not left.exists()
    assert store.clear_partial(own_folder / "nowhere") == []


def test_clearing_begins_with_the_manifest(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a removal that is interrupted leaves no checkpoint that looks whole."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = put_checkpoint(own_folder, 100)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            store.clear(folder)
    assert (folder / "engine/state").is_file()
    assert store.latest(own_folder) is None
    store.clear(folder)
    assert list(own_folder.iterdir()) == []
    store.clear(folder)


def test_the_newest_are_kept(own_folder: Path) -> None:
    (own_folder / "note.txt").write_text("keep me")
    for images in (100, 99_900, 300, 200):
        put_checkpoint(own_folder, images)
    assert store.prune(own_folder, Retention(last=5)) == []
    assert set(store.prune(own_folder, Retention(last=2))) == {
        own_folder / "images-000000000100",
        own_folder / "images-000000000200",
    }
    assert images_in(own_folder) == [300, 99_900]
    assert sorted(path.name for path in own_folder.iterdir() if not path.name.startswith("images")) == ["note.txt"]
    store.prune(own_folder, Retention(last=1))
    assert images_of(own_folder) == 99_900


def test_the_best_are_kept(own_folder: Path) -> None:
    """Lower is better; NaN and unknown are not good; of equal ones the newer."""
    losses = {100: 0.5, 200: math.nan, 300: 0.1, 400: 0.1, 500: -math.inf, 600: 0.3, 700: None, 800: 0.9}
    for images, loss in losses.items():
        put_checkpoint(own_folder, images, metrics={} if loss is None else {"loss": loss})
    store.prune(own_folder, Retention(last=1, best=3))
    assert images_in(own_folder) == [300, 400, 600, 800]
    store.prune(own_folder, Retention(last=1, best=1))
    assert images_in(own_folder) == [400, 800]
    store.prune(own_folder, Retention(last=1, best=1, metric="mse"))
    assert images_in(own_folder) == [800]


def test_one_of_every_so_many_is_kept_for_good(own_folder: Path) -> None:
    """Pruned after each save, as in a run, what stays is the first at or after each multiple of 1,000."""
    retention = Retention(last=2, every_images=1000)
    for images in range(300, 5001, 300):
        put_checkpoint(own_folder, images)
        store.prune(own_folder, retention)
    # 300 apart: 1,200 is the first from 1,000 on, 2,100 from 2,000, 3,000, and 4,200.
    assert images_in(own_folder) == [1200, 2100, 3000, 4200, 4500, 4800]


def test_no_good_one_is_removed_for_a_bad_one(own_folder: Path) -> None:
    for images in (100, 200, 300):
        put_checkpoint(own_folder, images)
    (own_folder / "images-000000000300/engine/state").unlink()
    (own_folder / "images-000000000100/checkpoint.json").write_text('{"version": 9}')
    store.prune(own_folder, Retention(last=1))
    assert images_in(own_folder) == [100, 200, 300]
    assert read(own_folder / "images-000000000200").images_seen == 200


@pytest.mark.parametrize("wrong", [{"last": 0}, {"last": 1, "best": -1}, {"last": 1, "every_images": 0}])
def test_a_retention_that_keeps_nothing(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="keeps too little"):
        Retention(**wrong)  # type: ignore[arg-type]
