"""Which updates are made, and when the run has diverged: against counting by hand over all steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causalfusion_platform.config.schema import SupervisionConfig
from causalfusion_platform.train.guard import SKIPPED, WINDOW, Diverged, Guard
from causalfusion_platform.train.loop import OptimizerStep, StepResult
from causalfusion_platform.train.objective import StepCost

NAN, INF = math.nan, math.inf


class Run:
    """Steps with given gradient norms through a guard; one step is ten images."""

    def __init__(self, *, norms: Sequence[float] = (), overflow_is_usual: bool = False, **limits: Any) -> None:
        self.norm = 0.0
        self.images = 0
        self.told: list[tuple[int, str]] = []
        self.guard = Guard(
            SupervisionConfig(**limits),
            lambda: self.norm,
            lambda images, reason: self.told.append((images, reason)),
            norms,
            overflow_is_usual=overflow_is_usual,
        )

    def step(self, norm: float, asks: bool = True) -> bool:
        """Make one step; return whether its update was made."""
        self.norm = norm
        made = self.guard.allow() if asks else False
        zero = torch.zeros(())
        step = OptimizerStep(zero, {}, norm, 0.1, {}, lambda: StepCost(0.0, 0), skipped=not made)
        self.guard.observe(StepResult(step, images=10, seconds=1.0, data_seconds=0.0))
        self.images += 10
        loop: Any = SimpleNamespace(state=SimpleNamespace(images_seen=self.images))
        self.guard.run(loop)
        return made


# Powers of two: the median of two of them, and a multiple of it, have no rounding errors. Many are alike, as the
# norms of a run are.
NORMS = st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 64.0, 1024.0, NAN, INF])


@given(
    st.lists(st.tuples(NORMS, st.integers(1, 60)), max_size=12),
    st.sampled_from([0.0, 2.0, 4.0, 20.0]),
    st.integers(0, 6),
)
def test_every_verdict(runs: list[tuple[float, int]], factor: float, allowed: int) -> None:
    """Each norm comes so many times in a row. The reference looks at the whole history for each step."""
    norms = [norm for norm, times in runs for _ in range(times)]
    run = Run(spike_factor=factor, max_skipped_steps=allowed)
    history: list[float | None] = []  # None: skipped
    for index, norm in enumerate(norms):
        usual = [value for value in history[-100:] if value is not None]
        bad = not math.isfinite(norm)
        if factor and len(usual) >= 50 and (middle := statistics.median(usual)) > 0:
            bad = bad or norm > factor * middle
        history.append(None if bad else norm)
        try:
            assert run.step(norm) is not bad
        except Diverged as diverged:
            assert history[-100:].count(None) == allowed + 1
            assert f"{allowed + 1} of the last {len(history[-100:])} updates" in str(diverged)
            break
        assert history[-100:].count(None) <= allowed
        assert len(run.told) == history.count(None)
        assert bool(run.told and run.told[-1][0] == 10 * index) is bad


def test_reasons_for_people() -> None:
    run = Run(norms=[0.5] * 50)
    assert [run.step(norm) for norm in (NAN, 12.0, -INF)] == [False, False, False]
    assert run.told == [
        (0, "the gradient norm is nan"),
        (10, "the gradient norm is 12, 24 times the median 0.5"),
        (20, "the gradient norm is -inf"),
    ]


def test_a_young_run_has_no_spikes() -> None:
    run = Run(spike_factor=2.0)
    assert all(run.step(norm) for norm in [1.0] * 49 + [1000.0])
    assert not run.step(1000.0)  # now 50 norms are known


def test_a_spike_does_not_become_usual() -> None:
    """Spikes are not among the norms that others are compared with."""
    run = Run(norms=[1.0] * 50, spike_factor=2.0, max_skipped_steps=90)
    assert not any(run.step(3.0) for _ in range(50))


def test_skipped_steps_are_no_norms() -> None:
    """They fill no window, and pull no median down."""
    limits: dict[str, Any] = {"spike_factor": 4.0, "max_skipped_steps": 60}
    assert Run(norms=[1.0] * 49 + [SKIPPED] * 51, **limits).step(1000.0)
    assert not Run(norms=[1.0] * 50 + [SKIPPED] * 50, **limits).step(1000.0)
    norms = [1.0] * 25 + [SKIPPED] * 50 + [2.0] * 25  # the median is 1.5; with the skipped ones, 0
    assert Run(norms=norms, **limits).step(6.0)
    assert not Run(norms=norms, **limits).step(6.1)


def test_norms_of_zero_are_nothing_to_compare_with() -> None:
    run = Run(norms=[0.0] * WINDOW)
    assert run.step(1.0)
    assert run.step(0.0)


def test_old_skips_leave_the_window() -> None:
    run = Run(max_skipped_steps=1)
    assert not run.step(NAN)
    assert all(run.step(1.0) for _ in range(99))
    assert not run.step(NAN)  # the first is out of the window: one again
    with pytest.raises(Diverged):
        run.step(NAN)


def test_a_resumed_guard_goes_on_counting() -> None:
    """What is in a checkpoint is as good as having seen the steps, skipped ones too."""
    norms = ([1.0] * 70 + [NAN, 2.0, NAN] + [1.0] * 15) * 2
    whole = Run(max_skipped_steps=4)
    for index, norm in enumerate(norms):
        before = list(whole.guard.norms)
        resumed = Run(norms=before, max_skipped_steps=4)
        assert resumed.step(norm) is whole.step(norm), index
        assert resumed.guard.norms == whole.guard.norms
    assert list(whole.guard.norms).count(SKIPPED) == 2  # the window holds 100 of the 176 steps


def test_steps_that_deepspeed_skips_by_itself_count() -> None:
    """It does not ask where the norm is not finite."""
    run = Run(max_skipped_steps=2)
    assert run.step(1.0)
    for images in (10, 20):
        run.step(INF, asks=False)
        assert run.told[-1] == (images, "the gradient is NaN or infinite")
    assert run.step(1.0)
    with pytest.raises(Diverged, match="3 of the last 5 updates"):
        run.step(INF, asks=False)
    assert list(run.guard.norms) == [1.0, SKIPPED, SKIPPED, 1.0, SKIPPED]


def test_a_skip_is_counted_once() -> None:
    run = Run(max_skipped_steps=9)
    run.step(NAN)  # it was asked, and said no
    assert list(run.guard.norms) == [SKIPPED]
    assert len(run.told) == 1


def test_fp16_overflows_do_not_count_but_its_spikes_do() -> None:
    run = Run(max_skipped_steps=0, overflow_is_usual=True, norms=[1.0] * 60)
    for _ in range(20):
        run.step(INF, asks=False)
    assert (list(run.guard.norms), run.told) == ([1.0] * 60, [])
    with pytest.raises(Diverged):
        run.step(21.0)


def test_it_runs_after_each_step() -> None:
    guard = Run().guard
    assert (guard.every_images, guard.at_end) == (1, False)
