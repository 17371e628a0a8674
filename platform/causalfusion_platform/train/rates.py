"""The learning rate: base rate × batch / 256, a linear warmup in images or epochs, then constant or a cosine."""

from __future__ import annotations

import math

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
    """Return the learning rate of the step that ends at `images_seen` images.

    `constant`: a linear warmup, then the peak (Tables 9 and 10). `cosine`: MAE's rule (Tables 12 and 13), by the
    images seen before the step. Its warmup rises from 0, and half a cosine falls from the peak to `optim.min_lr`.

    Raises:
        ValueError: see `warmup_images`.
    """
    warmup, peak = warmup_images(experiment, rows), experiment.learning_rate
    if experiment.optim.schedule == "constant":
        return peak * min(1.0, images_seen / warmup if warmup else 1.0)
    before, total = images_seen - experiment.train.global_batch_size, experiment.train.total_images
    if before < warmup:
        return peak * before / warmup
    lowest, progress = experiment.optim.min_lr, (before - warmup) / (total - warmup)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2
