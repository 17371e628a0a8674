"""What is saved, when, and what happens when it cannot be: a real engine, real files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.platform.train.trained import BATCH, CPU, DATA, Training, tiny

from causalfusion_platform.assemble import build_saver
from causalfusion_platform.checkpoint.manifest import CheckpointManifest, check, config_digest
from causalfusion_platform.checkpoint.save import Saver
from causalfusion_platform.checkpoint.storage import FolderCheckpoints
from causalfusion_platform.checkpoint.store import Retention, checkpoint_folder
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.storage.fence import LaunchToken
from causalfusion_platform.tracking.accounting import account
from causalfusion_platform.tracking.journal import Checkpointed, SaveFailed, StepReport
from causalfusion_platform.train.checkpointing import FAILED_SAVES, NotSaved
from causalfusion_platform.train.control import StopHook, Stopped, StopReason
from causalfusion_platform.train.guard import SKIPPED, Diverged
from causalfusion_platform.train.loop import StepResult, TrainLoop
from causalfusion_platform.train.metrics import Recording
from causalfusion_platform.train.system import System


def saved(training: Training) -> dict[int, CheckpointManifest]:
    """Images → manifest of all checkpoints that are there, each of which is whole."""
    folders = sorted(training.job.checkpoints.glob("images-*"))
    return {int(folder.name.removeprefix("images-")): check(folder) for folder in folders}


class Each:
    """A hook that does something after each step, or after those at some images."""

    every_images = 1
    at_end = False

    def __init__(self, act: Any, *images: int) -> None:
        self.act, self.images = act, images

    def observe(self, result: StepResult) -> None:
        """Nothing to keep."""

    def run(self, loop: TrainLoop) -> None:
        if not self.images or loop.state.images_seen in self.images:
            self.act()


def test_cadence_content_and_facts(tmp_path: Path) -> None:
    optim = {"ema_power": [0.1]}
    experiment = tiny(tmp_path, train={"checkpoint_every_images": 24, "keep_checkpoints": 9}, optim=optim)
    training = Training(experiment, attempt=3, order=2)
    found: dict[int, tuple[list[float], list[float]]] = {}
    losses: list[float] = []

    class Watch(Each):
        def observe(self, result: StepResult) -> None:
            losses.append(float(result.step.loss))
            found[training.loop.state.images_seen] = ([*training.guard.norms], [*losses])

    training.train(Watch(lambda: None))
    manifests = saved(training)
    assert list(manifests) == [24, 48, 72, 80]  # the end too
    assert not list(training.job.checkpoints.glob(".*"))
    assert {path.name for path in (tmp_path / "staging").rglob("*") if path.is_file()} <= {".held"}
    before = 0
    for images, manifest in manifests.items():
        step = images // BATCH
        norms, so_far = found[images]
        facts = manifest.model_dump(exclude={"files", "created", "metrics", "version"})
        assert facts == {
            "step": step,
            "images_seen": images,
            "order": 2,
            "seed": experiment.seed,
            "world_size": 1,
            "zero_stage": 0,
            "precision": "fp32",
            "config_digest": config_digest(experiment),
            "data_digest": DATA,
            "versions": {"torch": "x"},
            "mlflow_run_id": "run",
            "grad_norms": norms,
            "averages": [profile.name for profile in training.loop.averages.profiles],
        }
        assert len(norms) == step
        mean = sum(so_far[before:step]) / (step - before)
        assert manifest.metrics["loss"] == pytest.approx(mean, rel=1e-6)
        before = step
    folder = checkpoint_folder(training.job.checkpoints, 80)
    for name, place in (("ema-0.9999", "weights"), ("power-0.10", "averages/power-0.10")):
        stored, wanted = load_file(folder / place / "model.safetensors"), training.loop.averages.full_state(name)
        assert stored.keys() == wanted.keys()
        assert all(torch.equal(stored[key], wanted[key]) for key in wanted)
    assert json.loads((folder / "weights" / "config.json").read_text())
    events = [event for event in training.journal.events() if isinstance(event, Checkpointed)]
    assert [(event.attempt, event.images, event.bytes) for event in events] == [
        (3, images, manifest.bytes) for images, manifest in manifests.items()
    ]
    assert all(event.stall_seconds > 0 and event.upload_seconds > 0 for event in events)
    assert training.spent.checkpoints == pytest.approx(sum(event.stall_seconds for event in events))
    assert training.control.notes == []


def test_a_request_to_stop_saves_the_very_step(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path, train={"checkpoint_every_images": 24, "keep_checkpoints": 9}))
    stop = StopHook(training.control, training.checkpoints.now, training.checkpoints.storage_fails)
    with pytest.raises(Stopped) as caught:
        training.train(Each(lambda: setattr(training.control, "stop", "preempted"), 32), stop)
    assert caught.value.reason == "preempted"
    assert list(saved(training)) == [24, 32]  # complete when the loop has ended
    assert training.control.images == 32
    assert training.control.notes == ["preempted: saving a checkpoint at 32 images"]


@pytest.mark.parametrize("at", [24, 40, 80])
def test_no_checkpoint_of_a_launch_that_was_taken_over(tmp_path: Path, at: int) -> None:
    """Another launch takes the run over right before a checkpoint, between two, and before the last one."""
    experiment = tiny(tmp_path, train={"checkpoint_every_images": 24, "keep_checkpoints": 9})
    token, other = LaunchToken.new(1), LaunchToken.new(2)
    experiment.run_dir.mkdir(parents=True)
    token.write(experiment.run_dir)
    training = Training(experiment, launch_id=token.id)
    checkpoints = training.checkpoints
    stop = StopHook(training.control, checkpoints.now, checkpoints.storage_fails, lambda: checkpoints.superseded)
    before: list[str] = []

    def take_over() -> None:
        checkpoints.saver.wait()
        before.extend(path.name for path in training.job.checkpoints.glob("images-*"))
        other.write(experiment.run_dir)

    training.metrics.run = lambda loop: take_over() if loop.state.images_seen == at else None  # type: ignore[method-assign]
    with pytest.raises(Stopped) as caught:
        training.train(Each(checkpoints.saver._join, 8), stop)
    assert caught.value.reason == "superseded"
    assert sorted(path.name for path in training.job.checkpoints.glob("*images-*")) == sorted(before)
    [note] = training.control.notes
    assert "not published: launch 2 has taken run 'test' over" in note
    assert not any(isinstance(event, SaveFailed) for event in training.journal.events())


def test_a_stop_reports_the_steps_since_the_last_report(tmp_path: Path) -> None:
    """Its checkpoint holds no more images than the run has reported."""
    training = Training(tiny(tmp_path, train={"log_every_images": 24}))
    training.metrics.recording = Recording(training.journal, lambda _: None, 1, 0, System(tmp_path, CPU))
    stop = StopHook(training.control, training.checkpoints.now, training.checkpoints.storage_fails)
    with pytest.raises(Stopped):
        training.train(Each(lambda: setattr(training.control, "stop", "stopped"), 40), stop)
    events = training.journal.events()
    assert [event.images for event in events if isinstance(event, StepReport)] == [24, 40]
    assert list(saved(training)) == [40]
    assert account(events).images == 40


def test_a_request_right_after_a_checkpoint_saves_no_second_one(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path, train={"checkpoint_every_images": 24}))
    stop = StopHook(training.control, training.checkpoints.now, training.checkpoints.storage_fails)
    with pytest.raises(Stopped):
        training.train(Each(lambda: setattr(training.control, "stop", "stopped"), 24), stop)
    assert list(saved(training)) == [24]
    assert len([event for event in training.journal.events() if isinstance(event, Checkpointed)]) == 1


def test_skipped_updates_are_in_the_norms_and_in_no_loss(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path, images=2 * BATCH, train={"log_every_images": BATCH}))
    norm = training.guard.gradient_norm
    training.guard.gradient_norm = lambda: math.nan
    training.train(Each(lambda: setattr(training.guard, "gradient_norm", norm), BATCH))
    manifest = saved(training)[2 * BATCH]
    first, second = manifest.grad_norms
    assert first == SKIPPED
    assert second > 0
    assert manifest.metrics["loss"] > 0
    skipped = [event for event in training.journal.events() if event.kind == "skipped"]
    assert [event.images for event in skipped] == [0]
    assert training.control.notes == ["update skipped at 0 images: the gradient norm is nan"]


def test_a_checkpoint_without_an_update_has_no_loss(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path, images=BATCH))
    training.guard.gradient_norm = lambda: math.inf
    training.train()
    assert saved(training)[BATCH].metrics == {}


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path, train={"checkpoint_every_images": 24}))

    def spoil() -> None:
        with torch.no_grad():
            next(iter(training.loop.averages._averages.values()))[-1].view(-1)[0] = math.nan

    with pytest.raises(Diverged, match="no longer finite"):
        training.train(Each(spoil, 32))
    outcomes = training.checkpoints.saver.wait()
    assert [outcome.images_seen for outcome in outcomes] == [24]
    assert list(saved(training)) == [24]


# Saves that fail


def block(training: Training) -> Path:
    """Make the run's storage refuse: a file where its folder of checkpoints would be."""
    training.job.checkpoints.parent.mkdir(parents=True, exist_ok=True)
    training.job.checkpoints.write_text("in the way")
    return training.job.checkpoints


