"""The classifier: good on digits it has not seen, a function of data and recipe, and blind to the rows held out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.platform.conftest import description_of
from torch import Tensor

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data import read
from causalfusion_platform.data.digits import digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.pixels import read_pixels, to_pixels
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.evaluation.classifier import train
from causalfusion_platform.evaluation.classifier.progress import LoggedProgress
from causalfusion_platform.evaluation.classifier.recipe import RECIPE, ClassifierRecipe
from causalfusion_platform.evaluation.classifier.train import DataClassifier, train_classifier

SHORT = ClassifierRecipe(epochs=2)


def write(rows: Rows, folder: Path, classes: int = 10) -> Manifest:
    described = description_of(rows).model_copy(update={"class_names": [str(name) for name in range(classes)]})
    return write_shards(rows, described, folder, rows_per_shard=200, rows_per_group=50)


def some_digits(count: int, labels: npt.NDArray[np.int64] | None = None) -> Rows:
    rows = digits().slice(slice(0, count))
    return rows if labels is None else dataclasses.replace(rows, labels=labels)


def weights_of(classifier: DataClassifier) -> list[Tensor]:
    return list(classifier.extractor.network.state_dict().values())


def same(one: DataClassifier, other: DataClassifier) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(other), strict=True))


def test_it_learns_digits(digits_folder: Path) -> None:
    found = train_classifier(digits_folder, Manifest.read(digits_folder), ClassifierRecipe(epochs=4))
    assert found.held_out_accuracy is not None
    assert found.held_out_accuracy > 0.9
    assert not found.extractor.network.training
    assert found.extractor.space == "digits_cnn"


def test_it_is_a_function_of_data_and_recipe(tmp_path: Path) -> None:
    manifest = write(some_digits(300), tmp_path)
    one = train_classifier(tmp_path, manifest, SHORT)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    again = train_classifier(tmp_path, manifest, SHORT)
    assert torch.equal(torch.rand(3), expected)  # it leaves torch's own draws alone
    other = train_classifier(tmp_path, manifest, dataclasses.replace(SHORT, seed=1))
    assert same(one, again)
    assert one.extractor.digest == again.extractor.digest != other.extractor.digest
    assert one.held_out_accuracy == again.held_out_accuracy
    assert one.extractor.space == "data_cnn"  # these are digits, but not the bundled data set


def test_it_does_not_learn_from_the_rows_held_out(tmp_path: Path) -> None:
    """Wrong labels on those alone change its accuracy on them, and none of its weights."""
    rows = some_digits(500)
    held_out = SHORT.is_held_out(rows.row_ids.tolist()).numpy()
    assert 70 < held_out.sum() < 130  # a fifth, drawn at random
    wrong = np.where(held_out, (rows.labels + 1) % 10, rows.labels)
    right, misled = (
        train_classifier(folder, write(some_digits(500, labels), folder), SHORT)
        for folder, labels in ((tmp_path / "right", rows.labels), (tmp_path / "wrong", wrong))
    )
    assert same(right, misled)
    assert right.held_out_accuracy is not None
    assert misled.held_out_accuracy is not None
    assert right.held_out_accuracy > 0.5
    assert right.held_out_accuracy + misled.held_out_accuracy <= 1


def test_reference_and_held_out_rows_are_apart_and_all_there_are(tmp_path: Path) -> None:
    """The statistics are numpy's over the rows of training, all at once. The others keep their features."""
    rows = some_digits(300)
    found = train_classifier(tmp_path, write(rows, tmp_path), SHORT)
    held_out = SHORT.is_held_out(rows.row_ids.tolist())
    features = found.extractor.features(to_pixels(torch.from_numpy(rows.mean).float())).pool
    inside = features[~held_out].double().numpy()
    assert found.train_rows == len(inside) == 300 - len(found.held_out)
    np.testing.assert_allclose(found.reference.mean, inside.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.reference.covariance, np.cov(inside.T), rtol=1e-5, atol=1e-7)
    expected = features[held_out][SHORT.places(rows.row_ids.tolist())[held_out].argsort()]
    torch.testing.assert_close(found.held_out, expected)


