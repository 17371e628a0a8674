"""The launcher of ranks: what it says of a rank that fails or hangs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tests.platform import ranks

pytestmark = pytest.mark.processes


def fail_beside_one_that_waits(rank: int, world: int, folder: Path) -> None:
    """Rank 1 raises; rank 0 waits for it in a barrier."""
    if rank == 1:
        raise ValueError("something is wrong")
    torch.distributed.barrier()


def hang(rank: int, world: int, folder: Path) -> None:
    """Write a line, and sleep for longer than any test."""
    print("about to sleep", flush=True)
    time.sleep(1000)


def test_a_rank_that_fails_ends_the_others_and_its_log_is_shown(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"^rank 1-of-2 failed:\n[^\0]*ValueError: something is wrong"):
        ranks.run_groups(fail_beside_one_that_waits, tmp_path, [2])


def test_a_rank_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "HUNG_SECONDS", 0)
    with pytest.raises(AssertionError, match=r"^rank 0-of-1 hangs"):
        ranks.run_groups(hang, tmp_path, [1])
