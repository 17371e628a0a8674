"""The same training for any number of workers, split into micro-batches and ZeRO stage, and with every option.

The reference is torch alone: one process, whole batches, fp32. Every draw is keyed by the image's number, so that
all layouts compute the same sums, in other orders: over rows, micro-batches and workers. fp32 rounds a sum to 6e-8
of its size, differently in each order, and training carries such differences on; over these 8 steps they were
measured to stay below 1e-6. The tolerance is 20 times that. A wrong weight of a micro-batch or a draw that depends
on the layout shows far above it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.platform.ranks import run_groups
from tests.platform.train.elastic_process import run

pytestmark = pytest.mark.processes

TOLERANCE = 2e-5
BAD_STEP = 3
Results = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """World size → what `elastic_process` measured."""
    found = run_groups(run, tmp_path_factory.mktemp("elastic"), [1, 2, 4])
    return {world: ranks[0] for world, ranks in found.items()}


def assert_close(curve: list[list[float]], reference: list[list[float]], tolerance: float = TOLERANCE) -> None:
    """Compare loss, MSE and gradient norm of every step."""
    assert len(curve) == len(reference) == 8
    for step, expected in zip(curve, reference, strict=True):
        assert step == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_curve_does_not_depend_on_the_layout(results: Results, world: int) -> None:
    """1, 2 and 4 workers; whole batches and micro-batches down to one row; ZeRO 0–3."""
    reference = results[1]["plain"]
    assert len({loss for loss, _, _ in reference}) == 8
    assert len(results[world]["splits"]) >= 4
    for curve in results[world]["splits"].values():
        assert_close(curve, reference)


def test_recomputing_blocks_changes_no_number(results: Results) -> None:
    """The same kernels on the same values: also beside ZeRO 3, which gathers the parameters twice."""
    one = results[1]
    assert one["recomputed"]["0"] == one["splits"]["stage 0, 1 workers, None rows"]
    assert_close(one["recomputed"]["3"], one["plain"])
    assert_close(one["recomputed"]["dit"], one["dit"])


def test_recomputed_blocks_keep_less(results: Results) -> None:
    """Bytes that the backward pass keeps: of a block its input alone."""
    kept = results[1]["bytes kept"]
    assert kept["recomputed"] < kept["all"] / 2


def test_compiled_blocks_give_the_same_curve(results: Results) -> None:
    assert_close(results[1]["compiled dit"], results[1]["dit"])


@pytest.mark.parametrize("case", ["optimizer 2", "optimizer 3", "parameters 3"])
def test_offloaded_state_gives_the_same_curve_and_resumes(results: Results, case: str) -> None:
    measured = results[2]["offloaded"][case]
    assert_close(measured["curve"], results[1]["plain"])
    assert measured["again"] == measured["curve"]


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_bf16_weights_train_and_resume(results: Results, stage: str) -> None:
    """bf16 keeps 8 bits of a number: losses agree to a few of 2^-8; the fp32 masters resume bit for bit."""
    measured = results[1]["16 bits"][stage]
    losses = [[loss] for loss, _, _ in measured["curve"]]
    assert_close(losses, [[loss] for loss, _, _ in results[1]["plain"]], tolerance=2**-6)
    assert measured["curve"] != results[1]["plain"]
    assert measured["again"] == measured["curve"]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_gradients_of_bf16_products_are_added_up_in_fp32(results: Results, stage: str, world: int) -> None:
    """Two micro-batches a rank, against torch alone. Added up in bf16 the error is about 2^-9."""
    found = results[world]["bf16"][stage]
    assert found["error"] < 1e-6
    assert found["norms"] == pytest.approx([found["norms"][2]] * 3, rel=1e-6)
    assert found["loss"] == pytest.approx(results[world]["bf16"]["0"]["loss"], rel=1e-6)
    assert found["share of zeros"] < 0.1


@pytest.mark.parametrize("stage", ["1", "2"])
def test_reducing_during_the_backward_pass_changes_nothing(results: Results, stage: str) -> None:
    """As on GPUs: bucket by bucket, also with two micro-batches. A CPU has no streams, but the same calls."""
    found, expected = (results[2]["bf16"][name] for name in (f"{stage}, overlapped", stage))
    assert found["error"] < 1e-6
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-6)


def test_gradients_are_reduced_in_bf16_on_request(results: Results) -> None:
    """The list of modules goes to DeepSpeed. This also shows that the test above can fail."""
    assert 1e-4 < results[2]["bf16"]["1, as before"]["error"] < 2**-6


def test_a_checkpoint_of_gradients_in_bf16_goes_on(results: Results) -> None:
    continued = results[2]["continued"]
    assert continued["weights_equal"]
    assert continued["losses"][0] == continued["losses"][1]


CASES = (
    "0",
    "0, no clipping, in parts",
    "1",
    "2, no clipping, in parts",
    "3, partition groups",
)


@pytest.mark.parametrize("case", [*CASES, "1, bf16 weights"])
def test_a_damaged_step_leaves_the_weights_alone(results: Results, case: str) -> None:
    """A NaN on one rank: all ranks see a norm that is not finite, and go on as if the step had not been."""
    measured = results[2]["damaged"][case]
    assert measured["bad_norms"] == [[BAD_STEP], [BAD_STEP]]
    assert measured["others_equal"]
    assert measured["weights_equal"]
    assert measured["moments_equal"]
    assert set(measured["optimizer_steps"]) == {7}


@pytest.mark.parametrize("case", CASES)
def test_a_refused_first_step_leaves_the_weights_alone(results: Results, case: str) -> None:
    """The verdict is asked once for each step, with the norm before clipping, the same on both ranks."""
    measured = results[2]["refused"][case]
    assert measured["asked"] == measured["norms"]
    assert measured["norms_agree"]
    assert all(math.isfinite(norm) and norm > 0 for norm in measured["norms"])
    assert measured["others_equal"]
    assert measured["weights_equal"]
    assert measured["moments_equal"]
    assert set(measured["optimizer_steps"]) == {7}
    if case == "3, partition groups":
        assert len(measured["optimizer_steps"]) > 1
    assert measured["norms"][0] == pytest.approx(results[1]["plain"][0][2], rel=TOLERANCE)
