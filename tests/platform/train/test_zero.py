"""DeepSpeed ZeRO 0–3 on CPU with gloo: the same training at every stage, exact averages, exact resume."""

from __future__ import annotations

from typing import Any

import pytest
from tests.platform.ranks import run_groups
from tests.platform.train.zero_process import CASES, LOADED, run

pytestmark = pytest.mark.processes

STAGES = ("0", "1", "2", "3")
TRAINED = 7 * 13 + 13 + 13 * 75 + 75 + 3 * 2 * 9 + 2 + 1
FROZEN = 75


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """World size → what `zero_process` measured. Both sizes run at once, each loads what the other wrote."""
    found = run_groups(run, tmp_path_factory.mktemp("zero"), [1, 2])
    return {world: ranks[0] for world, ranks in found.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_losses_do_not_depend_on_stage_or_world_size(results: dict[int, dict[str, Any]], stage: str) -> None:
    """The reference is ZeRO 0 with one worker; only the order of floating-point sums may differ."""
    reference = results[1]["0"]["losses"]
    assert reference[0] != reference[-1]
    for world in (1, 2):
        assert results[world][stage]["losses"] == pytest.approx(reference, rel=2e-5)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_averages_are_the_recursion_on_the_masters(
    results: dict[int, dict[str, Any]], case: str, world: int
) -> None:
    """θ̄ ← d θ̄ + (1 − d) θ in float64, θ being the fp32 weights as DeepSpeed itself gathers them.

    Weights in bf16 are off by up to 2^−9 of their size: an average of those would be off by about 1e-4.
    """
    measured = results[world]["averages"][case]
    assert measured["errors"].keys() == {"ema-0.9", "ema-0.99", "power-0.10"}
    assert max(measured["errors"].values()) < 1e-6
    assert measured["lag"] > 1e-3  # the average is not just the weights
    assert measured["main"]
    assert measured["frozen_kept"]
    assert measured["undisturbed"]
    assert measured["finite"]
    assert measured["dtypes"] == ["torch.float32"]
    names = [
        "gain",
        "frozen",
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
        "mix.weight",
        "mix.bias",
    ]
    assert all(keys == names for keys in measured["keys"].values())


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_each_rank_holds_its_share(results: dict[int, dict[str, Any]], case: str, world: int) -> None:
    """Three averages of four bytes a number: every number once, and about as many on each rank."""
    measured, stage = results[world]["averages"][case], int(case[0])
    trained, frozen = TRAINED * (world if stage == 0 else 1), FROZEN * (1 if stage == 3 else world)
    assert sum(measured["bytes"]) == 3 * 4 * (trained + frozen)
    for held in measured["bytes"]:
        assert held == pytest.approx(3 * 4 * (trained + frozen) / world, rel=0.01)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", LOADED)
def test_averages_load_with_another_number_of_ranks(
    results: dict[int, dict[str, Any]], case: str, world: int
) -> None:
    assert results[world]["loaded"][case]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_exact(results: dict[int, dict[str, Any]], stage: str, world: int) -> None:
    """Saving, building anew and loading changes no bit of the losses or of the averages that follow."""
    measured = results[world][stage]
    assert measured["resumed"] == measured["uninterrupted"]
    assert measured["resumed_averages_equal"]


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
