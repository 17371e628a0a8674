"""Going on from a checkpoint: to the bit, from the newest good one, and not from what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.malicious import MakesFolder
from tests.platform.checkpoint.made import hash_files
from tests.platform.train.trained import BATCH, DATA, Training, alone, tiny

from causalfusion_platform.checkpoint.engine_state import TAG
from causalfusion_platform.checkpoint.manifest import Facts, check, write_manifest
from causalfusion_platform.checkpoint.storage import FolderCheckpoints
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.train.loop import StepResult, TrainLoop, TrainState
from causalfusion_platform.train.resume import UNIVERSAL_FOLDER, Resume, find_resume, restore

EXPERIMENT: dict[str, Any] = {
    "images": 6 * BATCH,
    "optim": {"ema_power": [0.1], "warmup_images": 40},
    "train": {"checkpoint_every_images": 2 * BATCH, "keep_checkpoints": 9, "zero_stage": 1},
}


class Losses:
    """A hook that keeps what each step did."""

    every_images = 1
    at_end = False

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []

    def observe(self, result: StepResult) -> None:
        step = result.step
        self.found.append((float(step.loss), float(step.grad_norm), step.learning_rate))

    def run(self, loop: TrainLoop) -> None:
        """Nothing to do."""


class Whole:
    """A run of six steps with three checkpoints."""

    def __init__(self, root: Path) -> None:
        self.experiment = tiny(root, **EXPERIMENT)
        self.training, losses = Training(self.experiment), Losses()
        self.training.train(losses)
        self.losses, self.root = losses.found, self.training.job.checkpoints

    def find(self, bad: list[tuple[str, str]] | None = None, **changes: Any) -> Resume | None:
        notes = [] if bad is None else bad
        given: dict[str, Any] = {"experiment": self.experiment, "data_digest": DATA, "other_data": False, **changes}
        return find_resume(
            given["experiment"],
            FolderCheckpoints(self.root),
            given["data_digest"],
            given["other_data"],
            lambda name, reason: notes.append((name, reason)),
        )


@pytest.fixture
def whole(tmp_path: Path) -> Whole:
    """A run with checkpoints at 16, 32 and 48 images."""
    return Whole(tmp_path)


def name(steps: int) -> str:
    return checkpoint_folder(Path(), steps * BATCH).name


def facts_of(folder: Path) -> Facts:
    return Facts.model_validate(check(folder).model_dump(exclude={"files", "created", "version"}))


def with_train(experiment: Experiment, **train: Any) -> Experiment:
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=train)})


def same(ones: Iterator[torch.Tensor] | list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_a_new_run_has_nothing_to_resume(tmp_path: Path) -> None:
    alone()
    assert (
        find_resume(tiny(tmp_path), FolderCheckpoints(tmp_path / "checkpoints"), DATA, False, lambda *_: None)
        is None
    )
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_the_steps_that_follow_are_the_same_to_the_bit(whole: Whole, damaged: bool) -> None:
    """Weights, moments, averages and the guard's norms all come back; so the rest of the run repeats itself."""
    before = whole.training
    newest = whole.root / name(6)
    if damaged:
        (newest / "weights" / "model.safetensors").write_bytes(b"")
    else:
        newest.rename(whole.root / "elsewhere")
    bad: list[tuple[str, str]] = []
    found = whole.find(bad)
    assert found is not None
    assert (found.folder, found.universal, found.convert_seconds) == (whole.root / name(4), None, 0.0)
    assert found.manifest == check(found.folder)
    again, losses = Training(whole.experiment, found, attempt=2), Losses()
    assert again.loop.state == TrainState(4, 4 * BATCH)
    assert list(again.guard.norms) == list(before.guard.norms)[:4]
    assert again.guard.images == 4 * BATCH
    again.train(losses)
    assert losses.found == whole.losses[4:]
    assert same(again.weights(), before.weights())
    for profile in before.loop.averages.profiles:
        old, new = (one.loop.averages.full_state(profile.name) for one in (before, again))
        assert same(list(old.values()), list(new.values()))
    assert again.guard.norms == before.guard.norms
    if damaged:
        [(folder, reason)] = bad
        assert folder == name(6)
        assert reason.startswith("weights/model.safetensors has 0 of ")
        aside = whole.root / "bad" / folder / "reason.txt"
        assert reason in aside.read_text()
        assert check(whole.root / name(6))  # written again


def test_none_of_them_is_good(whole: Whole) -> None:
    for steps in (2, 4, 6):
        (whole.root / name(steps) / "checkpoint.json").unlink()
    bad: list[tuple[str, str]] = []
    assert whole.find(bad) is None
    assert [folder for folder, _ in bad] == [name(6), name(4), name(2)]
    assert sorted(path.name for path in (whole.root / "bad").iterdir()) == [name(2), name(4), name(6)]


