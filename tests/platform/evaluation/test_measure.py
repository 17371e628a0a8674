"""Everything measured at once: each number is that of its own formula, under a name that says its space."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tests.platform.evaluation.tiny_extractor import TinyExtractor, random_images
from torch import Tensor

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.evaluation.classifier.folder import open_classifier
from causalfusion_platform.evaluation.collect import batches_of
from causalfusion_platform.evaluation.extractors.classifier_extractor import ClassifierExtractor, space_of
from causalfusion_platform.evaluation.extractors.inception_extractor import FID_DIGEST, FID_SPACE
from causalfusion_platform.evaluation.measure import is_fid, measure, provenance
from causalfusion_platform.evaluation.metrics.frechet import frechet_distance
from causalfusion_platform.evaluation.metrics.inception_score import inception_score
from causalfusion_platform.evaluation.metrics.precision_recall import precision_recall
from causalfusion_platform.evaluation.reference import Reference, reference_from_images

REAL, SAMPLES = random_images(120, seed=1), random_images(90, seed=2, low=20)


def fid_like(width: int = 5) -> TinyExtractor:
    return TinyExtractor(space=FID_SPACE, digest=FID_DIGEST, width=width)


def reference_of(
    extractor: TinyExtractor | ClassifierExtractor, images: Tensor = REAL, keep: bool = True
) -> Reference:
    return reference_from_images([images], extractor, source="real images", keep=keep)


def test_each_number_is_its_own_formula() -> None:
    extractor = TinyExtractor(judges_classes=True)
    labels = torch.arange(90) % 4
    training = extractor.features(SAMPLES[:30]).pool  # a third of the samples are copies
    found = measure(batches_of(SAMPLES, 7), reference_of(extractor), extractor, labels=labels, training=training)
    real, ours = extractor.features(REAL), extractor.features(SAMPLES)
    assert real.spatial is not None
    assert ours.spatial is not None
    assert ours.probabilities is not None
    shares = precision_recall(real.pool, ours.pool)
    nearest = torch.cdist(ours.pool.double(), training.double()).amin(dim=1)
    between = torch.cdist(training.double(), training.double()).fill_diagonal_(torch.inf).amin(dim=1)
    expected = {
        "fd_tiny": frechet_distance(ours.pool, real.pool),
        "sfd_tiny": frechet_distance(ours.spatial, real.spatial),
        "classifier_score_tiny": inception_score(ours.probabilities),
        "precision_tiny": shares.precision,
        "recall_tiny": shares.recall,
        "memorized_share_tiny": float((nearest <= between.quantile(0.05)).double().mean()),
        "nearest_distance_tiny": float(nearest.quantile(0.5)),
        "nearest_distance_real_tiny": float(between.quantile(0.5)),
        "class_accuracy": float((ours.probabilities.argmax(dim=1) == labels).double().mean()),
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert all(type(value) is float for value in found.values())
    assert 1 / 3 <= found["memorized_share_tiny"] < 0.5
    assert found["precision_tiny"] > 0.1


def test_published_names_in_the_space_of_fid_alone() -> None:
    """And there with the rounding of ADM's distances, which no other space has."""
    released = fid_like(width=200)
    other = TinyExtractor(width=200)
    real, samples = REAL // 16 + 120, SAMPLES // 16 + 120
    numbers, plain = (measure(samples, reference_of(one, real), one) for one in (released, other))
    assert list(numbers) == ["fid", "sfid", "inception_score", "precision", "recall"]
    assert list(plain) == ["fd_tiny", "sfd_tiny", "classifier_score_tiny", "precision_tiny", "recall_tiny"]
    assert list(numbers.values())[:3] == list(plain.values())[:3]
    a, b = released.features(real).pool, released.features(samples).pool
    rounded, exact = precision_recall(a, b, half=True), precision_recall(a, b)
    assert rounded != exact
    assert (numbers["precision"], numbers["recall"]) == (rounded.precision, rounded.recall)
    assert (plain["precision_tiny"], plain["recall_tiny"]) == (exact.precision, exact.recall)


def test_other_weights_cannot_take_the_name() -> None:
    pretender = TinyExtractor(space=FID_SPACE, digest=FID_DIGEST[:-1] + "0")
    reference = reference_of(pretender)
    with pytest.raises(ValueError, match="is of the weights 6726825d"):
        is_fid(pretender)
    with pytest.raises(ValueError, match="is of the weights 6726825d"):
        measure(SAMPLES, reference, pretender)


