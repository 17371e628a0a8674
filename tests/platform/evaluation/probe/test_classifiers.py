"""Classifiers of probes, beside scikit-learn's own and loops over all rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from causalfusion_platform.evaluation.probe import linear
from causalfusion_platform.evaluation.probe.linear import linear_by_size, linear_predictions
from causalfusion_platform.evaluation.probe.nearest import nearest_predictions, neighbours_by_size

CLASSES = 4
Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]


def clusters(rows: int, others: int, *, width: int = 12, distance: float = 1.0, seed: int = 0) -> Data:
    """Return training and other rows of noise around a centre for each class. Features differ in scale."""
    generator = np.random.default_rng(seed)
    centres = distance * generator.normal(size=(CLASSES, width))
    scales = 10.0 ** generator.uniform(-3, 3, width)
    labels = generator.integers(CLASSES, size=rows + others)
    features = ((centres[labels] + generator.normal(size=(rows + others, width))) * scales).astype(np.float32)
    return features[:rows], labels[:rows], features[rows:], labels[rows:]


def test_logistic_regression_is_that_of_a_pipeline_of_scikit_learn() -> None:
    train, labels, others, truth = clusters(300, 200)
    known = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000))
    expected = known.fit(train.astype(np.float64), labels).predict(others.astype(np.float64))
    found = linear_predictions(train, labels, others, CLASSES)
    np.testing.assert_array_equal(found, expected)
    assert 0.5 < (found == truth).mean() < 1


def test_ridge_regression_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scikit-learn's, with the penalty of all rows together, and one-hot targets. Class 3 has no training row."""
    train, labels, others, truth = clusters(300, 200)
    train, labels = train[labels != 3], labels[labels != 3]
    monkeypatch.setattr(linear, "MOST_LOGISTIC", 10)
    scaler = StandardScaler().fit(train.astype(np.float64))
    targets = np.eye(CLASSES)[labels]
    known = Ridge(alpha=0.01 * len(train)).fit(scaler.transform(train.astype(np.float64)), targets)
    expected = known.predict(scaler.transform(others.astype(np.float64))).argmax(axis=1)
    found = linear_predictions(train, labels, others, CLASSES)
    np.testing.assert_array_equal(found, expected)
    assert (found == truth).mean() > 0.4
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(train, labels)
    assert not np.array_equal(found, logistic.predict(others))


@pytest.mark.parametrize("most", [10, 100_000])
def test_separable_rows_are_separated(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A constant feature changes nothing."""
    monkeypatch.setattr(linear, "MOST_LOGISTIC", most)
    train, labels, others, truth = clusters(200, 200, distance=20)
    found = linear_predictions(train, labels, others, CLASSES)
    np.testing.assert_array_equal(found, truth)
    constant = [np.concatenate([rows, np.full((200, 1), 1.1, np.float32)], axis=1) for rows in (train, others)]
    np.testing.assert_array_equal(linear_predictions(constant[0], labels, constant[1], CLASSES), truth)


def test_noise_is_classified_at_chance() -> None:
    noise, labels, others, truth = clusters(400, 400, distance=0)
    for predict in (linear_predictions, nearest_predictions):
        correct = int((predict(noise, labels, others, CLASSES) == truth).sum())
        low, high = binomtest(correct, 400).proportion_ci(0.999)
        assert low < 1 / CLASSES < high


@pytest.mark.parametrize(("rows", "k"), [(3, 3), (120, 5), (1200, 20)])
def test_neighbours_are_those_of_a_loop(rows: int, k: int) -> None:
    train, labels, others, _ = clusters(rows, 40)
    assert min(neighbours_by_size(rows), rows) == k
    expected = []
    for row in others.astype(np.float64):
        similar = [float(row @ own) / math.hypot(*row) / math.hypot(*own) for own in train.astype(np.float64)]
        votes = dict.fromkeys(range(CLASSES), 0.0)
        for place in sorted(range(rows), key=lambda at: -similar[at])[:k]:
            votes[int(labels[place])] += math.exp(similar[place] / 0.07)
        expected.append(max(votes, key=lambda label: votes[label]))
    assert nearest_predictions(train, labels, others, CLASSES).tolist() == expected


def test_the_kind_depends_on_the_data_alone() -> None:
    assert linear_by_size(1_497, 10) == linear_by_size(10_000, 10) == "logistic"
    assert linear_by_size(20_000, 1_000) == linear_by_size(10_001, 10) == "ridge"
