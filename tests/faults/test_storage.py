"""Checkpoints, shards and launches go wrong, where Ray has no part in the fault."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from tests.faults.conftest import ENOUGH, EVERY, Plan, launch, sigterm, started, until
from tests.faults.matrix import assert_same, events, record, steps_again
from tests.malicious import MakesFolder

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import sha256_of
from causalfusion_platform.launch.runs.exit_status import GaveUp, StoppedRun
from causalfusion_platform.launch.runs.lock import is_under_way
from causalfusion_platform.tracking.journal import SaveFailed, SetAside

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def stopped_run(place: Path, plan: Plan, name: str, *overrides: str) -> Path:
    """Return the folder of a run stopped by SIGTERM after 10 of 16 steps, with checkpoints after 8 and 10."""
    plan(sigterm(place, name, 9, 2 * EVERY))
    with pytest.raises(StoppedRun):
        launch(name, *overrides, local=True)
    return place / "runs" / name


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("images-*"))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink], ids=["truncated", "bit-flipped", "missing"])
def test_a_damaged_checkpoint_is_set_aside(
    place: Path,
    one_process: Path,
    plan: Plan,
    damage: Callable[[Path], None],
    request: pytest.FixtureRequest,
) -> None:
    kind = request.node.callspec.id
    run_dir = stopped_run(place, plan, f"damaged-{kind}")
    bad = newest(run_dir)
    file = max(bad.glob("engine/state/*"), key=lambda file: file.stat().st_size)
    damage(file)
    launch(run_dir.name, local=True)
    assert_same(run_dir, one_process)
    [aside] = [event for event in events(run_dir) if isinstance(event, SetAside)]
    assert aside.checkpoint == bad.name
    assert file.name in aside.reason
    assert file.name in (run_dir / "checkpoints" / "bad" / bad.name / "reason.txt").read_text()
    record(
        f"a file of the newest checkpoint is {kind}",
        "it is set aside with the reason, the one before is used",
        exact=True,
        steps=steps_again(run_dir),
    )


def test_a_kill_between_payload_and_manifest_costs_that_checkpoint(
    place: Path, one_process: Path, plan: Plan, tmp_path: Path
) -> None:
    plan({"do": "SIGKILL", "before_manifest": 2 * EVERY})
    process = started("no-manifest", tmp_path / "log")
    assert process.wait(ENOUGH) == -signal.SIGKILL, (tmp_path / "log").read_text()
    run_dir = place / "runs" / "no-manifest"
    assert newest(run_dir).name == f"images-{EVERY:012d}"
    [partial] = (run_dir / "checkpoints").glob(".images-*")
    assert list(partial.glob("engine/state/*.pt"))  # the payload is there
    launch("no-manifest", local=True)
    assert_same(run_dir, one_process)
    assert not list((run_dir / "checkpoints").glob(".images-*"))
    record(
        "SIGKILL between a checkpoint's payload and its manifest",
        "what has no manifest is no checkpoint and is removed. The next launch uses the one before",
        exact=True,
        steps=steps_again(run_dir),
    )


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints, where a run's checkpoints go."""
    folder = place / "runs" / "disk-full" / "checkpoints"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"a small file system cannot be mounted here (needs root): {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoints_before(place: Path, one_process: Path, small_disk: Path) -> None:
    said: list[str] = []
    with pytest.raises(GaveUp, match=r"(?s)could not be saved.*free space"):
        launch("disk-full", local=True, said=said)
    run_dir = place / "runs" / "disk-full"
    failed = [event for event in events(run_dir) if isinstance(event, SaveFailed)]
    assert [event.images for event in failed] == [3 * EVERY, 4 * EVERY]
    assert all("No space left" in event.reason for event in failed)
    assert any("No space left" in line for line in said)
    assert newest(run_dir).name == f"images-{2 * EVERY:012d}"
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    launch("disk-full", local=True)
    assert_same(run_dir, one_process)
    record(
        "the disk is full while checkpoints are saved (a small tmpfs)",
        "training goes on and says so. Checkpoints before stay whole. The run stops if the last one, or three in "
        "a row, cannot be saved. With space again the same command goes on",
        exact=True,
        steps=steps_again(run_dir),
    )


