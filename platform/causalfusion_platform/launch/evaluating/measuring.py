"""Measuring samples: an extractor, the real images in its space, and the training set's features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...config.errors import UserError
from ...data.manifest import Manifest
from ...data.read import Batch, read_all
from ...data.validate import CheckedShards, open_shards
from ...evaluation.collect import batches_of
from ...evaluation.extractors.digits_cnn import train_classifier
from ...evaluation.extractors.digits_extractor import DigitsExtractor
from ...evaluation.extractors.extractor import Extractor
from ...evaluation.measure import measure, provenance
from ...evaluation.npz import image_batches
from ...evaluation.open import open_extractor
from ...evaluation.reference import Reference, read_reference, reference_from_images
from ...sampling.grid import to_pixels

DIGITS = "digits_cnn"
_CLASSIFIER_SEED, _CLASSIFIER_EPOCHS = 0, 30
"""The same extractor for every run on a data set: runs are compared in the space of its features."""


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

    def measure(self, npz: Path, labels: Tensor) -> dict[str, float]:
        """Measure the images of a file in ADM's layout that were asked to be of classes `labels` (N,).

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
        extractor: `digits_cnn`, a classifier trained on the data set itself, whose latents must be pixels.
            Others are as `open_extractor` takes them.
        reference: statistics or images of the real data set, a .npz of ADM or of `write_reference`. None: the
            images of `data`.
        data: shards that the model was trained on. None: not known.
        checked: an earlier check of these shards.

    Raises:
        UserError: a file is missing or does not fit.
    """
    pixels = None if data is None else _pixels(data, checked)
    if extractor == DIGITS:
        if pixels is None:
            raise UserError(
                f"--extractor {DIGITS} is a classifier trained on the real images, not at hand as pixels\n"
                f"  evaluate a run whose data are there, or give --extractor inception:PATH --reference FILE"
            )
        opened: Extractor = _trained_extractor(*pixels)
    else:
        opened = open_extractor(extractor, "cuda" if torch.cuda.is_available() else "cpu")
    training = None if pixels is None else _reference(*pixels, opened)
    if reference is not None:
        chosen = read_reference(reference, opened)
    elif training is not None:
        chosen = training
    else:
        raise UserError(
            "the training images are not at hand as pixels: a reference is needed\n"
            "  name one of ADM's, such as --reference VIRTUAL_imagenet256_labeled.npz"
        )
    return Measuring(opened, chosen, None if training is None else training.features)


def _pixels(data: Path, checked: CheckedShards | None) -> tuple[Manifest, Batch] | None:
    """Return the manifest and all images (N, channels, H, W) in [−1, 1]. None: latents are not pixels."""
    manifest = open_shards(data, known=checked).usable
    return (manifest, read_all(data, manifest)) if manifest.autoencoder.name == "identity" else None


def _trained_extractor(manifest: Manifest, images: Batch) -> DigitsExtractor:
    classes = len(manifest.class_names)
    classifier = train_classifier(
        images.latents, images.labels, num_classes=classes, epochs=_CLASSIFIER_EPOCHS, seed=_CLASSIFIER_SEED
    )
    return DigitsExtractor(classifier)


def _reference(manifest: Manifest, images: Batch, extractor: Extractor) -> Reference:
    source = f"{manifest.rows} images of data {manifest.digest[:12]}"
    return reference_from_images(batches_of(to_pixels(images.latents)), extractor, source=source)
