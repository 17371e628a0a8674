"""Saving in the background: complete or not there at all, whatever is lost on the way.

Ranks are savers of one process: they meet in files alone, as those of several processes do.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT, run_environment
from tests.platform.checkpoint.made import facts, put_checkpoint

from causalfusion_platform.checkpoint import store
from causalfusion_platform.checkpoint.manifest import check
from causalfusion_platform.checkpoint.save import Failed, SavedCheckpoint, Saver
from causalfusion_platform.checkpoint.storage import FolderCheckpoints
from causalfusion_platform.checkpoint.store import Retention
from causalfusion_platform.storage.held import hold, remove_if_left

MIB = 1 << 20


@pytest.fixture
def savers(own_folder: Path) -> Iterator[Callable[..., list[Saver]]]:
    """Return a function that makes the savers of all ranks: (ranks, root=…, attempt=…, last=…, timeout=…)."""
    made: list[Saver] = []

    def make(
        ranks: int, root: Path | None = None, attempt: str = "a", last: int = 9, timeout: float = 300
    ) -> list[Saver]:
        new = [
            Saver(
                FolderCheckpoints(root or own_folder / "run"),
                own_folder / f"staging-{attempt}",
                rank=rank,
                world_size=ranks,
                attempt=attempt,
                retention=Retention(last=last),
                timeout_seconds=timeout,
            )
            for rank in range(ranks)
        ]
        made.extend(new)
        return new

    yield make
    for saver in made:
        saver.abandon()


def root_of(saver: Saver) -> Path:
    """Return the folder of checkpoints that a saver publishes to."""
    assert isinstance(saver.storage, FolderCheckpoints)
    return saver.storage.root


def stage(saver: Saver, images: int, size: int = 1000, mark: bytes = b"x") -> None:
    """Write this rank's files into its staging folder."""
    folder = saver.begin(images)
    assert list(folder.iterdir()) == []
    (folder / "engine/state").mkdir(parents=True)
    (folder / f"engine/state/rank-{saver.rank}.pt").write_bytes(mark * size)
    if saver.rank == 0:
        (folder / "weights").mkdir()
        (folder / "weights/config.json").write_text(f"{images}")


def save(savers: list[Saver], images: int, size: int = 1000, mark: bytes = b"x") -> SavedCheckpoint | Failed:
    """Save on all ranks; return what became of it."""
    for saver in savers:
        stage(saver, images, size, mark)
        saver.submit(facts(images, world_size=len(savers)))
    (outcome,) = savers[0].wait()
    return outcome


def wait_for(root: Path, pattern: str) -> None:
    until = time.monotonic() + 300
    while not list(root.glob(pattern)):
        assert time.monotonic() < until, f"no {pattern}"
        time.sleep(0.01)


def names_in(root: Path) -> list[str]:
    """Return what lies in the folder of checkpoints, hidden names too."""
    return sorted(path.name for path in root.iterdir())


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is saved


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_checkpoint_holds_what_all_ranks_staged(savers: Callable[..., list[Saver]], ranks: int) -> None:
    group = savers(ranks)
    root = root_of(group[0])
    outcome = save(group, 640, size=9 * MIB)  # more than one piece of copying
    assert isinstance(outcome, SavedCheckpoint)
    assert (outcome.folder, outcome.images_seen) == (root / "images-000000000640", 640)
    assert outcome.bytes == ranks * 9 * MIB + len("640")
    assert outcome.upload_seconds > 0
    manifest = check(root / "images-000000000640")
    assert (manifest.images_seen, manifest.world_size) == (640, ranks)
    wanted = {f"engine/state/rank-{rank}.pt": b"x" * (9 * MIB) for rank in range(ranks)}
    found = files_in(root / "images-000000000640")
    del found["checkpoint.json"]
    assert found == wanted | {"weights/config.json": b"640"}
    assert manifest.files.keys() == found.keys()
    assert names_in(root) == ["images-000000000640"]
    for saver in group[1:]:
        assert saver.wait() == []
    assert group[0].poll() == []
    assert isinstance(save(group, 1280), SavedCheckpoint)
    assert names_in(root) == ["images-000000000640", "images-000000001280"]