def test_saves_that_fail_cost_themselves_alone(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path, train={"checkpoint_every_images": 24, "keep_checkpoints": 9}))
    training.train(until=16)
    blocked = block(training)
    training.train(until=24)
    settle(training).run(training.loop)
    assert training.checkpoints.failures == 1
    blocked.unlink()
    training.train()
    assert list(saved(training)) == [48, 72, 80]
    assert training.checkpoints.failures == 0
    [failed] = [event for event in training.journal.events() if isinstance(event, SaveFailed)]
    assert failed.images == 24
    assert str(blocked) in failed.reason
    assert training.control.notes == [f"checkpoint not saved: {failed.reason}; those before it are untouched"]


def settle(training: Training) -> Each:
    """Wait after each step for the save in flight, so that each step knows of the one before."""
    return Each(lambda: training.checkpoints._tell(training.checkpoints.saver.wait()))


def test_after_three_failures_in_a_row_the_run_stops(tmp_path: Path) -> None:
    """A save that works in between sets the count back."""
    training = Training(tiny(tmp_path, train={"checkpoint_every_images": BATCH}))
    reasons: list[StopReason] = []
    save_now = lambda _, reason: reasons.append(reason)  # noqa: E731
    hooks = [settle(training), StopHook(training.control, save_now, training.checkpoints.storage_fails)]
    blocked = block(training)
    training.train(*hooks, until=2 * BATCH)
    blocked.unlink()
    training.train(*hooks, until=3 * BATCH)
    assert list(saved(training)) == [3 * BATCH]
    blocked.rename(tmp_path / "moved")
    block(training)
    with pytest.raises(Stopped) as caught:
        training.train(*hooks)
    assert caught.value.reason == "storage"
    assert training.loop.state.images_seen == (3 + FAILED_SAVES) * BATCH
    assert reasons == []  # nothing is saved where nothing can be
    failed = [event.images for event in training.journal.events() if isinstance(event, SaveFailed)]
    assert failed == [BATCH * number for number in (1, 2, 4, 5, 6)]


