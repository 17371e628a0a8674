"""One rank of `test_control`: steps that do nothing, and reasons to stop that it hears of at some of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from causalfusion_platform.train.control import LocalControl, StopHook, Stopped

STEPS = 6
CASES: list[tuple[dict[int, str], dict[int, str]]] = [
    ({}, {}),
    ({3: "stopped"}, {}),
    ({}, {2: "preempted"}),
    ({5: "stopped"}, {2: "preempted"}),
    ({4: "stopped"}, {4: "preempted"}),
    ({4: "preempted"}, {4: "stopped"}),
    ({4: "storage"}, {4: "preempted"}),
    ({4: "stopped"}, {4: "storage"}),
    ({1: "storage"}, {1: "storage"}),
    ({2: "superseded"}, {}),
    ({3: "superseded"}, {3: "storage"}),
    ({3: "superseded"}, {1: "stopped"}),
]
"""For each of two ranks: step → what it hears of.

`storage`: its saves have failed. `superseded`: another launch has taken the run over.
"""


def run_case(hears: dict[int, str]) -> dict[str, Any]:
    """Train until stopped; return when and why, and what was saved and marked."""
    control, saved, marks = LocalControl(), [], []
    failing = superseded = False
    control.mark = lambda _, images: marks.append([_, images])  # type: ignore[method-assign]
    hook = StopHook(
        control,
        lambda loop, reason: saved.append([loop.state.images_seen, reason]),
        lambda: failing,
        lambda: superseded,
    )
    for step in range(1, STEPS + 1):
        reason: Any = hears.get(step)
        if reason == "storage":
            failing = True
        elif reason == "superseded":
            superseded = True
        elif reason:
            control.stop = reason
        loop: Any = SimpleNamespace(state=SimpleNamespace(images_seen=10 * step))
        try:
            hook.run(loop)
        except Stopped as stopped:
            return {"step": step, "reason": stopped.reason, "saved": saved, "marks": marks}
    return {"step": None, "reason": None, "saved": saved, "marks": marks}


def run(rank: int, world: int, folder: Path) -> list[dict[str, Any]]:
    """Run all cases as one of two ranks."""
    return [run_case(case[rank]) for case in CASES]