def test_only_so_many_held_out_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose places are first: a random part, since rows of a shard may lie class by class."""
    manifest = write(some_digits(300), tmp_path)
    whole = train_classifier(tmp_path, manifest, SHORT)
    monkeypatch.setattr(train, "MOST_HELD_OUT", 7)
    few = train_classifier(tmp_path, manifest, SHORT)
    assert torch.equal(few.held_out, whole.held_out[:7])
    assert few.held_out_accuracy == whole.held_out_accuracy


def test_rows_are_streamed(digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds a window of rows, however many there are."""
    held: list[int] = []
    window = read.read_window

    def counted(*arguments: object) -> object:
        columns = window(*arguments)  # type: ignore[arg-type]
        held.append(len(columns["row_id"]))
        return columns

    monkeypatch.setattr(read, "read_window", counted)
    monkeypatch.setattr(train, "_WINDOW_ROWS", 128)
    train_classifier(digits_folder, Manifest.read(digits_folder), ClassifierRecipe(epochs=1))
    assert sum(held) == 2 * 1797  # one epoch, and the features of all rows
    assert max(held) < 300
    parts = [len(rows.labels) for rows in read_pixels(digits_folder, Manifest.read(digits_folder))]
    assert (sum(parts), max(parts)) == (1797, 64)


def test_a_large_data_set_is_read_in_part(tmp_path: Path) -> None:
    """Of 300 rows, 130 are read in random order: to train, as the reference, and to hold out."""
    assert RECIPE.images(1797) == RECIPE.epochs * 1797
    assert RECIPE.images(1_281_167) == RECIPE.most_images < 1_281_167
    rows = some_digits(300)
    found = train_classifier(tmp_path, write(rows, tmp_path), dataclasses.replace(SHORT, most_images=130))
    assert found.train_rows + len(found.held_out) == 130
    held_out = SHORT.is_held_out(rows.row_ids.tolist())
    features = found.extractor.features(to_pixels(torch.from_numpy(rows.mean).float())).pool[held_out]
    apart = torch.cdist(found.held_out.double(), features.double()).min(dim=1)
    assert float(apart.values.max()) < 1e-5
    assert len(set(apart.indices.tolist()) - set(range(len(found.held_out)))) > 3  # not the first ones


def test_other_images_fit_too(tmp_path: Path) -> None:
    """Colours, another size and other classes: 12×12 images of three plain colours are told apart."""
    labels = np.arange(90) % 3
    images = np.full((90, 3, 12, 12), -1.0, np.float16)
    images[np.arange(90), labels] = 1.0
    rows = Rows(row_ids=np.arange(90), labels=labels, keys=[str(row) for row in range(90)], mean=images)
    found = train_classifier(tmp_path, write(rows, tmp_path, 3), ClassifierRecipe(epochs=12))
    assert found.held_out_accuracy == 1.0
    assert found.held_out.shape[1] == RECIPE.width


def test_too_few_rows(tmp_path: Path) -> None:
    rows = some_digits(1)
    with pytest.raises(UserError, match=r"holds 1 rows, .* at least 2 are needed\n  .*evaluation\.score=false"):
        train_classifier(tmp_path, write(rows, tmp_path), SHORT)


def test_work_that_takes_long_is_reported(monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    report = LoggedProgress("training", 1000)
    for seconds, done in ((2.9, 290), (4.0, 400), (9.0, 900), (14.0, 950)):
        now[0] = 100 + seconds
        report.show(done)
    now[0] = 115
    report.finish()
    assert log_lines == [
        "training: 400 of 1,000 images, about 6 s left",
        "training: 950 of 1,000 images, about 1 s left",
        "training: done in 15 s",
    ]
    short = LoggedProgress("training", 10)
    short.finish()
    assert len(log_lines) == 3
