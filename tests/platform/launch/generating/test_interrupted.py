"""Sample sets interrupted at any point: they end with the very bytes of one that was not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.platform.launch.generating.asked import BATCH, NUM, Nobody, files_of, interrupted, request_of

from causalfusion_platform.launch.generating import generate as launch
from causalfusion_platform.launch.generating.actors import LocalGenerator
from causalfusion_platform.launch.generating.generate import GeneratedSet, run_generate
from causalfusion_platform.launch.runs.exit_status import StoppedRun
from causalfusion_platform.report.log import log_to
from causalfusion_platform.sampling.progress import Generating


@pytest.mark.parametrize("parts", [1, 4])
def test_killed_between_parts(
    whole: GeneratedSet, weights: Path, tmp_path: Path, parts: int, log_lines: list[str]
) -> None:
    request = request_of(weights, tmp_path / "out", png=True)
    interrupted(request, parts)
    log_lines.clear()
    done = run_generate(request, LocalGenerator())
    assert done.made == NUM - parts * BATCH
    assert log_lines[0] == f"{parts * BATCH} of 10 samples are there; {done.made} to do"
    assert files_of(done.folder) == files_of(whole.folder)


def test_damaged_and_half_written_parts_are_made_again(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    request = request_of(weights, tmp_path / "out", png=True)
    interrupted(request, 4)
    first, second, *_ = sorted((tmp_path / "out/parts").iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(bytes(len(second.read_bytes())))
    (tmp_path / "out/parts" / f".{first.name}.77").write_bytes(b"half")
    (tmp_path / "out/.samples.npz.77").write_bytes(b"half")
    done = run_generate(request, LocalGenerator())
    assert done.made == NUM - 2 * BATCH
    assert files_of(done.folder) == files_of(whole.folder)


def test_killed_while_the_files_are_written(
    whole: GeneratedSet, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(weights, tmp_path / "out", png=True)

    def fail(output: str, *arguments: Any) -> Any:
        if output == "png":
            raise KeyboardInterrupt
        return write(output, *arguments)  # type: ignore[arg-type]

    write = launch._write
    monkeypatch.setattr(launch, "_write", fail)
    with pytest.raises(KeyboardInterrupt):
        run_generate(request, LocalGenerator())
    monkeypatch.undo()
    done = run_generate(request, Nobody())
    assert done.made == 0
    assert files_of(done.folder) == files_of(whole.folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_part(
    whole: GeneratedSet, weights: Path, tmp_path: Path, number: signal.Signals
) -> None:
    request = request_of(weights, tmp_path / "out", png=True)

    def show(report: Generating) -> None:
        if report.done == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedRun) as stopped:
        run_generate(request, LocalGenerator(), show=show)
    assert stopped.value.status == 75
    assert str(stopped.value) == f"stopped with 4 of 10 samples in {tmp_path / 'out'}\n  the same command continues"
    done = run_generate(request, LocalGenerator())
    assert done.made == 6
    assert files_of(done.folder) == files_of(whole.folder)


def test_a_signal_stops_the_writing(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    request = request_of(weights, tmp_path / "out", png=True)

    def stop_at_png(record: logging.LogRecord) -> bool:
        if "png" in record.getMessage():
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    launch.logger.addFilter(stop_at_png)
    with log_to(Console(quiet=True)), pytest.raises(StoppedRun, match="not all written out"):
        run_generate(request, LocalGenerator())
    launch.logger.removeFilter(stop_at_png)
    assert not (tmp_path / "out/png").exists()
    done = run_generate(request, Nobody())
    assert files_of(done.folder) == files_of(whole.folder)


def test_pngs_can_be_had_later(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    for first in ({"npz": True, "png": False}, {"npz": False, "png": True}):
        out = tmp_path / str(first["npz"])
        one = run_generate(request_of(weights, out, **first), LocalGenerator())
        assert one.outputs == [name for name, wanted in first.items() if wanted]
        both = run_generate(request_of(weights, out, npz=True, png=True), Nobody())
        assert (both.made, both.outputs, both.digest) == (0, ["npz", "png"], whole.digest)
        assert files_of(out) == files_of(whole.folder)


def test_a_set_whose_files_are_gone_is_made_again(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole.folder, tmp_path / "out"))
    shutil.rmtree(out / "png")
    (out / "samples.npz").write_bytes(b"cut")
    done = run_generate(request_of(weights, out), LocalGenerator())
    assert (done.made, done.outputs, done.digest) == (NUM, ["npz"], whole.digest)
    assert done.npz.read_bytes() == whole.npz.read_bytes()


def test_other_versions_are_told(weights: Path, tmp_path: Path, log_lines: list[str]) -> None:
    request = request_of(weights, tmp_path / "out")
    interrupted(request, 2)
    log_lines.clear()
    text = (tmp_path / "out/samples.json").read_text()
    version = json.loads(text)["plan"]["versions"]["torch"]
    (tmp_path / "out/samples.json").write_text(text.replace(f'"{version}"', '"1.0"'))
    run_generate(request, LocalGenerator())
    assert "begun with torch 1.0, " in log_lines[0]
    assert f"now torch {version}, " in log_lines[0]