def test_training_goes_on_while_another_rank_copies(savers: Callable[..., list[Saver]]) -> None:
    first, second = savers(2)
    stage(first, 64)
    first.submit(facts(64, world_size=2))
    assert first.poll() == []
    assert not store.checkpoint_folder(root_of(first), 64).exists()

    again = threading.Thread(target=first.begin, args=(128,))
    again.start()
    again.join(timeout=0.3)
    assert again.is_alive()  # one save is in flight, which cannot end without the second rank
    stage(second, 64)
    second.submit(facts(999, step=7, world_size=2))
    again.join(timeout=300)
    assert not again.is_alive()
    (outcome,) = first.poll()
    assert isinstance(outcome, SavedCheckpoint)
    assert isinstance(outcome.folder, Path)
    assert check(outcome.folder).step == 1  # the first rank's facts
    assert second.wait() == []


def test_old_ones_are_removed_after_a_save(savers: Callable[..., list[Saver]]) -> None:
    group = savers(2, last=2)
    for images in (64, 128, 192, 256):
        assert isinstance(save(group, images), SavedCheckpoint)
    assert names_in(root_of(group[0])) == ["images-000000000192", "images-000000000256"]


# What was there before


def test_the_same_checkpoint_stays(savers: Callable[..., list[Saver]]) -> None:
    group = savers(1)
    folder = put_checkpoint(root_of(group[0]), 64)
    before = files_in(folder)
    outcome = save(group, 64)
    assert isinstance(outcome, SavedCheckpoint)
    assert (outcome.folder, files_in(folder)) == (folder, before)
    assert names_in(root_of(group[0])) == [folder.name]


@pytest.mark.parametrize("why", ["damaged", "another order of the data"])
def test_what_is_no_longer_wanted_makes_room(savers: Callable[..., list[Saver]], why: str) -> None:
    group = savers(1)
    folder = put_checkpoint(root_of(group[0]), 64, order=0 if why == "damaged" else 1)
    if why == "damaged":
        (folder / "engine/state").write_text("")
    assert isinstance(save(group, 64), SavedCheckpoint)
    assert "engine/state/rank-0.pt" in check(folder).files
    reason = (root_of(group[0]) / "bad" / folder.name / "reason.txt").read_text()
    assert ("engine/state has 0 of" if why == "damaged" else "order of its data was number 1") in reason


def test_a_process_of_an_earlier_attempt_stays_apart(savers: Callable[..., list[Saver]]) -> None:
    """It was cut off, so the run was started anew; then it comes back and ends what it was doing."""
    orphans, group = savers(2, attempt="first"), savers(2, attempt="second")
    stage(orphans[0], 64, mark=b"old")
    orphans[0].submit(facts(64, world_size=2))
    assert isinstance(save(group, 64, mark=b"new"), SavedCheckpoint)
    stage(orphans[1], 64, mark=b"old")
    orphans[1].submit(facts(64, world_size=2))
    orphans[0].wait()
    folder = store.checkpoint_folder(root_of(group[0]), 64)
    assert check(folder)
    assert {files_in(folder)[f"engine/state/rank-{rank}.pt"][:3] for rank in (0, 1)} == {b"new"}
    assert names_in(root_of(group[0])) == [folder.name]


def test_staged_files_of_a_dead_process_are_removed(savers: Callable[..., list[Saver]], own_folder: Path) -> None:
    stage(savers(1)[0], 64)
    assert files_in(own_folder / "staging-a")
    savers(1)
    assert set(files_in(own_folder / "staging-a")) == {".held"}


# Faults


def test_a_rank_that_cannot_stage(savers: Callable[..., list[Saver]]) -> None:
    group = savers(2)
    assert isinstance(save(group, 64), SavedCheckpoint)
    before = files_in(root_of(group[0]))
    for faulty in (0, 1):
        for saver in group:
            stage(saver, 128)
            if saver.rank == faulty:
                saver.fail("the disk is full")
            else:
                saver.submit(facts(128, world_size=2))
        assert group[0].wait() == [Failed(128, f"rank {faulty}: the disk is full")]
        assert group[1].wait() == ([Failed(128, "the disk is full")] if faulty else [])
        assert files_in(root_of(group[0])) == before
        assert names_in(root_of(group[0])) == ["images-000000000064"]
    assert isinstance(save(group, 128), SavedCheckpoint)


