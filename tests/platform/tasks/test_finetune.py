"""Fine-tunes: the same losses, rates and weights for any ranks, micro-batches and ZeRO stages, and as by torch."""

from __future__ import annotations

from typing import Any

import pytest
from tests.platform.ranks import run_groups
from tests.platform.tasks.finetune_process import KINDS, MICRO_BATCHES, STEPS, run

CASES = [
    (world, kind, f"{stage}, {micro} at once")
    for world in (1, 2)
    for kind in KINDS
    for stage, micro in zip((0, 1, 2, 3), 2 * MICRO_BATCHES[world], strict=True)
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """World size → what `finetune_process` measured."""
    found = run_groups(run, tmp_path_factory.mktemp("finetune"), [1, 2])
    return {world: ranks[0] for world, ranks in found.items()}


@pytest.mark.processes
@pytest.mark.parametrize(("world", "kind", "case"), CASES)
def test_training_does_not_depend_on_ranks_micro_batches_or_stage(
    results: dict[int, dict[str, Any]], world: int, kind: str, case: str
) -> None:
    """Drop path, dropout and mixing are drawn. The reference runs pairs or rows alone, without DeepSpeed."""
    found, expected = results[world][f"{kind}, {case}"], results[1][kind]
    for step, reference in zip(found["steps"], expected["steps"], strict=True):
        assert step == pytest.approx(reference, rel=5e-5, abs=1e-7)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=2e-5)


@pytest.mark.processes
def test_the_reference_trains_by_layers(results: dict[int, dict[str, Any]]) -> None:
    """Layer decay gives the two blocks, what lies below and above rates of their own. A frozen model has one."""
    for kind, rates in (("classify", 4), ("caption", 2), ("frozen", 1)):
        steps = results[1][kind]["steps"]
        assert len({tuple(step[:3]) for step in steps}) == STEPS
        assert all(norm > 0 for _, _, norm, *_ in steps)
        assert len(set(steps[1][3:])) == rates
        assert set(steps[0][3:]) == {0}
    highest = max(results[1]["classify"]["steps"][1][3:])
    scales = sorted({rate / highest for rate in results[1]["classify"]["steps"][1][3:]})
    assert scales == pytest.approx([0.85**3, 0.85**2, 0.85, 1])


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
def test_held_out_rows_are_in_their_order_on_every_rank(results: dict[int, dict[str, Any]], world: int) -> None:
    rows = {"a.parquet": 5, "b.parquet": 2}
    assert results[world]["order"] == [[file, row] for file, count in rows.items() for row in range(count)]
