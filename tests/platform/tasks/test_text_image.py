"""Training on text and images: the same loss and gradient for any ranks, micro-batches and ZeRO stages."""

from __future__ import annotations

from typing import Any

import pytest
from tests.platform.ranks import run_groups
from tests.platform.tasks.text_process import BATCH, LAST, MICRO_BATCHES, SHARE, STEPS, batch, run

from causalfusion import text_last

CASES = [
    (world, f"{stage}, {micro} at once") for world in (1, 2) for stage in range(4) for micro in MICRO_BATCHES[world]
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """World size → what `text_process` measured."""
    found = run_groups(run, tmp_path_factory.mktemp("text"), [1, 2])
    return {world: ranks[0] for world, ranks in found.items()}


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Only the order of floating-point sums may differ. The weights differ as the gradients do."""
    for step, reference in zip(found["steps"], expected["steps"], strict=True):
        assert step == pytest.approx(reference, rel=5e-5)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=2e-5)


def test_every_step_has_a_rank_without_a_text_behind_its_image() -> None:
    positions = range(STEPS * BATCH)
    assert tuple(text_last(positions, SHARE).nonzero().flatten().tolist()) == LAST
    without = [
        [rank for rank in (0, 1) if not set(batch(step, rank, 2).samples) & set(LAST)] for step in range(STEPS)
    ]
    assert without == [[0], [0], [1], [1]]


@pytest.mark.processes
@pytest.mark.parametrize(("world", "case"), CASES)
def test_training_does_not_depend_on_ranks_micro_batches_or_stage(
    results: dict[int, dict[str, Any]], world: int, case: str
) -> None:
    """The reference runs the model on each row alone, in one process without DeepSpeed."""
    check_same(results[world][case], results[1]["plain"])


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
def test_nor_does_that_of_a_transfusion_or_on_described_images_alone(
    results: dict[int, dict[str, Any]], world: int
) -> None:
    check_same(results[world]["transfusion"], results[1]["plain transfusion"])
    check_same(results[world]["all described"], results[1]["plain, all described"])


@pytest.mark.processes
def test_ranks_describe_images_as_one_process_does(results: dict[int, dict[str, Any]]) -> None:
    assert results[2]["captions"] == results[1]["captions"]
    assert len(set(results[1]["captions"]["5"])) == 5
    assert results[1]["captions"]["1"] == results[1]["captions"]["5"][:1]


@pytest.mark.processes
def test_the_loss_of_a_step_is_its_parts(results: dict[int, dict[str, Any]]) -> None:
    """The reference trains: no two steps are alike, and the text's share of the loss is its weight."""
    steps = results[1]["plain transfusion"]["steps"]
    for loss, mse, text, cut, norm in steps:
        assert loss == pytest.approx(mse + 0.25 * text, rel=1e-6)
        assert cut == pytest.approx(1 / 3)
        assert norm > 0
    assert len({tuple(step) for step in steps}) == STEPS