def test_a_staging_folder_that_cannot_be_made(savers: Callable[..., list[Saver]], own_folder: Path) -> None:
    """The ranks go on counting alike: the next save finds its parts."""
    group = savers(2)
    (own_folder / "staging-a").write_text("no folder")
    for saver in group:
        with pytest.raises(OSError):
            saver.begin(64)
        saver.fail("no folder")
    assert group[0].wait() == [Failed(64, "rank 0: no folder; rank 1: no folder")]
    group[1].wait()
    (own_folder / "staging-a").unlink()
    assert isinstance(save(group, 128), SavedCheckpoint)


def test_two_ranks_that_write_one_name(savers: Callable[..., list[Saver]]) -> None:
    group = savers(2)
    for saver in group:
        (saver.begin(64) / "same").write_text(f"rank {saver.rank}")
        saver.submit(facts(64, world_size=2))
    (outcome,) = group[0].wait()
    assert isinstance(outcome, Failed)
    assert "File exists" in outcome.reason
    assert names_in(root_of(group[0])) == []


def test_a_rank_that_is_late(savers: Callable[..., list[Saver]]) -> None:
    """The save is given up; what the late rank then writes is removed with the next one."""
    first, second = savers(2, timeout=0.2)
    stage(first, 64)
    first.submit(facts(64, world_size=2))
    assert first.wait() == [Failed(64, "rank 1 did not write its files within 0.2 s")]
    assert names_in(root_of(first)) == []
    stage(second, 64)
    second.submit(facts(64, world_size=2))
    second.wait()
    first.timeout_seconds = 300
    assert isinstance(save([first, second], 128), SavedCheckpoint)
    assert names_in(root_of(first)) == ["images-000000000128"]


def test_giving_up_when_a_rank_is_lost(savers: Callable[..., list[Saver]]) -> None:
    first, _ = savers(2)
    put_checkpoint(root_of(first), 32)
    stage(first, 64)
    first.submit(facts(64, world_size=2))
    wait_for(root_of(first), ".images-*/parts/rank-00000.json")  # its own part is done
    first.abandon()
    assert first.poll() == [Failed(64, "given up")]
    assert names_in(root_of(first)) == ["images-000000000032"]
    assert not [thread for thread in threading.enumerate() if "_save" in thread.name]


def test_giving_up_in_the_middle_of_a_file(savers: Callable[..., list[Saver]]) -> None:
    """Half a terabyte of holes would take minutes to copy."""
    (saver,) = savers(1)
    big = saver.begin(64) / "big"
    big.touch()
    os.truncate(big, 1 << 39)
    saver.submit(facts(64))
    wait_for(root_of(saver), ".images-*/big")
    saver.abandon()
    assert saver.poll() == [Failed(64, "given up")]
    assert names_in(root_of(saver)) == []
    assert not [thread for thread in threading.enumerate() if "_save" in thread.name]


def test_storage_that_is_no_folder(savers: Callable[..., list[Saver]], own_folder: Path) -> None:
    (own_folder / "run").write_text("a file")
    (saver,) = savers(1)
    outcome = save([saver], 64)
    assert isinstance(outcome, Failed)
    assert str(own_folder / "run") in outcome.reason
    assert (own_folder / "run").read_text() == "a file"


