"""Loading DeepSpeed's state does not run code that a file hides."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.malicious import MakesFolder

from causalfusion_platform.checkpoint.engine_state import load_engine, save_engine, weights_only

VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class Files:
    """Writes files, as DeepSpeed's own writer does."""

    def makedirs(self, folder: str, exist_ok: bool = False) -> None:
        os.makedirs(folder, exist_ok=exist_ok)  # noqa: PTH103

    def save(self, state_dict: object, path: str) -> None:
        torch.save(state_dict, path)


class Engine:
    """An engine that saves and loads one file, the way DeepSpeed does."""

    def __init__(self, state: object = None) -> None:
        self.state = state
        self.checkpoint_engine = Files()
        self.barriers = 0

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool) -> None:
        self.checkpoint_engine.makedirs(str(Path(folder) / tag), exist_ok=True)
        self.checkpoint_engine.save(state_dict=self.state, path=str(Path(folder) / tag / "rank-0.pt"))
        self._copy_recovery_script(folder)
        self.barriers += 1

    def _copy_recovery_script(self, folder: str) -> None:
        (Path(folder) / "zero_to_fp32.py").write_text("print()")

    def load_checkpoint(self, folder: str, *, tag: str) -> tuple[str | None, dict[str, Any]]:
        path = Path(folder) / tag / "rank-0.pt"
        if not path.exists():
            return None, {}
        self.state = torch.load(path, map_location="cpu", weights_only=False)
        return str(path), {}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without the variable, as a run does."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_is_refused(own_folder: Path, zipped: bool) -> None:
    file, made = own_folder / "state.pt", own_folder / "made"
    content = {"step": 3, "module": MakesFolder(made)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    assert made.is_dir()  # the file works, where nothing guards against it
    made.rmdir()
    with weights_only(), pytest.raises(pickle.UnpicklingError, match="mkdir"):
        torch.load(file, weights_only=False)
    assert not made.exists()


def test_an_engine_does_not_load_it(own_folder: Path) -> None:
    folder, made = own_folder / "engine", own_folder / "made"
    save_engine(Engine([MakesFolder(made)]), folder)
    with pytest.raises(pickle.UnpicklingError):
        load_engine(Engine(), folder)
    assert not made.exists()
    assert VARIABLE not in os.environ


def test_what_deepspeed_saves_is_loaded(own_folder: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    state = {
        "stage": ZeroStageEnum.gradients,
        "scaler": LossScaler(4.0),
        "tensors": [torch.arange(5.0)],
        "step": 3,
    }
    save_engine(Engine(state), own_folder / "engine")
    engine: Any = Engine()
    load_engine(engine, own_folder / "engine")
    assert engine.state["stage"] == ZeroStageEnum.gradients
    assert engine.state["scaler"].cur_scale == 4.0
    assert engine.state["tensors"][0].tolist() == [0, 1, 2, 3, 4]
    assert engine.state["step"] == 3


@pytest.mark.parametrize("before", [None, "0", "1"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_guard_leaves_the_process_as_it_was(
    monkeypatch: pytest.MonkeyPatch, before: str | None, fails: bool
) -> None:
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    allowed = set(torch.serialization.get_safe_globals())
    try:
        with weights_only():
            assert os.environ[VARIABLE] == "1"
            assert set(torch.serialization.get_safe_globals()) > allowed
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert os.environ.get(VARIABLE) == before
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_folder_without_a_state(own_folder: Path) -> None:
    """DeepSpeed says so in its return value only, and would train on from new weights."""
    with pytest.raises(FileNotFoundError, match="holds no state of an engine"):
        load_engine(Engine(), own_folder)


def test_a_state_is_data_only(own_folder: Path) -> None:
    engine = Engine({"step": 3})
    save_engine(engine, own_folder / "engine")
    files = [path.name for path in (own_folder / "engine").rglob("*") if path.is_file()]
    assert files == ["rank-0.pt"]
    assert type(engine.checkpoint_engine) is Files
    assert "_copy_recovery_script" not in vars(engine)


def test_a_rank_that_cannot_write_reaches_the_barrier_of_the_others(own_folder: Path) -> None:
    """/dev/full refuses every byte; torch then raises a RuntimeError."""
    (own_folder / "engine/state").mkdir(parents=True)
    (own_folder / "engine/state/rank-0.pt").symlink_to("/dev/full")
    engine = Engine(torch.zeros(10_000))
    with pytest.raises(OSError, match="engine cannot be written"):
        save_engine(engine, own_folder / "engine")
    assert engine.barriers == 1
    assert type(engine.checkpoint_engine) is Files
