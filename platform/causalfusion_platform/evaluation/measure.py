"""Measure samples. The names of the scores contain the feature space."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..config.errors import UserError
from .collect import batches_of, collect
from .extractors.extractor import Extractor
from .extractors.inception_extractor import FID_DIGEST, FID_SPACE
from .metrics.frechet import frechet_of_statistics
from .metrics.inception_score import inception_score
from .metrics.memorization import memorization
from .metrics.precision_recall import NEIGHBOURS, precision_recall
from .reference import Reference

_PUBLISHED = {
    "fd": "fid",
    "sfd": "sfid",
    "classifier_score": "inception_score",
    "precision": "precision",
    "recall": "recall",
}
"""Names without a space, as papers have them for the space of FID."""


def measure(
    samples: Tensor | Iterable[Tensor],
    reference: Reference,
    extractor: Extractor,
    *,
    labels: Tensor | None = None,
    training: Tensor | None = None,
) -> dict[str, float]:
    """Measure generated images.

    Args:
        samples: images (N, C, H, W) uint8, or batches of them.
        reference: real images in the same space.
        labels: requested classes (N,) of the samples.
        training: pool features (M, F) of all images that the generator was trained on.

    Returns:
        In the space of FID `fid`, `sfid`, `inception_score`, `precision` and `recall`, by ADM's conventions, as the
        paper's Table 4 has them. In any other space S `fd_S`, `sfd_S`, `classifier_score_S`, `precision_S` and
        `recall_S`. Scores without the needed features are left out.
        With `training`, in every space: `memorized_share_S`, `nearest_distance_S` and `nearest_distance_real_S`.
        With `labels`, if the extractor knows the classes of the data set: `class_accuracy`.

    Raises:
        UserError: too few samples, another number of labels, or a reference of another space.
    """
    check_reference(reference, extractor)
    collected = collect(extractor, batches_of(samples) if isinstance(samples, Tensor) else samples)
    features, space = collected.features, extractor.space
    assert features is not None
    if len(features) <= NEIGHBOURS:
        raise UserError(f"{len(features)} samples cannot be measured; at least {NEIGHBOURS + 1} are needed")
    if labels is not None and len(labels) != len(features):
        raise UserError(f"{len(labels)} labels for {len(features)} samples; one for each is needed")
    numbers = {"fd": frechet_of_statistics(collected.pool.statistics(), reference.pool)}
    if collected.spatial is not None and reference.spatial is not None:
        numbers["sfd"] = frechet_of_statistics(collected.spatial.statistics(), reference.spatial)
    if collected.probabilities is not None:
        numbers["classifier_score"] = inception_score(collected.probabilities)
    if reference.features is not None:
        # The rounding of ADM's evaluator is part of its numbers alone.
        shares = precision_recall(reference.features, features, half=is_fid(extractor), device=extractor.device)
        numbers |= {"precision": shares.precision, "recall": shares.recall}
    named = {metric_name(kind, extractor): value for kind, value in numbers.items()}
    if training is not None:
        copies = memorization(features, training, device=extractor.device)
        named[f"memorized_share_{space}"] = copies.share
        named[f"nearest_distance_{space}"] = copies.median
        named[f"nearest_distance_real_{space}"] = copies.median_real
    if labels is not None and extractor.judges_classes and collected.probabilities is not None:
        named["class_accuracy"] = float((collected.probabilities.argmax(dim=1) == labels.cpu()).double().mean())
    return named


def metric_name(kind: str, extractor: Extractor) -> str:
    """Return the name of "fd", "sfd", "classifier_score", "precision" or "recall" in the extractor's space."""
    return _PUBLISHED[kind] if is_fid(extractor) else f"{kind}_{extractor.space}"


def is_fid(extractor: Extractor) -> bool:
    """Return whether a distance in the extractor's space may be called FID.

    Raises:
        ValueError: the extractor uses the name of that space for other weights.
    """
    if extractor.space == FID_SPACE and extractor.digest != FID_DIGEST:
        raise ValueError(f"space {FID_SPACE} is of the weights {FID_DIGEST}, not {extractor.digest}")
    return extractor.space == FID_SPACE


def provenance(extractor: Extractor, reference: Reference) -> dict[str, str]:
    """Return the provenance of the numbers: the space, the weights' SHA-256, and the reference."""
    return {"space": extractor.space, "weights_sha256": extractor.digest, "reference": reference.source}


def check_reference(reference: Reference, extractor: Extractor) -> None:
    """Raise `UserError` unless samples and reference are in one space."""
    is_fid(extractor)
    if (reference.space, reference.digest) != (extractor.space, extractor.digest):
        raise UserError(
            f"the reference ({reference.source}) is in the space {reference.space} (weights "
            f"{reference.digest[:12]}…), the samples are in {extractor.space} (weights {extractor.digest[:12]}…)\n"
            f"  extract the reference with the same weights"
        )
