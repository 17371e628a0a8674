"""Train the classifier of a data set on streamed rows, and take the statistics of its real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from causalfusion import draws

from ...config.errors import UserError
from ...data.manifest import Manifest
from ...data.pixels import to_pixels
from ...data.read import Batch, Dataset, local_batches
from ..extractors.classifier_extractor import ClassifierExtractor, space_of
from ..extractors.small_cnn import SmallCnn
from ..metrics.statistics import FeatureMoments, Statistics
from .progress import LoggedProgress
from .recipe import ClassifierRecipe

MOST_HELD_OUT = 10_000
"""Held-out rows whose features are kept: as many as sets of samples have."""
_WINDOW_ROWS = 8192
_SMALL_IMAGE = 3 * 32 * 32

Alive = Callable[[], None]
"""Called from time to time during long work."""


@dataclass(frozen=True)
class DataClassifier:
    """The classifier of a data set, and the set's real images in its space."""

    extractor: ClassifierExtractor
    reference: Statistics
    """Of the features of the rows that it was trained on."""
    train_rows: int
    """Number of those rows."""
    held_out: Tensor
    """Features (N, F) float32 of rows outside the reference, in random order, `MOST_HELD_OUT` at most."""
    held_out_accuracy: float | None
    """Accuracy on all held-out rows. None: there are none."""


def train_classifier(
    folder: Path, manifest: Manifest, recipe: ClassifierRecipe, alive: Alive = lambda: None
) -> DataClassifier:
    """Train the classifier of shards whose latents are pixels. A function of data and recipe on one machine.

    Memory holds one window of rows, whatever the size of the data set. Of a large one `most_images` rows are read,
    in random order: for training, for the reference and to hold out.

    Raises:
        UserError: a shard is damaged, or the data set has too few rows.
    """
    network = _train(folder, manifest, recipe, alive)
    return _examine(ClassifierExtractor(network, space_of(manifest)), folder, manifest, recipe, alive)


def new_network(manifest: Manifest, recipe: ClassifierRecipe) -> SmallCnn:
    """Return the network of a data set with random weights."""
    return SmallCnn(
        manifest.shape,
        len(manifest.class_names),
        channels=recipe.channels,
        width=recipe.width,
        dropout=recipe.dropout,
    )


def _train(folder: Path, manifest: Manifest, recipe: ClassifierRecipe, alive: Alive) -> SmallCnn:
    total = recipe.images(manifest.rows)
    progress = LoggedProgress(f"training the classifier of {folder}", total)
    with torch.random.fork_rng(devices=[]), _threads_for(manifest):
        torch.manual_seed(draws.stream_seed(recipe.seed, "classifier"))
        network = new_network(manifest, recipe).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate)
        steps = math.ceil(total / recipe.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for batch in _rows(folder, manifest, recipe, total):
            seen = ~recipe.is_held_out(batch.row_ids.tolist())
            if seen.any():
                scores = network(batch.latents[seen])
                loss = functional.cross_entropy(scores, batch.labels[seen], label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
            alive()
            progress.show(batch.samples.stop)
    progress.finish()
    return network


def _rows(folder: Path, manifest: Manifest, recipe: ClassifierRecipe, total: int) -> Iterator[Batch]:
    data = Dataset(folder, manifest, draws.stream_seed(recipe.seed, "classifier order"), _WINDOW_ROWS)
    return local_batches(data, batch_size=recipe.batch_size, start=0, stop=total)


def _examine(
    extractor: ClassifierExtractor, folder: Path, manifest: Manifest, recipe: ClassifierRecipe, alive: Alive
) -> DataClassifier:
    """Extract the features of all rows, or of those that training reads of a large data set."""
    total = min(manifest.rows, recipe.most_images)
    progress = LoggedProgress(f"features of {folder}", total)
    moments = FeatureMoments(recipe.width)
    held_out, places = torch.empty(0, recipe.width), torch.empty(0, dtype=torch.float64)
    right = outside = 0
    with _threads_for(manifest):
        for batch in _rows(folder, manifest, recipe, total):
            found = extractor.features(to_pixels(batch.latents))
            assert found.probabilities is not None
            place = recipe.places(batch.row_ids.tolist())
            out = place < recipe.held_out
            moments.add(found.pool[~out])
            right += int((found.probabilities[out].argmax(dim=1) == batch.labels[out]).sum())
            outside += int(out.sum())
            places, held_out = torch.cat([places, place[out]]), torch.cat([held_out, found.pool[out]])
            if len(places) > 2 * MOST_HELD_OUT:
                places, held_out = _first(places, held_out)
            alive()
            progress.show(batch.samples.stop)
    progress.finish()
    if moments.count < 2:
        raise UserError(
            f"{folder} holds {manifest.rows} rows, {moments.count} of them for training a classifier; at least 2 "
            f"are needed\n  end runs without scores: evaluation.score=false"
        )
    _, held_out = _first(places, held_out)
    accuracy = right / outside if outside else None
    return DataClassifier(extractor, moments.statistics(), moments.count, held_out, accuracy)


def _first(places: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    order = places.argsort(stable=True)[:MOST_HELD_OUT]
    return places[order], features[order]


@contextmanager
def _threads_for(manifest: Manifest) -> Iterator[None]:
    # With batches of small images threads mostly wait for one another. One is faster, above all on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1 if math.prod(manifest.shape) <= _SMALL_IMAGE else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
