"""Checkpoints on object storage: complete or not there, whoever is cut off, and downloaded whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.object_store import SERVER_ERROR, THROTTLED, FaultyServer
from tests.platform.checkpoint.made import facts

from causalfusion_platform.checkpoint.manifest import BadCheckpoint
from causalfusion_platform.checkpoint.object_storage import ObjectCheckpoints
from causalfusion_platform.checkpoint.save import Failed, SavedCheckpoint, Saver
from causalfusion_platform.checkpoint.store import Retention
from causalfusion_platform.storage.fence import Fence, NoFence, Superseded
from causalfusion_platform.storage.objects import ObjectStore, open_store


class Lost:
    """Fence of a launch that another one has taken over."""

    def check(self) -> None:
        raise Superseded("launch 2 has taken the run over")


@pytest.fixture
def store(s3_bucket: str) -> ObjectStore:
    """The objects below a run's folder of checkpoints."""
    return open_store(f"{s3_bucket}/runs/one/checkpoints")


def savers(
    store: ObjectStore, place: Path, ranks: int = 1, attempt: str = "a", last: int = 9, fence: Fence | None = None
) -> list[Saver]:
    return [
        Saver(
            ObjectCheckpoints(store, place / "here"),
            place / "staging" / attempt,
            rank=rank,
            world_size=ranks,
            attempt=attempt,
            retention=Retention(last),
            fence=fence or NoFence(),
        )
        for rank in range(ranks)
    ]


def stage(saver: Saver, images: int, mark: str = "x") -> None:
    folder = saver.begin(images)
    (folder / "engine/state").mkdir(parents=True)
    (folder / f"engine/state/rank-{saver.rank}.pt").write_text(mark * 100)
    if saver.rank == 0:
        (folder / "weights").mkdir()
        (folder / "weights/config.json").write_text(mark)
        (folder / "weights/model.safetensors").write_text(mark * 50)


def save(group: list[Saver], images: int, mark: str = "x", **changes: int) -> SavedCheckpoint | Failed:
    for saver in group:
        stage(saver, images, mark)
        saver.submit(facts(images, world_size=len(group), **changes))
    for saver in group[1:]:
        saver.wait()
    (outcome,) = group[0].wait()
    return outcome


def newest(
    store: ObjectStore, place: Path, bad: list[tuple[str, str]] | None = None, set_aside: bool = False
) -> int:
    """Return the images of the newest good checkpoint, as a process of another machine sees it; 0 without one."""
    notes = [] if bad is None else bad
    found = ObjectCheckpoints(store, place).latest(lambda name, why: notes.append((name, why)), set_aside=set_aside)
    return found.manifest.images_seen if found else 0


def names(store: ObjectStore) -> list[str]:
    """Return the checkpoints that have any object."""
    return sorted({"/".join(info.key.split("/")[:2]) for info in store.list()})


def test_all_ranks_files_come_back_on_another_machine(store: ObjectStore, tmp_path: Path) -> None:
    group = savers(store, tmp_path, ranks=2)
    outcome = save(group, 640)
    assert isinstance(outcome, SavedCheckpoint)
    assert str(outcome.folder) == f"{store.url}/images-000000000640/a-1"
    there = ObjectCheckpoints(store, tmp_path / "there")
    found = there.latest(lambda *_: None)
    assert found is not None
    folder = there.folder_here(found)
    assert folder == tmp_path / "there/images-000000000640"
    wanted = {"engine/state/rank-0.pt": "x" * 100, "engine/state/rank-1.pt": "x" * 100, "weights/config.json": "x"}
    assert {name: (folder / name).read_text() for name in wanted} == wanted
    assert found.manifest.files.keys() == wanted.keys() | {"weights/model.safetensors"}
    assert (there.newest_images(), there.written_stage()) == (640, 1)
    config = there.newest_config()
    assert config is not None
    assert [path.name for path in config.iterdir()] == ["config.json"]
    there.release()
    assert not (tmp_path / "there").exists()


def test_without_a_manifest_the_checkpoint_before_counts(store: ObjectStore, tmp_path: Path) -> None:
    """The process is killed after all files, and before the manifest."""
    group = savers(store, tmp_path)
    save(group, 64)
    cut_off = ObjectCheckpoints(store, tmp_path / "x").partial(128, "a", 2)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/state").write_text("whole")
    cut_off.put(tmp_path / "files", lambda: False)
    assert names(store) == ["images-000000000064/a-1", "images-000000000128/a-2"]
    assert newest(store, tmp_path / "there") == 64
    ObjectCheckpoints(store, tmp_path / "x").clear_partial()
    assert names(store) == ["images-000000000064/a-1"]


