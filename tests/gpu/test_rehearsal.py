"""`make test-gpu`, rehearsed with few steps on the CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tests.gpu import __main__ as gpu
from tests.gpu import model, program
from tests.gpu.outcome import at_most

from causalfusion import CausalFusion, CausalFusionConfig, save_weights


def test_the_model_alone_passes_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--tiny", "--only", "model"]) == 0
    outcomes = json.loads(capsys.readouterr().out.splitlines()[-1])
    values = [outcome["value"] for outcome in outcomes]
    assert 0 < values[0] < model.LOSS
    assert 0 < values[1] < model.SAME_LOSS  # bf16 beside fp32
    assert values[2:4] == [0, 0]  # a resume and a copy on the CPU are exact
    assert 0 < values[4] < model.SAME_SAMPLES[torch.bfloat16]


def test_a_resume_that_loses_the_optimizer_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda *_: None)
    _, _, resumed, *_ = model.check(torch.device("cpu"), model.Amount(4, 4, compared=1), tmp_path)
    assert not resumed.passed


def test_samples_of_other_weights_differ() -> None:
    run = model.Run(torch.device("cpu"), model.Amount(2, 4, compared=1))
    run.train(2)
    before = model.samples_of(run.model, torch.arange(3), torch.device("cpu"), torch.float32)
    run.train(4)
    after = model.samples_of(run.model, torch.arange(3), torch.device("cpu"), torch.float32)
    assert model.difference(after, before) > model.SAME_SAMPLES[torch.float32]


def test_not_a_number_fails() -> None:
    assert not at_most("loss", float("nan"), 1).passed


def test_missing_libraries_leave_the_commands_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("deepspeed", "ray") else object()
    )
    outcomes = program.check(torch.device("cpu"), 1, tmp_path)
    assert [str(outcome) for outcome in outcomes] == [
        "left out  train quickstart --local: not installed: deepspeed",
        "left out  train quickstart: not installed: deepspeed, ray",
    ]


def test_the_commands_continue_a_run_and_a_failed_one_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[tuple[str, int, bool]] = []

    def train(name: str, options: list[str], images: int, *_: object) -> int:
        trained.append((name, images, "--allow-config-change" in options))
        return int(name == "ray" and images > 100)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(program, "train", train)
    monkeypatch.setattr(program, "last_weights", lambda run: run)
    monkeypatch.setattr(program, "same_samples", lambda *_: [at_most("samples", 0, 0)])
    outcomes = program.check(torch.device("cpu"), 1, tmp_path, images=100)
    continued = [("local", 100, False), ("local", 200, True), ("ray", 100, False), ("ray", 200, True)]
    assert trained == continued
    assert [outcome.passed for outcome in outcomes] == [True, True, True, True, False]


def test_the_last_weights_of_a_run_are_compared(tmp_path: Path) -> None:
    older, newer = (tmp_path / "checkpoints" / f"images-{images:012d}" / "weights" for images in (100, 200))
    older.mkdir(parents=True)  # without weights, so that it could not be read
    assert isinstance(model.CONFIG, CausalFusionConfig)
    made = CausalFusion(model.CONFIG)
    save_weights(newer, made.config, made.state_dict())
    assert torch.equal(model.flat(program.last_weights(tmp_path)), model.flat(made))
