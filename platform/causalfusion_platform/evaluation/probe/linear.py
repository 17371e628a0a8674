"""Linear classifiers of features: logistic regression, and ridge regression in closed form for large data.

Shapes: N training rows, M rows to classify, D features, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .features import Features

Labels = NDArray[np.int64]

LOGISTIC_C = 1.0
"""Inverse strength of the logistic regression: C × summed log loss + ‖w‖² / 2, as in scikit-learn. Never tuned."""
RIDGE_PER_ROW = 0.01
"""Strength of the ridge regression for each training row, added to the variance of each feature. Never tuned."""
MOST_LOGISTIC = 100_000
"""Training rows × classes above which ridge regression takes the place of logistic regression."""
_ITERATIONS = 5_000

Linear = Literal["logistic", "ridge"]


def linear_by_size(rows: int, classes: int) -> Linear:
    """Return the linear classifier of data of a size. It depends on the data alone, so that models compare."""
    return "logistic" if rows * classes <= MOST_LOGISTIC else "ridge"


def linear_predictions(train: Features, labels: Labels, others: Features, classes: int) -> Labels:
    """Return the classes (M,) of `others` by the linear classifier for this size of data.

    Args:
        train: (N, D)
        labels: (N,)
        others: (M, D)
        classes: C
    """
    known = linear_by_size(len(train), classes)
    own, given = _standardized(train, others)
    return _logistic(own, labels, given) if known == "logistic" else _ridge(own, labels, given, classes)


def _standardized(train: Features, others: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sets of rows with the training rows' means at 0 and their deviations at 1."""
    own, given = train.astype(np.float64), others.astype(np.float64)
    mean, deviation = own.mean(axis=0), own.std(axis=0)
    # A feature that is constant but for rounding would become noise.
    scale = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1.0)
    return (own - mean) / scale, (given - mean) / scale


def _logistic(train: NDArray[np.float64], labels: Labels, others: NDArray[np.float64]) -> Labels:
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    model = LogisticRegression(C=LOGISTIC_C, max_iter=_ITERATIONS).fit(train, labels)
    found: Labels = model.predict(others)
    return found


def _ridge(train: NDArray[np.float64], labels: Labels, others: NDArray[np.float64], classes: int) -> Labels:
    targets = np.zeros((len(train), classes))
    targets[np.arange(len(train)), labels] = 1
    mean = targets.mean(axis=0)
    products = train.T @ train + RIDGE_PER_ROW * len(train) * np.eye(train.shape[1])
    weights = np.linalg.solve(products, train.T @ (targets - mean))
    found: Labels = (others @ weights + mean).argmax(axis=1)
    return found
