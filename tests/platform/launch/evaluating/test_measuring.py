"""What a command measures with: one classifier for a data set, the same that scores the end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.platform.evaluation.tiny_extractor import TinyExtractor

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data import read
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.pixels import to_pixels
from causalfusion_platform.data.read import Batch, read_all
from causalfusion_platform.evaluation.classifier import folder as kept
from causalfusion_platform.evaluation.classifier.folder import open_classifier
from causalfusion_platform.evaluation.classifier.recipe import RECIPE
from causalfusion_platform.evaluation.evaluate import SampleScorer
from causalfusion_platform.launch.evaluating import measuring as measuring_module
from causalfusion_platform.launch.evaluating.measuring import Measuring, open_measuring


@pytest.fixture(scope="module")
def digits_of(digits_folder: Path) -> Batch:
    return read_all(digits_folder, Manifest.read(digits_folder))


@pytest.fixture(scope="module")
def measuring(digits_folder: Path) -> Measuring:
    open_classifier(digits_folder, Manifest.read(digits_folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "train_classifier", None)  # it is there, and not trained again
        patch.setattr(read, "read_all", None)
        return open_measuring("classifier", None, digits_folder)


def write_npz(path: Path, images: torch.Tensor) -> Path:
    np.savez(path, to_pixels(images).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy())
    return path


def test_evaluate_and_a_runs_summary_are_one_measure(
    measuring: Measuring, digits_folder: Path, digits_of: Batch, tmp_path: Path
) -> None:
    """The same samples have the same scores, to the last bit."""
    images, labels = digits_of.latents[100:160], digits_of.labels[100:160]
    noised = (images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) / 2).clamp(-1, 1)
    summary = SampleScorer(open_classifier(digits_folder, Manifest.read(digits_folder))).score(
        to_pixels(noised), labels
    )
    found = measuring.measure(write_npz(tmp_path / "samples.npz", noised), labels)
    assert 0 < found["class_accuracy"] == summary.class_accuracy < 1
    assert found["fd_digits_cnn"] == summary.distance
    assert measuring.provenance["weights_sha256"] == summary_digest(digits_folder)


def summary_digest(folder: Path) -> str:
    (record,) = folder.glob(f".classifier-{RECIPE.identity(Manifest.read(folder))[:16]}/classifier.json")
    digest: str = json.loads(record.read_text())["weights_sha256"]
    return digest


def test_the_reference_is_of_the_rows_of_training_and_memorization_of_all(
    measuring: Measuring, digits_of: Batch
) -> None:
    inside = ~RECIPE.is_held_out(digits_of.row_ids.tolist())
    features = measuring.extractor.features(to_pixels(digits_of.latents)).pool
    assert measuring.training is not None
    assert measuring.reference.features is not None
    torch.testing.assert_close(measuring.training, features)
    torch.testing.assert_close(measuring.reference.features, features[inside])
    assert measuring.provenance["reference"].startswith(f"{int(inside.sum())} of 1797 images of data ")


def test_precision_and_recall_take_a_part_of_a_large_data_set(
    measuring: Measuring, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random one, and of the reference's rows alone. Distance and memorization are still of all rows."""
    monkeypatch.setattr(measuring_module, "MOST_COMPARED", 50)
    found = open_measuring("classifier", None, digits_folder)
    assert found.reference.features is not None
    assert measuring.reference.features is not None
    assert found.training is not None
    whole = {tuple(row) for row in measuring.reference.features.tolist()}
    assert len(found.reference.features) == 50
    assert {tuple(row) for row in found.reference.features.tolist()} < whole
    assert len(found.training) == 1797
    assert torch.equal(found.reference.pool.covariance, measuring.reference.pool.covariance)


def test_the_older_name_of_the_classifier_is_known(measuring: Measuring, digits_folder: Path) -> None:
    assert open_measuring("digits_cnn", None, digits_folder).provenance == measuring.provenance


def tiny(*_: object) -> TinyExtractor:
    return TinyExtractor()


def test_a_classifier_needs_pixels(digits_folder: Path) -> None:
    with pytest.raises(
        UserError, match="--extractor classifier is a classifier trained on the real images, not at"
    ):
        open_measuring("classifier", None, None)
    with pytest.raises(UserError, match="a reference is needed"):
        open_measuring(f"{__name__}:tiny", None, None)