def test_a_checkpoint_of_newer_code_is_refused(place: Path, one_process: Path, plan: Plan) -> None:
    run_dir = stopped_run(place, plan, "newer-code")
    manifest = newest(run_dir) / "checkpoint.json"
    before = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(before), "version": 99, "unheard_of": 1}))
    with pytest.raises(UserError, match="newer code: its manifest has version 99"):
        launch("newer-code", local=True)
    assert manifest.is_file()  # not set aside: it is not damaged
    manifest.write_text(before)
    launch("newer-code", local=True)
    assert_same(run_dir, one_process)
    record("a checkpoint written by newer code", "refused with both versions. Nothing is moved or lost", steps=0)


def test_code_in_a_checkpoint_is_refused(place: Path, plan: Plan, tmp_path: Path) -> None:
    """Whoever can write the file can write its hash too."""
    run_dir = stopped_run(place, plan, "malicious")
    folder = newest(run_dir)
    [file] = folder.glob("engine/state/mp_rank_00_model_states.pt")
    state = torch.load(file, weights_only=False)
    torch.save({**state, "extra": MakesFolder(tmp_path / "made")}, file)
    tree = json.loads((folder / "checkpoint.json").read_text())
    name = file.relative_to(folder).as_posix()
    tree["files"][name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    (folder / "checkpoint.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"(?s)holds code, which has not been run.*remove this folder"):
        launch("malicious", local=True)
    assert not (tmp_path / "made").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "made").is_dir()  # it does what it says, where nothing guards against it
    record("a malicious pickle in a checkpoint, its hash made to fit", "refused, and its code does not run")


def test_a_second_launch_of_a_name_is_refused_and_sigterm_has_an_exit_status_of_its_own(
    place: Path, one_process: Path, plan: Plan, tmp_path: Path
) -> None:
    """The first launch stands still while the second is refused, goes on, and gets SIGTERM before a later step."""
    run_dir, log = place / "runs" / "twice", tmp_path / "log"
    plan({"do": "SIGSTOP", "rank": 0, "step": 2}, {"do": "SIGTERM", "step": 5})
    process = started("twice", log)
    until(lambda: process.status() == psutil.STATUS_STOPPED, process, log)
    try:
        assert is_under_way(run_dir)
        with pytest.raises(UserError, match=f"run 'twice' is under way: process {process.pid} on"):
            launch("twice", local=True)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(ENOUGH) == 75, log.read_text()
    assert "the same command continues it" in log.read_text()
    assert launch("twice", local=True).summary["launches"] == 2
    assert_same(run_dir, one_process)
    assert steps_again(run_dir) == 0
    promise = "refused, naming host and process. The first is not disturbed"
    record("a second launch of a name that is under way", promise)


def test_a_shard_damaged_in_the_middle_of_a_run(place: Path, one_process: Path, plan: Plan) -> None:
    shards = place / "own-shards"
    write_digits(shards)
    run_dir = stopped_run(place, plan, "bad-shard", f"data.path={shards}", "data.prepare=false")
    shard = sorted(shards.glob("*.parquet"))[0]
    kept = shutil.copy(shard, place / "kept.parquet")
    flip_a_bit(shard)
    for verify in ("hash", "quick"):  # found before anything starts, or by the page checksum while reading
        with pytest.raises(UserError, match=shard.name):
            launch("bad-shard", f"data.path={shards}", "data.prepare=false", f"data.verify={verify}", local=True)
    shutil.copy(kept, shard)
    launch("bad-shard", f"data.path={shards}", "data.prepare=false", local=True)
    assert_same(run_dir, one_process)
    record(
        "a shard is damaged while the run goes on",
        "no row of it is trained on: the run stops and names it. Restored, the same command goes on",
        exact=True,
        steps=steps_again(run_dir),
    )
