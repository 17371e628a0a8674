"""Measuring samples: an extractor, the real images in its space, and the training set's features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...config.errors import UserError
from ...data.manifest import Manifest
from ...data.pixels import read_pixels
from ...data.validate import CheckedShards, open_shards
from ...evaluation.classifier.folder import open_classifier
from ...evaluation.classifier.progress import LoggedProgress
from ...evaluation.classifier.recipe import RECIPE
from ...evaluation.classifier.train import DataClassifier
from ...evaluation.extractors.classifier_extractor import DIGITS_SPACE
from ...evaluation.extractors.extractor import Extractor
from ...evaluation.measure import measure, provenance
from ...evaluation.npz import image_batches
from ...evaluation.open import open_extractor
from ...evaluation.reference import Reference, read_reference, reference_from_images

CLASSIFIER = "classifier"
"""Name of the classifier of the data set as an extractor. Runs on a data set are compared in its features."""
MOST_COMPARED = 10_000
"""Real images whose features precision and recall use. Their cost grows with the square of this number."""


@dataclass(frozen=True)
class Measuring:
    """Measures sets of samples, all in one space."""

    extractor: Extractor
    reference: Reference
    training: Tensor | None
    """Pool features of all training images, for memorization, or None if they are not known."""

    @property
    def provenance(self) -> dict[str, str]:
        """Space, SHA-256 of the weights, and origin of the reference."""
        return provenance(self.extractor, self.reference)

    def measure(self, npz: Path, labels: Tensor | None) -> dict[str, float]:
        """Measure the images of a file in ADM's layout that were asked to be of classes `labels` (N,).

        Samples that are drawn from text have no labels, and so no class accuracy.

        Raises:
            UserError: the file is damaged, or holds too few.
        """
        batches = image_batches(npz, 64)
        return measure(batches, self.reference, self.extractor, labels=labels, training=self.training)


def open_measuring(
    extractor: str, reference: Path | None, data: Path | None, *, checked: CheckedShards | None = None
) -> Measuring:
    """Open the extractor and the reference that a command or a table names.

    Args:
        extractor: `classifier`, or its older name `digits_cnn`: the classifier of the data set itself. Its latents
            must be pixels. It is trained if it was not trained before. Others are as `open_extractor` takes them.
        reference: statistics or images of the real data set, a .npz of ADM or of `write_reference`. None: those of
            the classifier, or the images of `data`.
        data: shards that the model was trained on. None: not known.
        checked: an earlier check of these shards.

    Raises:
        UserError: a file is missing or does not fit.
    """
    manifest = None if data is None else _pixels(data, checked)
    own: Reference | None = None
    training: Tensor | None = None
    if is_classifier(extractor):
        if data is None or manifest is None:
            raise UserError(
                f"--extractor {extractor} is a classifier trained on the real images, not at hand as pixels\n"
                f"  evaluate a run whose data are there, or give --extractor inception:PATH --reference FILE"
            )
        classifier = open_classifier(data, manifest)
        opened: Extractor = classifier.extractor
        training, own = _of_classifier(data, manifest, classifier)
    else:
        opened = open_extractor(extractor, "cuda" if torch.cuda.is_available() else "cpu")
        if data is not None and manifest is not None:
            training, own = _of_data(data, manifest, opened)
    if reference is not None:
        own = read_reference(reference, opened)
    if own is None:
        raise UserError(
            "the training images are not at hand as pixels: a reference is needed\n"
            "  name one of ADM's, such as --reference VIRTUAL_imagenet256_labeled.npz"
        )
    return Measuring(opened, own, training)


def is_classifier(extractor: str) -> bool:
    """Return whether `--extractor` names the classifier of the data set."""
    return extractor in (CLASSIFIER, DIGITS_SPACE)


def _pixels(data: Path, checked: CheckedShards | None) -> Manifest | None:
    """Return the manifest of the shards, without bad ones. None: latents are not pixels."""
    manifest = open_shards(data, known=checked).usable
    return manifest if manifest.autoencoder.name == "identity" else None


def _of_classifier(data: Path, manifest: Manifest, classifier: DataClassifier) -> tuple[Tensor, Reference]:
    """Return the features of all images, and the reference: the images that the classifier was trained on."""
    kept: list[Tensor] = []
    found: list[Tensor] = []
    progress = LoggedProgress(f"features of {data}", manifest.rows)
    for rows in read_pixels(data, manifest):
        kept.append(classifier.extractor.features(rows.images).pool)
        found.append(RECIPE.places(rows.row_ids.tolist()))
        progress.show(sum(map(len, kept)))
    progress.finish()
    training, places = torch.cat(kept), torch.cat(found)
    inside = places >= RECIPE.held_out
    reference = Reference(
        space=classifier.extractor.space,
        digest=classifier.extractor.digest,
        source=f"{classifier.train_rows} of {manifest.rows} images of data {manifest.digest[:12]}",
        pool=classifier.reference,
        features=_some(training[inside], places[inside]),
        image_size=manifest.shape[1],
    )
    return training, reference


def _of_data(data: Path, manifest: Manifest, extractor: Extractor) -> tuple[Tensor, Reference]:
    """Return the features of all images, and a reference of all images."""
    progress = LoggedProgress(f"features of {data}", manifest.rows)
    places: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        for rows in read_pixels(data, manifest):
            yield rows.images
            places.append(RECIPE.places(rows.row_ids.tolist()))
            progress.show(sum(map(len, places)))

    source = f"{manifest.rows} images of data {manifest.digest[:12]}"
    reference = reference_from_images(batches(), extractor, source=source)
    progress.finish()
    training = reference.features
    assert training is not None
    return training, dataclasses.replace(reference, features=_some(training, torch.cat(places)))


def _some(features: Tensor, places: Tensor) -> Tensor:
    """Return the features that precision and recall take: all, or as many of a large set as ADM's reference has."""
    return features if len(features) <= MOST_COMPARED else features[places.argsort(stable=True)[:MOST_COMPARED]]
