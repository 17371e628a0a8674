"""`make bench-gpu` as a whole, rehearsed with tiny models on the CPU."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tests.benchmarks.gpu import __main__ as bench
from tests.benchmarks.gpu import steps, training, waiting
from tests.benchmarks.gpu.deadline import Deadline, OutOfTime
from tests.benchmarks.gpu.report import Report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave blocks as they are: compiling them takes most of a rehearsal."""
    monkeypatch.setattr(steps, "set_up_blocks", lambda model, **_: None)


@pytest.mark.usefixtures("eager")
def test_every_section_is_rehearsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--tiny", "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    content = json.loads(last)
    assert content == json.loads((tmp_path / "bench-gpu.json").read_text())
    assert [section["section"] for section in content["sections"]] == list(bench.SECTIONS)
    assert all(section["ended"] == "complete" for section in content["sections"])
    assert [row["model"] for row in content["rows"]["training"]] == ["L", "XL", "H"]
    assert all(row["images_s"] > 0 and row["predicted"] > 0 for row in content["rows"]["training"])
    assert all(row["estimate_gib"] > 0 for row in content["rows"]["memory"])
    cases = [(row["images"], row["ar_steps"], row["diffusion_steps"]) for row in content["rows"]["sampling"]]
    assert cases == [*itertools.product((2, 1), (1, 2), (2, 3))]


@pytest.mark.usefixtures("eager")
def test_a_recompilation_while_timed_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    count = itertools.count()
    monkeypatch.setattr(training, "graphs", lambda: next(count))
    assert bench.main(["--tiny", "--section", "training L"]) == 1


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--section", "ceilings"]) == 0
    assert capsys.readouterr().out.startswith("no GPU found: small models on the CPU")


def test_a_used_up_budget_skips_sections_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--tiny", "--budget", "0"]) == 0
    out = capsys.readouterr().out
    for name in bench.SECTIONS:
        assert f"{name} ended early: {name} takes about 1 s, and 0 s are left" in out


def test_an_error_of_a_section_does_not_keep_the_next_from_running() -> None:
    report, ran = Report(show=lambda _: None), []

    def work(name: str, deadline: Deadline) -> None:
        ran.append(name)
        if name == "first":
            raise RuntimeError("out of memory")
        raise OutOfTime("late")

    for name in ("first", "second"):
        bench.section(report, name, Deadline(100), work)
    assert ran == ["first", "second"]
    assert [(row["ended"], row["failed"]) for row in report.sections] == [
        ("RuntimeError: out of memory", True),
        ("late", False),
    ]


def test_synchronizations_are_counted_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waiting.counted() as places:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert places.total() == 2
    assert [place.rsplit("/")[-1].split(":")[0] for place in places] == [Path(__file__).name]
    assert modes == ["warn", "default"]


def test_torch_einops_and_safetensors_are_enough() -> None:
    """No other library that the project uses can be imported in the process, which also compiles the blocks."""
    missing = {"ray", "deepspeed", "pydantic", "hydra", "omegaconf", "typer", "mlflow", "diffusers", "transformers"}
    missing |= {"tokenizers", "numpy", "pyarrow", "pandas", "sklearn", "scipy", "PIL", "pytest", "hypothesis"}
    check = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({missing})); "
        f"sys.argv = ['bench', '--tiny', '--section', 'training L']; "
        f"runpy.run_module('tests.benchmarks.gpu', run_name='__main__')"
    )
    command = [sys.executable, "-W", "ignore", "-c", check]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout.splitlines()[-1])["rows"]["training"]
    assert row["graphs"] > 0  # compiled, and not once more while timed
    assert row["recompilations"] == 0
