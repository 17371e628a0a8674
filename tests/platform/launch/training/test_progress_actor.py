"""What the driver reads from the workers, and what they are told."""

from __future__ import annotations

import itertools
import time

from causalfusion_platform.launch.training.progress_actor import Commands, ProgressActor, WorkerPlace
from causalfusion_platform.train.progress import Progress

FIRST, SECOND = WorkerPlace(0, "a", "host-a", 10), WorkerPlace(1, "b", "host-b", 11)


def wait_for_the_clock() -> None:
    before = time.monotonic()
    while time.monotonic() == before:
        pass


def test_a_new_board_knows_nothing() -> None:
    status = ProgressActor("").read()
    assert (status.progress, status.notes, status.ended, status.workers) == (None, [], None, [])


def test_a_worker_that_calls_is_heard_and_one_that_gets_on_moves() -> None:
    actor = ProgressActor("")
    moved, heard = [], []
    marks = [("start", 0, 0), ("start", 0, 0), ("train", 0, 1), ("train", 0, 2), ("train", 0, 2), ("train", 64, 2)]
    for mark in marks:
        wait_for_the_clock()
        actor.heartbeat(FIRST, mark)
        [worker] = actor.read().workers
        assert worker.mark == mark
        moved.append(worker.moved)
        heard.append(worker.heard)
    assert heard == sorted(set(heard))  # each later than the one before
    assert [this == before for before, this in itertools.pairwise(moved)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    news = [
        index for index, (mark, before) in enumerate(zip(marks, [None, *marks], strict=False)) if mark != before
    ]
    assert [moved[index] for index in news] == [heard[index] for index in news]


def test_workers_are_told_apart_and_come_in_order() -> None:
    actor = ProgressActor("")
    actor.heartbeat(SECOND, ("train", 64, 3))
    wait_for_the_clock()
    actor.heartbeat(FIRST, ("start", 0, 0))
    wait_for_the_clock()
    actor.heartbeat(FIRST, ("start", 0, 0))
    status = actor.read()
    assert [worker.place for worker in status.workers] == [FIRST, SECOND]
    assert [worker.mark for worker in status.workers] == [("start", 0, 0), ("train", 64, 3)]
    first, second = status.workers
    assert second.moved == second.heard < first.moved < first.heard <= status.now


def test_notes_are_handed_out_once() -> None:
    actor = ProgressActor("")
    actor.note("one")
    actor.note("two")
    first = actor.read()
    actor.note("three")
    assert (first.notes, actor.read().notes, actor.read().notes) == (["one", "two"], ["three"], [])


def test_progress_and_the_end_stay() -> None:
    actor, progress = ProgressActor(""), [Progress(images, 100, 0.5, 10.0) for images in (10, 20)]
    for one in progress:
        actor.show(one)
    actor.finish({"how": "done"})
    for _ in range(2):
        status = actor.read()
        assert (status.progress, status.ended) == (progress[1], {"how": "done"})


def test_orders_reach_every_worker_that_calls() -> None:
    actor = ProgressActor("")
    assert actor.heartbeat(FIRST, ("train", 0, 0)) == Commands()
    for commands in (Commands(stop="stopped"), Commands(dump_to="/there"), Commands(leave=True)):
        actor.command(commands)
        for place in (FIRST, SECOND, FIRST):
            assert actor.heartbeat(place, ("train", 0, 0)) == commands
