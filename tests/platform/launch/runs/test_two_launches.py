"""Two launches of one run that both are alive: the older publishes nothing once the newer has read the run.

The lock is left out: an NFS server gives the lock of a driver that is cut off to the next one. The older launch is
stopped at each of its file operations. There the newer one runs up to each of its own, or to its end. All pairs are
tried.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.platform.checkpoint.made import facts, hash_files, put_checkpoint

from causalfusion_platform.checkpoint import store
from causalfusion_platform.checkpoint.manifest import check
from causalfusion_platform.checkpoint.storage import FolderCheckpoints
from causalfusion_platform.checkpoint.store import Retention
from causalfusion_platform.launch.runs import folder
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.storage import fence
from causalfusion_platform.storage.fence import Superseded

SECONDS = 60
"""Longest wait of one thread for another: only a hang reaches it."""
_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir")


class Steps:
    """File operations of one thread in a folder. At one of them it waits for another thread."""

    def __init__(self, folder: Path, pause_at: int | None, reached: Callable[[], None]) -> None:
        self.folder, self.pause_at, self.reached = str(folder), pause_at, reached
        self.count = 0

    def step(self, place: object) -> None:
        if str(place).startswith(self.folder):
            self.count += 1
            if self.count == self.pause_at:
                self.reached()


_steps = threading.local()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    steps = getattr(_steps, "now", None)
    if steps is not None and event in _EVENTS and arguments:
        steps.step(arguments[0])


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_audit)  # for good: Python removes none


@contextmanager
def counting(steps: Steps) -> Iterator[None]:
    _steps.now = steps
    try:
        yield
    finally:
        _steps.now = None


def newest_files(checkpoints: Path) -> dict[str, bytes]:
    """Return the files of the newest checkpoint, by their paths."""
    [*_, newest] = sorted(checkpoints.glob("images-*"))
    files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    return {str(path.relative_to(checkpoints)): path.read_bytes() for path in files}


def write_partial(run: RunFolder, name: str, text: str) -> Path:
    partial = run.checkpoints / f".images-{128:012d}.{name}"
    (partial / "engine").mkdir(parents=True)
    (partial / "engine/state").write_text(text)
    return partial


class Older:
    """A launch that saves a checkpoint at 128 images, writes its state and its summary."""

    def __init__(self, root: Path) -> None:
        self.run = RunFolder(root)
        self.number = self.run._begin()
        self.ends: dict[str, BaseException | None] = {}

    def publish(self) -> None:
        for name, step in {"checkpoint": self._save, "state": self._keep, "summary": self._summarize}.items():
            try:
                step()
            except (Superseded, OSError) as error:
                self.ends[name] = error
            else:
                self.ends[name] = None

    def _save(self) -> None:
        partial = write_partial(self.run, "older", "of the older launch")
        store.complete(partial, facts(128, order=0), hash_files(partial), self.run.fence)
        store.prune(self.run.checkpoints, Retention(1), self.run.fence)

    def _keep(self) -> None:
        self.run.keep(mlflow_run_id="older")

    def _summarize(self) -> None:
        self.run.write_summary({"name": "older"})


class Newer:
    """A launch that begins, reads the run, and saves another checkpoint."""

    def __init__(self, root: Path, images: int, order: int) -> None:
        self.root, self.images, self.order = root, images, order
        self.resumed: Path | None = None
        self.left: dict[str, bytes] = {}

    def launch(self) -> None:
        run = RunFolder(self.root)
        number = run._begin()
        run.keep(launches=number, mlflow_run_id="newer")
        found = store.latest(run.checkpoints, set_aside=True)
        assert found is not None
        self.resumed = found[0]
        partial = write_partial(run, "newer", "of the newer launch")
        saved = store.complete(partial, facts(self.images, order=self.order), hash_files(partial), run.fence)
        run.write_summary({"name": "newer"})
        assert check(saved)
        self.left = newest_files(run.checkpoints)


def prepare(root: Path, before: str) -> None:
    root.mkdir(parents=True)
    RunState(tracking_uri="sqlite:///none.db", config={"name": root.name, "runs": str(root.parent)}).write(root)
    put_checkpoint(root / "checkpoints", 64)
    if before == "damaged":
        (put_checkpoint(root / "checkpoints", 128) / "engine/state").write_text("")
    elif before == "another order":
        put_checkpoint(root / "checkpoints", 128, order=1)


def interleave(
    root: Path, before: str, older_at: int | None, newer_at: int | None
) -> tuple[Older, Newer, int, int]:
    """Run the older launch to an operation, the newer one to one of its own, then the older to its end."""
    prepare(root, before)
    images = 96 if before == "other images" else 128
    older, newer = Older(root), Newer(root, images, order=2 if before == "another order" else 0)
    go_on, paused, faults = threading.Event(), threading.Event(), list[BaseException]()

    def pause() -> None:
        paused.set()
        assert go_on.wait(SECONDS)

    newer_steps = Steps(root, newer_at, pause)

    def run_newer() -> None:
        try:
            with counting(newer_steps):
                newer.launch()
        except BaseException as error:
            faults.append(error)
        finally:
            paused.set()

    thread = threading.Thread(target=run_newer)

    def start_newer() -> None:
        thread.start()
        assert paused.wait(SECONDS)

    older_steps = Steps(root, older_at, start_newer)
    with counting(older_steps):
        older.publish()
    go_on.set()
    if older_at is None or older_steps.count < older_at:
        start_newer()
    thread.join(SECONDS)
    assert not thread.is_alive()
    if faults:
        raise faults[0]
    return older, newer, older_steps.count, newer_steps.count


def faults_of(root: Path, older: Older, newer: Newer) -> list[str]:
    """Return what the older launch has done to the run after the newer one had read it."""
    faults = []
    if newest_files(root / "checkpoints") != newer.left:
        faults.append("the newest checkpoint is another one than the newer launch left")
    if newer.resumed is None or not newer.resumed.exists():
        faults.append("the checkpoint that the newer launch has resumed from is gone")
    state = RunState.read(root)
    if state is None or (state.mlflow_run_id, state.launches) != ("newer", older.number + 1):
        faults.append("run.json is not that of the newer launch")
    if RunFolder(root).summary_file.read_text() != '{\n  "name": "newer"\n}\n':
        faults.append("summary.json is not that of the newer launch")
    return faults


BEFORE = ("nothing", "damaged", "another order")


def all_faults(own_folder: Path, before: str, every: int | None = None) -> tuple[list[str], set[str]]:
    """Let the newer launch come at each operation of the older one, and run to its end.

    Args:
        own_folder: where the runs are made.
        before: the checkpoint at 128 images before both.
        every: also stop the newer launch at every so many of its own operations, other ones each time.

    Returns:
        The faults, and what of the older launch was refused at least once.
    """
    *_, older_count, newer_count = interleave(own_folder / "runs" / "count", before, None, None)
    assert min(older_count, newer_count) > 20
    found, refused = list[str](), set[str]()
    for older_at in range(1, older_count + 1):
        stops = range(1 + older_at % every, newer_count + 1, every) if every else [None]
        for newer_at in stops:
            root = own_folder / "runs" / f"{older_at}-{newer_at}"
            older, newer, *_ = interleave(root, before, older_at, newer_at)
            found += [f"{older_at}, {newer_at}: {fault}" for fault in faults_of(root, older, newer)]
            refused |= {name for name, error in older.ends.items() if error is not None}
    return found, refused


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power cut here


@pytest.mark.parametrize("before", ["nothing", "other images", "damaged", "another order"])
def test_the_newer_launch_comes_at_any_operation(own_folder: Path, before: str) -> None:
    found, refused = all_faults(own_folder, before)
    assert found == []
    assert refused == {"checkpoint", "state", "summary"}


def test_the_older_goes_on_at_any_operation_of_the_newer(own_folder: Path) -> None:
    found, _ = all_faults(own_folder, "other images", every=7)
    assert found == []


@pytest.mark.parametrize("missing", ["check", "clear_partial", "remove_unpublished"])
def test_each_part_of_the_fence_is_needed(own_folder: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the same tries find a fault: these tests can fail."""
    if missing == "check":
        monkeypatch.setattr(fence.LaunchFence, "check", lambda _: None)
    elif missing == "clear_partial":
        monkeypatch.setattr(FolderCheckpoints, missing, lambda *_: None)
    else:
        monkeypatch.setattr(folder, missing, lambda *_: None)
    found, _ = all_faults(own_folder, "other images")
    assert found
