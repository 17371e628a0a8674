"""Passes over shards: results in order, progress, and an end that does not wait for what has not begun."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from causalfusion_platform.data.manifest import Manifest, Shard
from causalfusion_platform.data.passes import Tick, over_shards
from causalfusion_platform.data.shards import Rows


@pytest.fixture
def manifest(write_small: Callable[..., tuple[Path, Rows, Manifest]]) -> Manifest:
    """100 shards of one row."""
    return write_small(100, rows_per_shard=1, rows_per_group=1)[2]


def test_results_come_in_the_order_of_shards(manifest: Manifest) -> None:
    first = threading.Event()

    def work(shard: Shard, tick: Tick) -> str:
        if shard.file.startswith("shard-00000"):
            assert first.wait(20) or not first.is_set()
        elif shard.file.startswith("shard-00001"):
            first.set()
        return shard.file

    assert over_shards(manifest, work) == [shard.file for shard in manifest.shards]


def test_progress_reaches_the_end_and_never_passes_it(manifest: Manifest) -> None:
    seen: list[tuple[int, int]] = []
    over_shards(manifest, lambda shard, tick: tick(shard.rows), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("where", ["work", "show"])
def test_the_first_exception_ends_it(manifest: Manifest, where: str) -> None:
    """Shards that are being read stop at their next row group, and no other is begun."""
    begun: list[str] = []
    reported = threading.Event()

    def work(shard: Shard, tick: Tick) -> None:
        begun.append(shard.file)
        if where == "work":
            raise ValueError(shard.file)
        reported.wait(20)
        for _ in range(10**9):  # to its end, it would take minutes
            tick(0)

    def show(done: int, total: int) -> None:
        reported.set()
        raise KeyboardInterrupt

    with pytest.raises(ValueError if where == "work" else KeyboardInterrupt):
        over_shards(manifest, work, show)
    if where == "show":
        assert len(begun) < 50