def test_a_last_checkpoint_that_fails_is_no_end(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path, images=2 * BATCH))
    block(training)
    with pytest.raises(NotSaved, match="the checkpoint at 16 images could not be saved"):
        training.train()


def test_a_stop_whose_checkpoint_fails_says_so(tmp_path: Path) -> None:
    training = Training(tiny(tmp_path))
    block(training)
    stop = StopHook(training.control, training.checkpoints.now, training.checkpoints.storage_fails)
    training.control.stop = "stopped"
    with pytest.raises(NotSaved, match="at 8 images"):
        training.train(stop)


def test_a_staging_disk_that_refuses(tmp_path: Path) -> None:
    """The save fails, training does not: and no rank waits for one that could not even begin."""
    training = Training(tiny(tmp_path, train={"checkpoint_every_images": 24}))
    shutil.rmtree(tmp_path / "staging")
    (tmp_path / "staging").write_text("in the way")
    training.train(until=24)
    settle(training).run(training.loop)
    [failed] = [event for event in training.journal.events() if isinstance(event, SaveFailed)]
    assert str(tmp_path / "staging") in failed.reason
    (tmp_path / "staging").unlink()
    training.train()
    assert list(saved(training)) == [72, 80]  # two are kept


def test_a_staging_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before anything is written: as much again as the largest checkpoint, and a quarter more."""
    training = Training(tiny(tmp_path, train={"checkpoint_every_images": 16, "keep_checkpoints": 9}))
    training.train(until=16)
    settle(training).run(training.loop)
    size = saved(training)[16].bytes
    assert training.checkpoints.largest == size
    for free, images in ((size * 5 // 4 - 1, 32), (size * 5 // 4 + 1, 48)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        training.train(until=images)
        settle(training).run(training.loop)
    assert list(saved(training)) == [16, 48]
    [failed] = [event for event in training.journal.events() if isinstance(event, SaveFailed)]
    assert (failed.images, failed.reason[:28]) == (32, "rank 0: no room in the stagi")


def test_a_staging_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Before training begins: whoever owns the folder could read and replace what is saved through it."""
    training = Training(tiny(tmp_path))
    [folder] = (tmp_path / "staging").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "theirs")
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"it is a link, not a folder of this user alone\n.*train\.staging=FOLDER"):
        build_saver(training.job)


def test_only_the_first_rank_counts_failures(tmp_path: Path) -> None:
    """The others never hear of saves that went well: theirs would add up over the whole run."""
    training = Training(tiny(tmp_path))
    root = training.job.checkpoints
    other = Saver(
        FolderCheckpoints(root), tmp_path / "other", rank=1, world_size=2, attempt="a", retention=Retention(2)
    )
    hook = training.checkpoint_hook(other)
    for images in range(BATCH, (FAILED_SAVES + 2) * BATCH, BATCH):
        other.begin(images)
        other.fail("a disk that stumbles now and then")
        hook._tell(other.wait())
        assert not hook.storage_fails()
    assert len(training.control.notes) == FAILED_SAVES + 1
