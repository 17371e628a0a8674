"""The Inception Score, against its definition and cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from causalfusion_platform.evaluation.metrics.inception_score import inception_score

Array = npt.NDArray[np.float64]


def probabilities(rows: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).softmax(dim=1)


def by_definition(p: Array, split_size: int) -> float:
    """exp of the mean KL divergence from each answer to the mean answer, averaged over splits."""
    scores = []
    for start in range(0, len(p), split_size):
        part = p[start : start + split_size]
        mean = part.mean(axis=0)
        total = sum(q * math.log(q / m) for row in part for q, m in zip(row, mean, strict=True) if q > 0)
        scores.append(math.exp(total / len(part)))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(("rows", "split_size"), [(12, 5), (12, 4), (12, 12), (12, 100), (1, 3)])
def test_the_definition(rows: int, split_size: int) -> None:
    p = probabilities(rows, 7)
    assert inception_score(p, split_size=split_size) == pytest.approx(
        by_definition(p.numpy(), split_size), rel=1e-12
    )


def test_splits_are_of_5000_in_their_order() -> None:
    """5001 samples are a split of 5000 and one of a single sample, whose score is 1."""
    p = probabilities(5001, 3)
    assert inception_score(p) == pytest.approx((by_definition(p[:5000].numpy(), 5000) + 1) / 2, rel=1e-12)


def test_the_same_answer_for_all_is_1() -> None:
    assert inception_score(torch.full((50, 8), 1 / 8)) == pytest.approx(1, abs=1e-12)
    assert inception_score(probabilities(1, 8).repeat(50, 1)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 10, 1008])
def test_sure_answers_of_all_classes_are_their_number(classes: int) -> None:
    p = torch.eye(classes).repeat(3, 1)
    assert inception_score(p) == pytest.approx(classes, rel=1e-12)


def test_unequal_shares_by_hand() -> None:
    """Sure answers, 3 of one class and 1 of another: exp of the entropy of (¾, ¼)."""
    p = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert inception_score(p) == pytest.approx(4 / 3**0.75, rel=1e-12)


def test_float32_probabilities_are_worked_on_in_double() -> None:
    p = probabilities(3000, 1008).float()
    assert inception_score(p) == inception_score(p.double())


@pytest.mark.parametrize("wrong", [torch.zeros(0, 3), torch.ones(3)])
def test_no_probabilities(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"probabilities \(N, C\) are wanted"):
        inception_score(wrong)


@pytest.mark.parametrize("wrong", [torch.randn(4, 3), torch.full((4, 3), 0.5), torch.tensor([[1.5, -0.5]])])
def test_logits_are_not_taken_for_probabilities(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        inception_score(wrong)
