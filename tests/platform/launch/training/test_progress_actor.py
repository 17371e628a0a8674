"""What the driver reads from the workers, and what they are told."""

from __future__ import annotations

import itertools
import time

from causalfusion_platform.launch.training.progress_actor import Board, Orders, WorkerPlace
from causalfusion_platform.train.progress import Progress

FIRST, SECOND = WorkerPlace(0, "a", "host-a", 10), WorkerPlace(1, "b", "host-b", 11)


def wait_for_the_clock() -> None:
    before = time.monotonic()
    while time.monotonic() == before:
        pass


def test_a_new_board_knows_nothing() -> None:
    view = Board().read()
    assert (view.progress, view.notes, view.ended, view.pulses) == (None, [], None, [])


def test_a_worker_that_calls_is_heard_and_one_that_gets_on_moves() -> None:
    board = Board()
    moved, heard = [], []
    marks = [("start", 0, 0), ("start", 0, 0), ("train", 0, 1), ("train", 0, 2), ("train", 0, 2), ("train", 64, 2)]
    for mark in marks:
        wait_for_the_clock()
        board.beat(FIRST, mark)
        [pulse] = board.read().pulses
        assert pulse.mark == mark
        moved.append(pulse.moved)
        heard.append(pulse.heard)
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
    board = Board()
    board.beat(SECOND, ("train", 64, 3))
    wait_for_the_clock()
    board.beat(FIRST, ("start", 0, 0))
    wait_for_the_clock()
    board.beat(FIRST, ("start", 0, 0))
    view = board.read()
    assert [pulse.place for pulse in view.pulses] == [FIRST, SECOND]
    assert [pulse.mark for pulse in view.pulses] == [("start", 0, 0), ("train", 64, 3)]
    first, second = view.pulses
    assert second.moved == second.heard < first.moved < first.heard <= view.now


def test_notes_are_handed_out_once() -> None:
    board = Board()
    board.note("one")
    board.note("two")
    first = board.read()
    board.note("three")
    assert (first.notes, board.read().notes, board.read().notes) == (["one", "two"], ["three"], [])


def test_progress_and_the_end_stay() -> None:
    board, progress = Board(), [Progress(images, 100, 0.5, 10.0) for images in (10, 20)]
    for one in progress:
        board.show(one)
    board.finish({"how": "done"})
    for _ in range(2):
        view = board.read()
        assert (view.progress, view.ended) == (progress[1], {"how": "done"})


def test_orders_reach_every_worker_that_calls() -> None:
    board = Board()
    assert board.beat(FIRST, ("train", 0, 0)) == Orders()
    for orders in (Orders(stop="stopped"), Orders(dump_to="/there"), Orders(leave=True)):
        board.order(orders)
        for place in (FIRST, SECOND, FIRST):
            assert board.beat(place, ("train", 0, 0)) == orders