def test_after_a_roll_back_the_old_norms_do_not_count(whole: Whole) -> None:
    found = whole.find()
    again = Training(whole.experiment, found, order=1)
    assert again.loop.state == TrainState(6, 6 * BATCH, 1)
    assert list(again.guard.norms) == []


def test_other_data(whole: Whole) -> None:
    other = "e" * 64
    with pytest.raises(UserError) as caught:
        whole.find(data_digest=other)
    message = str(caught.value)
    assert f"{whole.root / name(6)} was trained on data dddddddddddd…, but data.path holds eeeeeeeeeeee…" in message
    assert "--allow-config-change data.digest" in message
    found = whole.find(data_digest=other, other_data=True)
    assert found is not None
    assert found.folder == whole.root / name(6)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_stage_that_it_cannot_become(whole: Whole, stage: int) -> None:
    with pytest.raises(UserError) as caught:
        whole.find(experiment=with_train(whole.experiment, zero_stage=stage))
    message = str(caught.value)
    assert f"{whole.root / name(6)} does not fit train.zero_stage={stage}: it was written by 1 workers" in message
    assert "only stages 1 and 2 go into one another" in message
    assert "resume with train.zero_stage=1" in message
    assert not (whole.root / UNIVERSAL_FOLDER).exists()


def test_a_stage_that_it_can_become(whole: Whole) -> None:
    """Converted once, used, removed; the steps that follow are those of the run itself, up to rounding."""
    (whole.root / name(6)).rename(whole.root / "elsewhere")
    (whole.root / UNIVERSAL_FOLDER).mkdir()
    (whole.root / UNIVERSAL_FOLDER / "left").touch()  # by an attempt that was cut short
    experiment = with_train(whole.experiment, zero_stage=2)
    found = whole.find(experiment=experiment)
    assert found is not None
    assert found.universal == whole.root / UNIVERSAL_FOLDER
    assert found.was == "1 workers, ZeRO 1"
    assert found.convert_seconds > 0
    assert not (found.universal / "left").exists()
    again, losses = Training(experiment, found), Losses()
    assert not found.universal.exists()
    again.train(losses)
    for (loss, norm, rate), (old_loss, old_norm, old_rate) in zip(losses.found, whole.losses[4:], strict=True):
        assert loss == pytest.approx(old_loss, rel=1e-5)
        assert norm == pytest.approx(old_norm, rel=1e-4)
        assert rate == old_rate


def test_a_state_that_cannot_be_converted(whole: Whole) -> None:
    """Every hash is right: it was written so."""
    folder = whole.root / name(6)
    facts = facts_of(folder)
    for file in (folder / "engine" / TAG).glob("*optim_states.pt"):
        file.write_bytes(b"no state")
    write_manifest(folder, facts, hash_files(folder))
    with pytest.raises(UserError) as caught:
        whole.find(experiment=with_train(whole.experiment, zero_stage=2))
    assert "cannot be converted" in str(caught.value)
    assert "resume with train.num_workers=1 train.zero_stage=1, which needs no conversion" in str(caught.value)


def test_a_file_that_holds_code_is_refused(whole: Whole, tmp_path: Path) -> None:
    folder, mark = whole.root / name(6), tmp_path / "harmed"
    facts = facts_of(folder)
    for file in (folder / "engine" / TAG).glob("*.pt"):
        torch.save({"state": MakesFolder(mark)}, file)
    write_manifest(folder, facts, hash_files(folder))
    found = whole.find()
    assert found is not None
    with pytest.raises(UserError, match="a file of it holds code, which has not been run"):
        restore(whole.training.loop, found)
    assert not mark.exists()


@pytest.mark.parametrize("stage", [0, 1])
def test_changed_settings_of_the_optimizer_hold(tmp_path: Path, stage: int) -> None:
    """A checkpoint brings the settings that it was made with; those of the experiment count."""
    tree = {**EXPERIMENT, "train": {**EXPERIMENT["train"], "zero_stage": stage}}
    whole = Training(tiny(tmp_path, **tree))
    whole.train()
    optim = whole.job.experiment.optim.model_copy(
        update={"betas": (0.8, 0.7), "weight_decay": 0.5, "eps": 1e-6, "base_lr": 0.001}
    )
    changed = whole.job.experiment.model_copy(update={"optim": optim})
    found = find_resume(changed, whole.job.storage, DATA, False, lambda *_: None)
    engine = Training(changed, found).loop.engine
    for optimizer in (engine.optimizer, engine.basic_optimizer):
        for group in optimizer.param_groups:
            assert (tuple(group["betas"]), group["weight_decay"], group["eps"]) == ((0.8, 0.7), 0.5, 1e-6)


def test_averages_that_it_does_not_hold(whole: Whole) -> None:
    found = whole.find()
    optim = whole.experiment.optim.model_copy(update={"ema_power": (0.2,)})
    with pytest.raises(UserError, match=r"holds no average power-0\.20"):
        Training(whole.experiment.model_copy(update={"optim": optim}), found)