def test_a_late_save_of_an_older_launch_is_not_published(store: ObjectStore, tmp_path: Path) -> None:
    save(savers(store, tmp_path, attempt="new"), 64, "new")
    outcome = save(savers(store, tmp_path, attempt="old", fence=Lost()), 128, "old")
    assert isinstance(outcome, Failed)
    assert outcome.superseded
    assert newest(store, tmp_path / "there") == 64


def test_two_attempts_at_one_place_stay_apart(store: ObjectStore, tmp_path: Path) -> None:
    """A worker of a lost attempt ends its upload after the next attempt has saved the same images."""
    orphans = savers(store, tmp_path, attempt="first")
    stage(orphans[0], 64, "old")
    save(savers(store, tmp_path, attempt="second"), 64, "new")
    orphans[0].submit(facts(64))
    orphans[0].wait()
    there = ObjectCheckpoints(store, tmp_path / "there")
    for name in ("images-000000000064/first-1", "images-000000000064/second-1"):
        assert name in names(store)
    found = there.latest(lambda *_: None)
    assert found is not None
    assert len({(there.folder_here(found) / name).read_text()[:3] for name in found.manifest.files}) == 1


@pytest.mark.parametrize("damage", ["content", "missing", "manifest"])
def test_a_damaged_one_is_set_aside_for_the_one_before(store: ObjectStore, tmp_path: Path, damage: str) -> None:
    group = savers(store, tmp_path)
    save(group, 64)
    save(group, 128)
    name = "images-000000000128/a-2"
    if damage == "content":
        store.write(f"{name}/weights/config.json", b"y")
    elif damage == "missing":
        store.delete(f"{name}/weights/config.json")
    else:
        store.write(f"{name}/checkpoint.json", b"{")
    bad: list[tuple[str, str]] = []
    assert newest(store, tmp_path / "there", bad, set_aside=True) == 64
    [(found, why)] = bad
    assert found == name
    assert {"content": "has changed", "missing": "is missing", "manifest": "cannot be read"}[damage] in why
    again: list[tuple[str, str]] = []
    assert newest(store, tmp_path / "again", again) == 64
    assert again == []
    kept = ObjectCheckpoints(store, tmp_path / "x")
    assert kept.set_aside() == [name]
    assert list(kept.sizes()) == ["images-000000000064/a-1"]
    kept.clear_partial()
    assert name in names(store)


def test_old_ones_are_removed_manifest_first(store: ObjectStore, tmp_path: Path, s3_server: FaultyServer) -> None:
    group = savers(store, tmp_path, last=2)
    for images in (64, 128, 192):
        assert isinstance(save(group, images), SavedCheckpoint)
    assert names(store) == ["images-000000000128/a-2", "images-000000000192/a-3"]
    removed = [line for line in s3_server.requests if line.startswith("DELETE") and "000000000064" in line]
    assert removed[0].endswith("checkpoint.json")


def test_after_a_roll_back_the_other_order_counts(store: ObjectStore, tmp_path: Path) -> None:
    group = savers(store, tmp_path)
    save(group, 256)
    save(group, 64, order=1)
    assert newest(store, tmp_path / "there") == 64


def test_server_errors_and_throttling_are_survived(
    store: ObjectStore, tmp_path: Path, s3_server: FaultyServer
) -> None:
    s3_server.fail("PUT", 2, SERVER_ERROR)
    s3_server.fail("PUT", 1, THROTTLED)
    s3_server.fail("GET", 2, THROTTLED)
    assert isinstance(save(savers(store, tmp_path), 64), SavedCheckpoint)
    assert newest(store, tmp_path / "there") == 64
    assert s3_server.faults_left == 0


def test_workers_of_one_machine_download_once(store: ObjectStore, tmp_path: Path, s3_server: FaultyServer) -> None:
    save(savers(store, tmp_path), 64)
    found = ObjectCheckpoints(store, tmp_path / "x").latest(lambda *_: None)
    assert found is not None
    before, folders, firsts = len(s3_server.requests), list[Path](), list[bool]()

    def work() -> None:
        mine = ObjectCheckpoints(store, tmp_path / "there")
        folders.append(mine.folder_here(found))
        with mine.first_here("conversion") as first:
            firsts.append(first)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert sorted(firsts) == [False, False, False, True]
    gets = [line for line in s3_server.requests[before:] if line.startswith("GET")]
    assert len(gets) == len(found.manifest.files) + 1
    with pytest.raises(BadCheckpoint):
        store.write(f"{found.name}/weights/config.json", b"y")
        ObjectCheckpoints(store, tmp_path / "fresh").folder_here(found)
