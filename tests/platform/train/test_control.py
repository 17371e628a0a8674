"""Stopping together: two real ranks that hear of different reasons at different steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
from tests.platform.ranks import run_groups
from tests.platform.train.control_process import CASES, STEPS, run
from tests.platform.train.trained import alone

from causalfusion_platform.train.control import Consensus, LocalControl, StopHook, Stopped, StopReason

URGENCY = ["stopped", "preempted", "storage", "superseded"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """For each rank, what became of each case."""
    return run_groups(run, tmp_path_factory.mktemp("control"), [2])[2]


@pytest.mark.processes
@pytest.mark.parametrize("index", range(len(CASES)))
def test_all_ranks_stop_after_the_same_step_for_the_most_urgent_reason(
    ranks: list[list[dict[str, Any]]], index: int
) -> None:
    """The first step at which any rank has heard of something; of several reasons the most urgent one."""
    heard = [pair for one in CASES[index] for pair in one.items()]
    step = min((at for at, _ in heard), default=None)
    reason = max((why for at, why in heard if at == step), key=URGENCY.index, default=None)
    saved = [] if reason in (None, "storage", "superseded") else [[10 * (step or 0), reason]]
    marks = [["train", 10 * done] for done in range(1, (step or STEPS) + 1)]
    expected = {"step": step, "reason": reason, "saved": saved, "marks": marks}
    assert [rank[index] for rank in ranks] == [expected, expected]


def test_the_cases_hold_every_reason() -> None:
    assert (
        {why for case in CASES for one in case for why in one.values()} == set(get_args(StopReason)) == set(URGENCY)
    )


# A process on its own


@pytest.mark.parametrize("reason", [None, *URGENCY])
def test_alone_one_agrees_with_oneself(reason: StopReason | None) -> None:
    alone()
    assert Consensus().agree(reason) == reason


def test_storage_that_fails_counts_more_than_a_request() -> None:
    alone()
    saved: list[str] = []
    control = LocalControl(stop="stopped")
    hook = StopHook(control, lambda _, reason: saved.append(reason), lambda: True)
    loop: Any = SimpleNamespace(state=SimpleNamespace(images_seen=64))
    with pytest.raises(Stopped) as caught:
        hook.run(loop)
    assert (caught.value.reason, saved) == ("storage", [])
    assert (hook.every_images, hook.at_end) == (1, False)


def test_a_stop_whose_checkpoint_fails_is_no_stop() -> None:
    alone()

    def fail(_: object, reason: str) -> None:
        raise OSError(reason)

    loop: Any = SimpleNamespace(state=SimpleNamespace(images_seen=64))
    with pytest.raises(OSError, match="preempted"):
        StopHook(LocalControl(stop="preempted"), fail, lambda: False).run(loop)


def test_a_local_control_keeps_what_it_is_told(log_lines: list[str]) -> None:
    control = LocalControl()
    assert control.stop_wanted() is None
    control.mark("train", 64)
    control.note("a line")
    control.stop = "stopped"
    assert (control.images, log_lines, control.stop_wanted()) == (64, ["a line"], "stopped")


def test_the_reason_is_the_message_unless_there_is_another() -> None:
    assert (str(Stopped("stopped")), Stopped("stopped").detail) == ("stopped", "")
    assert str(Stopped("storage", "full")) == "full"
