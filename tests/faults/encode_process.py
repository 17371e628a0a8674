"""The encoder without Ray, killed before each thing that it does to its folder; for `test_encoder_killed`.

Each launch is a fork of this process, which has imported everything and computed nothing. It prints a line of JSON:
the steps at which launches were killed, and how many launches the folder took that was killed again and again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from tests.faults.shards import check_finished_shards
from tests.platform.data.encode.in_process import encode_without_ray

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.truncate")
"""Python's audit events of changes in a folder, beside files that are opened to be written."""


class Steps:
    """Counts what is done to a folder, and kills this process before one of the steps."""

    def __init__(self, folder: Path, kill_before: int | None) -> None:
        self.folder, self.kill_before, self.names = str(folder), kill_before, list[str]()

    def watch(self) -> None:
        """Count from now on: changes of names, files opened to be written, and files written but not closed."""
        fsync = os.fsync

        def counted(file: int) -> None:
            self._step("os.fsync", str(Path(f"/proc/self/fd/{file}").readlink()))
            fsync(file)

        os.fsync = counted  # type: ignore[assignment]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        written = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if written or event in CHANGES:
            self._step(event, str(arguments[1 if event == "os.rename" else 0]))

    def _step(self, event: str, path: str) -> None:
        if path.startswith(self.folder):
            if len(self.names) == self.kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(f"{event} {Path(path).name}")


def launch(source: Path, out: Path, kill_before: int | None = None) -> bool:
    """Encode in a fork of this process; say whether it came to its end. The steps are beside the folder."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            steps = Steps(out, kill_before)
            steps.watch()
            encode_without_ray(source, "identity", out, size=32, batch_size=4, rows_per_shard=16, rows_per_group=8)
            out.with_suffix(".steps").write_text(json.dumps(steps.names))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), ended
    return ended == 0


def main() -> None:
    source, folder = map(Path, sys.argv[1:])
    torch.set_num_threads(1)

    def encode_into(out: Path, kill_before: int | None = None) -> bool:
        return launch(source, out, kill_before)

    assert encode_into(folder / "whole")
    names = json.loads((folder / "whole.steps").read_text())
    for step in range(len(names)):
        out = folder / f"killed-{step}"
        assert not encode_into(out, step)
        check_finished_shards(out)
        assert encode_into(out)
    launches = 1
    while not encode_into(folder / "again", 6 + launches):
        check_finished_shards(folder / "again")
        launches += 1
    print(json.dumps({"steps": names, "launches": launches}))


if __name__ == "__main__":
    main()
