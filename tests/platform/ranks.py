"""Groups of ranks on this machine: forked from one process that has imported DeepSpeed, joined by gloo."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.conftest import ROOT

HUNG_SECONDS = 480
"""Longer than any group takes on a busy machine, and shorter than pytest waits for a test."""

IMPORTED = [
    "deepspeed",
    "diffusers",
    "sklearn.datasets",
    "tests.platform.train.elastic_process",
    "tests.platform.tasks.finetune_process",
    "tests.platform.tasks.text_process",
    "tests.platform.train.zero_process",
]
"""Imported once, before the ranks are forked."""

Work = Callable[[int, int, Path], Any]

_forks = multiprocessing.get_context("forkserver")


def run_groups(work: Work, folder: Path, worlds: Iterable[int]) -> dict[int, list[Any]]:
    """Run groups of ranks side by side. Each rank calls `work(rank, world, folder)`.

    The first call starts the process that all ranks are forked from: importing DeepSpeed takes seconds.

    Args:
        work: a function of a module. Its result is made of lists, dictionaries, strings and numbers.
        folder: where ranks may write. Their logs and results go there too.
        worlds: the size of each group.

    Returns:
        World size → result of each rank, as JSON gives it back.

    Raises:
        AssertionError: a rank failed, or has not ended after `HUNG_SECONDS`. Holds the ends of the logs.
    """
    _forks.set_forkserver_preload(IMPORTED)
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # where the ranks find `tests`
    worlds = list(worlds)
    ranks: dict[str, BaseProcess] = {
        f"{rank}-of-{world}": _forks.Process(target=_run_rank, args=(work, rank, world, folder), daemon=True)
        for world in worlds
        for rank in range(world)
    }
    with mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}):
        for process in ranks.values():
            process.start()
    try:
        _join(list(ranks.values()))
        troubles = [
            f"rank {name} {'failed' if process.exitcode else 'hangs'}:\n{_end_of_log(folder, name)}"
            for name, process in ranks.items()
            if process.exitcode != 0
        ]
    finally:
        for process in ranks.values():
            process.kill()
    assert not troubles, "\n".join(sorted(troubles, key=lambda text: "hangs" in text.split("\n")[0]))
    return {
        world: [json.loads((folder / f"result-{rank}-of-{world}.json").read_text()) for rank in range(world)]
        for world in worlds
    }


def _join(processes: list[BaseProcess]) -> None:
    """Wait until all have ended, or one has failed: the others of its group would wait for it."""
    end = time.monotonic() + HUNG_SECONDS
    running: dict[Any, BaseProcess] = {process.sentinel: process for process in processes}
    while running and time.monotonic() < end:
        for sentinel in wait(list(running), timeout=end - time.monotonic()):
            ended = running.pop(sentinel)
            ended.join()
            if ended.exitcode:
                return


def _run_rank(work: Work, rank: int, world: int, folder: Path) -> None:
    log = os.open(_log(folder, f"{rank}-of-{world}"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    result = work(rank, world, folder)
    (folder / f"result-{rank}-of-{world}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def wait_for(path: Path) -> None:
    """Wait until another group has made the file."""
    end = time.monotonic() + HUNG_SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"no {path} after {HUNG_SECONDS} s"
        time.sleep(0.1)


def _log(folder: Path, name: str) -> Path:
    return folder / f"rank-{name}.log"


def _end_of_log(folder: Path, name: str) -> str:
    log = _log(folder, name)
    return log.read_text(errors="replace")[-4000:] if log.exists() else "it has written nothing"
