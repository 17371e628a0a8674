"""DeepSpeed ZeRO 0–3 on CPU with gloo: the same training at every stage, an exact EMA, exact resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, run_environment

STAGES = ("0", "1", "2", "3")


def run_ranks(world: int, folder: Path) -> dict[str, Any]:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.platform.train.zero_process", str(rank), str(world), str(folder)],
            cwd=ROOT,
            env=run_environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks), "\n".join(outputs)[-4000:]
    results: dict[str, Any] = json.loads((folder / f"results-{world}.json").read_text())
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """World size → stage → what `zero_process` measured."""
    folder = tmp_path_factory.mktemp("zero")
    return {world: run_ranks(world, folder) for world in (1, 2)}


@pytest.mark.parametrize("stage", STAGES)
def test_losses_do_not_depend_on_stage_or_world_size(results: dict[int, dict[str, Any]], stage: str) -> None:
    """The reference is ZeRO 0 with one worker; only the order of floating-point sums may differ."""
    reference = results[1]["0"]["losses"]
    assert reference[0] != reference[-1]
    for world in (1, 2):
        assert results[world][stage]["losses"] == pytest.approx(reference, rel=2e-5)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_ema_is_the_recursion_on_the_weights(results: dict[int, dict[str, Any]], stage: str, world: int) -> None:
    """θ̄ ← 0.9 θ̄ + 0.1 θ in float64, over weights gathered after each step, agrees to 1e-6."""
    measured = results[world][stage]
    assert measured["ema_error"] < 1e-6
    assert measured["ema_lag"] > 1e-4  # the average is not just the weights
    assert measured["sharded"] == (stage == "3")


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_exact(results: dict[int, dict[str, Any]], stage: str, world: int) -> None:
    """Saving, building anew and loading changes no bit of the losses or of the EMA that follow."""
    measured = results[world][stage]
    assert measured["resumed"] == measured["uninterrupted"]
    assert measured["resumed_ema_equal"]


def test_a_dit_trains_as_it_does_without_an_engine(results: dict[int, dict[str, Any]]) -> None:
    """At S = 1 the weight of all tokens is λ = 2; a new model predicts zero, so its first MSE is that of noise."""
    engine, plain = results[1]["dit"]["engine"], results[1]["dit"]["plain"]
    assert len(engine) == len(plain) == 4
    for done, expected in zip(engine, plain, strict=True):
        assert done == pytest.approx(expected, rel=2e-5)
        loss, mse, norm, ar_steps = done
        assert loss == pytest.approx(2 * mse, rel=1e-6)
        assert ar_steps == 1
        assert norm > 0
    assert engine[0][1] == pytest.approx(1, abs=0.15)  # 1,024 numbers: σ is 0.044
    assert engine[-1][1] != engine[0][1]
