"""Resuming with another number of ranks, with DeepSpeed itself on CPU and gloo: nothing of the state is lost."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.malicious import MakesFolder
from tests.platform.checkpoint.universal_cases import (
    CASES,
    FROM,
    OTHER_STAGE,
    STEPS_AFTER,
    STEPS_BEFORE,
    TO_FOUR,
)
from tests.platform.checkpoint.universal_process import run
from tests.platform.ranks import run_groups

from causalfusion_platform.checkpoint.universal import convert, convert_here, needs_conversion, reshardable

pytestmark = pytest.mark.processes

SAME = [(world, case, case) for world in FROM for case in (CASES if world < 4 else TO_FOUR)]
OTHER = [(world, case, target) for world in (1, 2) for case, target in OTHER_STAGE.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the ranks write into."""
    return tmp_path_factory.mktemp("universal")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[int, dict[str, Any]]:
    """Run 1, 2 and 4 ranks side by side. They save, convert, and load from one another.

    Returns:
        Number of ranks → what they measured.
    """
    return {world: ranks[0] for world, ranks in run_groups(run, folder, FROM).items()}


@pytest.fixture(scope="module")
def saved(folder: Path, results: object) -> Path:
    """Return the folder with what the ranks have saved."""
    return folder


@pytest.mark.parametrize(("world", "case", "target"), SAME + OTHER)
def test_nothing_is_lost(results: dict[int, dict[str, Any]], world: int, case: str, target: str) -> None:
    """fp32 weights, Adam's moments and step counts are equal to the bit, in numbers that are not zero."""
    measured = results[world][f"{case} → {target}"]
    assert measured["different"] == []
    assert measured["moved"] > 0
    assert measured["steps"] == [STEPS_BEFORE]
    assert measured["steps_after"] == [STEPS_BEFORE + STEPS_AFTER]
    if "bf16" not in case:  # whose sums over ranks differ in the third digit
        assert measured["losses"] == pytest.approx(measured["expected"], rel=2e-5)
    assert measured["expected"][0] != pytest.approx(measured["expected"][-1], rel=1e-2)


def test_what_is_tried_is_what_is_said_to_work() -> None:
    """And the rest is refused, with both sides named."""
    for world, case, target in SAME + OTHER:
        assert reshardable(CASES[case][0], FROM[world], CASES[target][0], world) is None
    for old, new in ((0, 1), (0, 3), (1, 0), (1, 3), (2, 0), (2, 3), (3, 0), (3, 1), (3, 2)):
        reason = reshardable(old, 2, new, 4)
        assert reason is not None
        assert f"2 workers with ZeRO stage {old}" in reason
        assert f"stage {new} with 4" in reason


def test_only_what_must_be_is_converted() -> None:
    """The direct way is exact to the bit; ZeRO 0 has nothing to convert."""
    assert not needs_conversion(1, 2, 1, 2)
    assert not needs_conversion(0, 2, 0, 1)
    assert needs_conversion(1, 2, 1, 1)
    assert needs_conversion(1, 2, 2, 2)
    assert needs_conversion(3, 1, 3, 2)


def test_a_rank_that_cannot_write_keeps_no_other_waiting(results: dict[int, dict[str, Any]]) -> None:
    first, second = json.loads(results[2]["broken"])
    assert first == ""
    assert "a file/engine cannot be written" in second


def test_a_conversion_in_a_process_of_its_own(saved: Path, tmp_path: Path) -> None:
    """The same files as in this process."""
    out = convert(saved / "zero-2-2", tmp_path / "out", 2)
    there, here = saved / "zero-2-2-universal", out
    files = sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    tensors = [name for name in files if name.name in ("fp32.pt", "exp_avg.pt", "exp_avg_sq.pt")]
    assert len(tensors) == 3 * 5  # weights and biases of three layers, one without
    for name in tensors:
        assert torch.equal(torch.load(here / name)["param"], torch.load(there / name)["param"])


@pytest.mark.parametrize("case", ["zero-1", "zero-3"])
@pytest.mark.parametrize("part", ["*_optim_states.pt", "*_model_states.pt"])
def test_a_conversion_runs_no_code(saved: Path, tmp_path: Path, case: str, part: str) -> None:
    copy = shutil.copytree(saved / f"{case}-2", tmp_path / "copy")
    victim = next(copy.rglob(part))
    content = torch.load(victim, weights_only=False)
    torch.save({**content, "more": MakesFolder(tmp_path / "made")}, victim)
    torch.load(victim, weights_only=False)
    (tmp_path / "made").rmdir()  # it works, where nothing guards against it
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        convert_here(copy, tmp_path / "out", CASES[case][0])
    assert not (tmp_path / "made").exists()


def test_a_universal_file_runs_no_code(results: dict[int, dict[str, Any]]) -> None:
    assert results[1]["malicious refused"]