@pytest.fixture
def full_disk(own_folder: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = own_folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here; the test with a limit on files' sizes stands in")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(savers: Callable[..., list[Saver]], full_disk: Path) -> None:
    """Real ENOSPC on all ranks. The checkpoints before stay, the space is free again, and the next save works."""
    group = savers(3, root=full_disk / "run")
    assert isinstance(save(group, 64, size=MIB // 4), SavedCheckpoint)
    free = os.statvfs(full_disk).f_bfree
    before = files_in(root_of(group[0]))
    outcome = save(group, 128, size=MIB)
    assert isinstance(outcome, Failed)
    assert "No space left on device" in outcome.reason
    assert files_in(root_of(group[0])) == before
    assert names_in(root_of(group[0])) == ["images-000000000064"]
    for saver in group:
        saver.wait()
    assert os.statvfs(full_disk).f_bfree == free
    assert isinstance(save(group, 192, size=MIB // 8), SavedCheckpoint)


def test_a_file_that_cannot_be_written_whole(savers: Callable[..., list[Saver]]) -> None:
    """The process may write no file of more than 1 MiB: the copy fails half-way, as on a full disk."""
    group = savers(2)
    assert isinstance(save(group, 64), SavedCheckpoint)
    before = files_in(root_of(group[0]))
    first, second = group
    stage(first, 128)
    folder = second.begin(128)
    (folder / "a small one").write_text("copied first")
    (folder / "big").write_bytes(b"x" * (3 * MIB))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        second.submit(facts(128, world_size=2))
        (own,) = second.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (partial,) = root_of(first).glob(".images-*")
    assert list(files_in(partial)) == ["parts/rank-00001.json"]  # the space is free at once
    first.submit(facts(128, world_size=2))
    (outcome,) = first.wait()
    assert outcome == Failed(128, f"rank 1: {own.reason}" if isinstance(own, Failed) else "")
    assert "File too large" in outcome.reason
    assert files_in(root_of(group[0])) == before
    assert names_in(root_of(group[0])) == ["images-000000000064"]


KILLED = """
import sys
from pathlib import Path
from causalfusion_platform.checkpoint.save import Saver
from causalfusion_platform.checkpoint.storage import FolderCheckpoints
from causalfusion_platform.checkpoint.store import Retention
from tests.platform.checkpoint.made import facts

storage, staging = FolderCheckpoints(Path(sys.argv[1])), Path(sys.argv[2])
saver = Saver(storage, staging, rank=0, world_size=2, attempt="killed", retention=Retention(1))
(saver.begin(128) / "state").write_text("whole")
saver.submit(facts(128, world_size=2))
saver.wait()  # for a second rank that never comes
"""


def test_killed_between_files_and_manifest(savers: Callable[..., list[Saver]], own_folder: Path) -> None:
    """A process is killed when all its files are on storage, and the manifest is not."""
    root = own_folder / "run"
    put_checkpoint(root, 64)
    command = [sys.executable, "-c", KILLED, str(root), str(own_folder / "staging")]
    process = subprocess.Popen(command, cwd=ROOT, env=run_environment())
    try:
        wait_for(root, ".images-000000000128.*/parts/rank-00000.json")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (left,) = root.glob(".images-*")
    assert (left / "state").read_text() == "whole"
    found = store.latest(root, set_aside=True)
    assert found is not None
    assert found[0] == root / "images-000000000064"
    assert not (root / "bad").exists()  # an interrupted save is no damage
    assert store.clear_partial(root) == [left]
    group = savers(2, attempt="next")
    assert isinstance(save(group, 128), SavedCheckpoint)
    assert names_in(root) == ["images-000000000064", "images-000000000128"]


def test_staging_folders_of_killed_runs_are_removed(tmp_path: Path) -> None:
    """Also those of an earlier version, a day later. Folders of others stay."""
    staging = tmp_path / "staging"
    killed, earlier, fresh, running, strange = (staging / (digit * 16) for digit in "abcde")
    os.close(hold(killed))
    held = hold(running)
    for folder in (killed, earlier, fresh, running):
        (folder / "rank-00000.attempt-0001" / "engine").mkdir(parents=True)
    (strange / "thesis").mkdir(parents=True)
    old = time.time() - 2 * 24 * 3600
    for path in (earlier, *earlier.rglob("*"), strange, strange / "thesis"):
        os.utime(path, (old, old))
    Saver(
        FolderCheckpoints(tmp_path / "checkpoints"),
        staging / ("0" * 16),
        rank=0,
        world_size=1,
        attempt="attempt-0001",
        retention=Retention(1, 0),
    )
    assert sorted(staging.iterdir()) == [fresh, running, strange]
    os.close(held)


def test_a_staging_folder_is_held_as_long_as_its_saver_lives(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    saver = Saver(
        FolderCheckpoints(tmp_path / "run"), staging, rank=0, world_size=1, attempt="a", retention=Retention(1)
    )
    saver.begin(64)
    assert remove_if_left(staging) is False
    del saver
    gc.collect()
    assert remove_if_left(staging) is True
