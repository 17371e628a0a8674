"""Warm-up in `make bench-gpu`: lengths are compiled while half of a section's time is left."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tests.benchmarks.gpu import steps, training
from tests.benchmarks.gpu.__main__ import TINY
from tests.benchmarks.gpu.deadline import Deadline

LENGTHS = {144: [0, 3, 4], 128: [1, 5], 96: [2]}


class Slow(steps.Training):
    """Steps that do nothing but take 30 s each."""

    def __init__(self) -> None:
        self.now, self.made = 0.0, list[int]()

    def steps(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.now += 30
            self.made.append(number)


def test_every_length_is_warmed_where_there_is_time() -> None:
    slow = Slow()
    assert training.warm_up(slow, LENGTHS, Deadline(1000, lambda: slow.now)) == [0, 1, 2, 3, 4, 5]
    assert slow.made == [0, 1, 2]


def test_rare_lengths_are_left_out_where_time_is_short() -> None:
    slow = Slow()
    assert training.warm_up(slow, LENGTHS, Deadline(100, lambda: slow.now)) == [0, 1, 3, 4, 5]
    assert slow.made == [0, 1]


def test_the_most_frequent_length_is_always_warmed() -> None:
    slow = Slow()
    assert training.warm_up(slow, LENGTHS, Deadline(10, lambda: slow.now)) == [0, 3, 4]


def test_steps_are_sorted_by_the_length_that_they_have() -> None:
    made = steps.Training(TINY.config("L"), TINY.size, torch.device("cpu"), compiled=False)
    found = made.by_length()
    assert sorted(found) == [80, 96, 112, 128, 144]  # 16 class tokens, 64 to 127 of the image, in sixteens
    counts = [len(numbers) for numbers in found.values()]
    assert counts == sorted(counts, reverse=True)
    assert all(made.length(numbers[-1]) == length for length, numbers in found.items())
