"""The learning rate: base rate × batch / 256, with a linear warmup in images or epochs."""

from __future__ import annotations

from ..config.schema import Experiment


def warmup_images(experiment: Experiment, rows: int | None = None) -> float:
    """Return the images over which the learning rate rises.

    Args:
        experiment: its `optim.warmup_epochs` or `optim.warmup_images`.
        rows: rows of the data set, one epoch. Needed with `warmup_epochs` only.

    Raises:
        ValueError: the warmup is in epochs, and `rows` is missing.
    """
    optim = experiment.optim
    if optim.warmup_epochs is None:
        return optim.warmup_images
    if rows is None:
        raise ValueError("a warmup in epochs needs the rows of the data set")
    return optim.warmup_epochs * rows


def learning_rate_at(experiment: Experiment, images_seen: int, rows: int | None = None) -> float:
    """Return the learning rate after `images_seen` images: linear warmup, then constant (Tables 9 and 10).

    Raises:
        ValueError: see `warmup_images`.
    """
    warmup = warmup_images(experiment, rows)
    return experiment.learning_rate * min(1.0, images_seen / warmup if warmup else 1.0)