def test_only_what_there_are_numbers_for() -> None:
    bare = TinyExtractor(spatial=0, classes=0)
    assert list(measure(SAMPLES, reference_of(bare, keep=False), bare)) == ["fd_tiny"]
    extractor = TinyExtractor()
    reference = dataclasses.replace(reference_of(extractor), spatial=None)
    names = ["fd_tiny", "classifier_score_tiny", "precision_tiny", "recall_tiny"]
    assert list(measure(SAMPLES, reference, extractor)) == names
    labels = torch.zeros(90, dtype=torch.int64)
    assert "class_accuracy" not in measure(SAMPLES, reference, extractor, labels=labels)  # classes of another set


def test_batches_score_the_same() -> None:
    extractor = TinyExtractor()
    reference = reference_of(extractor)
    whole = measure(SAMPLES, reference, extractor)
    assert measure(iter([SAMPLES[:40], SAMPLES[40:]]), reference, extractor) == pytest.approx(whole, rel=1e-9)


def test_real_images_measure_as_real() -> None:
    extractor = TinyExtractor()
    found = measure(REAL, reference_of(extractor), extractor)
    assert found["fd_tiny"] == pytest.approx(0, abs=1e-9)
    assert (found["precision_tiny"], found["recall_tiny"]) == (1.0, 1.0)


def test_the_record() -> None:
    extractor = TinyExtractor()
    assert provenance(extractor, reference_of(extractor)) == {
        "space": "tiny",
        "weights_sha256": extractor.digest,
        "reference": "real images",
    }


@pytest.mark.parametrize("changed", [{"space": "other"}, {"digest": "0" * 64}])
def test_a_reference_of_another_space(changed: dict[str, str]) -> None:
    extractor = TinyExtractor()
    reference = dataclasses.replace(reference_of(extractor), **changed)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the reference \(real images\) is in the space"):
        measure(SAMPLES, reference, extractor)
    assert extractor.seen == len(REAL)  # refused before the samples' features are extracted


def test_samples_that_cannot_be_measured() -> None:
    extractor = TinyExtractor()
    reference = reference_of(extractor)
    with pytest.raises(UserError, match="3 samples cannot be measured; at least 4"):
        measure(SAMPLES[:3], reference, extractor)
    with pytest.raises(UserError, match="5 labels for 90 samples"):
        measure(SAMPLES, reference, extractor, labels=torch.zeros(5))
    assert math.isfinite(measure(SAMPLES[:4], reference, extractor)["fd_tiny"])


@pytest.fixture(scope="module")
def classifier(digits_folder: Path) -> ClassifierExtractor:
    """Return the classifier of the digits."""
    return open_classifier(digits_folder, Manifest.read(digits_folder)).extractor


def test_digits(digit_images: tuple[Tensor, Tensor], classifier: ClassifierExtractor) -> None:
    """Digits as uint8 measure as the network has them in [−1, 1]; noise is neither accurate nor memorized."""
    images, labels = digit_images
    pixels = ((images + 1) * 127.5).round().byte()
    reference = reference_of(classifier, pixels)
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[:400]
    found = measure(pixels[some], reference, classifier, labels=labels[some], training=reference.features)
    as_drawn = pixels.float() / 127.5 - 1
    network = classifier.network
    assert found["class_accuracy"] == pytest.approx(
        float((network(as_drawn[some]).argmax(dim=1) == labels[some]).double().mean())
    )
    features = network.features(as_drawn).double()
    assert found["fd_digits_cnn"] == pytest.approx(frechet_distance(features[some], features), rel=1e-4)
    assert (found["precision_digits_cnn"], found["memorized_share_digits_cnn"]) == (1.0, 1.0)
    assert "sfd_digits_cnn" not in found
    assert 5 < found["classifier_score_digits_cnn"] <= 10
    noise = torch.randint(0, 256, (400, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    of_noise = measure(noise, reference, classifier, labels=labels[some], training=reference.features)
    assert of_noise["class_accuracy"] < 0.3
    assert of_noise["memorized_share_digits_cnn"] < 0.05
    assert of_noise["fd_digits_cnn"] > 20 * found["fd_digits_cnn"]


def test_the_space_says_digits_on_the_digits_alone(digits_folder: Path) -> None:
    manifest = Manifest.read(digits_folder)
    assert space_of(manifest) == "digits_cnn"
    others = manifest.source.model_copy(update={"kind": "folders"})
    assert space_of(manifest.model_copy(update={"source": others})) == "data_cnn"


def test_the_classifier_takes_grey_images_with_three_channels(
    digit_images: tuple[Tensor, Tensor], classifier: ClassifierExtractor
) -> None:
    """As files in ADM's layout hold them."""
    grey = ((digit_images[0][:5] + 1) * 127.5).round().byte()
    assert torch.equal(classifier.features(grey.expand(-1, 3, -1, -1)).pool, classifier.features(grey).pool)
    with pytest.raises(ValueError, match=r"torch.uint8"):
        classifier.features(torch.zeros(1, 2, 8, 8).byte())
