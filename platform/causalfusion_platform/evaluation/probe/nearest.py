"""Classifier by nearest neighbours, as in DINO (Caron et al. 2021): cosine similarity and weighted votes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .features import Features
from .linear import Labels

TEMPERATURE = 0.07
"""A neighbour of similarity s has the weight exp(s / 0.07), as in DINO."""
_CHUNK = 1024
_FEW_ROWS = 1_000


def neighbours_by_size(rows: int) -> int:
    """Return k for a number of training rows: 20 as in DINO, or 5 for less than 1,000 rows."""
    return 20 if rows >= _FEW_ROWS else 5


def nearest_predictions(train: Features, labels: Labels, others: Features, classes: int) -> Labels:
    """Return the classes of `others` (M, D) by the votes of their nearest rows of `train` (N, D).

    Features are divided by their lengths, and otherwise as they are.
    """
    known, classes_of = _unit(train), torch.from_numpy(labels)
    count = min(neighbours_by_size(len(train)), len(train))
    found = []
    given = _unit(others)
    for start in range(0, len(given), _CHUNK):
        rows = given[start : start + _CHUNK]
        similarity, places = (rows @ known.T).topk(count, dim=1)
        votes = torch.zeros(len(rows), classes)
        votes.scatter_add_(1, classes_of[places], (similarity / TEMPERATURE).exp())
        found.append(votes.argmax(dim=1))
    predicted: Labels = torch.cat(found).numpy()
    return predicted


def _unit(features: Features) -> Tensor:
    return functional.normalize(torch.from_numpy(features), dim=1)
