"""The classifier of a data set is trained once, kept beside the shards, and trusted only if it is whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.scan import scan_shards
from causalfusion_platform.data.shards import is_replaceable
from causalfusion_platform.evaluation.classifier import folder as kept
from causalfusion_platform.evaluation.classifier import recipe
from causalfusion_platform.evaluation.classifier.folder import RECORD_FILE, TENSORS_FILE, open_classifier
from causalfusion_platform.evaluation.classifier.recipe import ClassifierRecipe
from causalfusion_platform.evaluation.classifier.train import DataClassifier, train_classifier

SHORT = ClassifierRecipe(epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataClassifier]:
    """Digits with their classifier beside them; not to be changed."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    manifest = write_digits(folder)
    return folder, open_classifier(folder, manifest, recipe=SHORT)


@pytest.fixture
def copy(trained: tuple[Path, DataClassifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, and a cache of the user's that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained[0], tmp_path / "digits"))


@pytest.fixture
def trainings(trained: tuple[Path, DataClassifier], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders whose classifier is trained. The result is the one that is known."""
    done: list[str] = []

    def train(folder: Path, *_: object) -> DataClassifier:
        done.append(folder.name)
        return trained[1]

    monkeypatch.setattr(kept, "train_classifier", train)
    return done


def opened(folder: Path) -> DataClassifier:
    return open_classifier(folder, Manifest.read(folder), recipe=SHORT)


def place_of(folder: Path) -> Path:
    (place,) = folder.glob(".classifier-*")
    return place


def check_same(one: DataClassifier, other: DataClassifier) -> None:
    assert one.extractor.digest == other.extractor.digest
    assert torch.equal(one.reference.mean, other.reference.mean)
    assert torch.equal(one.reference.covariance, other.reference.covariance)
    assert torch.equal(one.held_out, other.held_out)
    assert (one.train_rows, one.held_out_accuracy) == (other.train_rows, other.held_out_accuracy)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(one.extractor.features(images).pool, other.extractor.features(images).pool)


def test_it_is_trained_once(copy: Path, trained: tuple[Path, DataClassifier], trainings: list[str]) -> None:
    check_same(opened(copy), trained[1])
    assert trainings == []
    record = json.loads((place_of(copy) / RECORD_FILE).read_text())
    assert record["weights_sha256"] == trained[1].extractor.digest
    assert record["data_digest"] == Manifest.read(copy).digest
    assert record["recipe"]["epochs"] == 1
    assert place_of(copy).name == f".classifier-{record['identity'][:16]}"


def test_what_is_kept_is_what_training_gives(trained: tuple[Path, DataClassifier]) -> None:
    folder, found = trained
    check_same(found, train_classifier(folder, Manifest.read(folder), SHORT))


def test_data_recipe_and_code_name_it(
    copy: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = Manifest.read(copy)
    open_classifier(copy, manifest, recipe=dataclasses.replace(SHORT, seed=5))
    other = write_digits(tmp_path / "other", rows_per_shard=900)
    identities = {SHORT.identity(manifest), SHORT.identity(other)}
    monkeypatch.setattr(recipe, "CODE_VERSION", recipe.CODE_VERSION + 1)
    opened(copy)
    assert trainings == ["digits", "digits"]
    assert len(identities | {SHORT.identity(manifest)}) == 3
    assert len([*copy.glob(".classifier-*")]) == 3


def _cut(place: Path) -> None:
    content = (place / TENSORS_FILE).read_bytes()
    (place / TENSORS_FILE).write_bytes(content[: len(content) // 2])


def _flip(place: Path) -> None:
    content = bytearray((place / TENSORS_FILE).read_bytes())
    content[-1] ^= 1
    (place / TENSORS_FILE).write_bytes(content)


def _change(**fields: object) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        record = json.loads((place / RECORD_FILE).read_text())
        (place / RECORD_FILE).write_text(json.dumps({**record, **fields}))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "SHA-256"),
        (_flip, "SHA-256"),
        (_change(weights_sha256="0" * 64), "its weights are not those"),
        (_change(identity="0" * 64), "of another classifier"),
        (_change(train_rows="many"), "train_rows"),
        (lambda place: (place / RECORD_FILE).write_text("{" * 1000), "JSON"),
    ],
)
def test_a_damaged_one_is_trained_again_with_a_word(
    copy: Path, trainings: list[str], log_lines: list[str], damage: Callable[[Path], None], said: str
) -> None:
    damage(place_of(copy))
    opened(copy)
    assert trainings == ["digits"]
    (line,) = log_lines
    assert f"{place_of(copy)} is damaged (" in line
    assert said in line
    assert line.endswith("the classifier is trained again")
    opened(copy)
    assert trainings == ["digits"]


def test_one_that_was_killed_before_its_record_is_trained_again(copy: Path, trainings: list[str]) -> None:
    (place_of(copy) / RECORD_FILE).unlink()
    opened(copy)
    opened(copy)
    assert trainings == ["digits"]


def test_two_at_once_train_it_once(
    copy: Path, trained: tuple[Path, DataClassifier], monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    shutil.rmtree(place_of(copy))
    waits, done = threading.Event(), []
    monkeypatch.setattr(kept, "_WAIT_SECONDS", 0.02)

    def train(*_: object) -> DataClassifier:
        assert waits.wait(60)  # the other one has found the lock taken
        done.append(1)
        return trained[1]

    monkeypatch.setattr(kept, "train_classifier", train)
    found: list[DataClassifier] = []

    def open_it() -> None:
        manifest = Manifest.read(copy)
        found.append(open_classifier(copy, manifest, recipe=SHORT, alive=waits.set))

    threads = [threading.Thread(target=open_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(found), done) == (2, [1])
    check_same(*found)
    assert [line for line in log_lines if "another process trains" in line] == [
        f"waiting for the classifier of {copy}, which another process trains"
    ]


def _refuse_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder be read-only, for the superuser too."""
    mkdir = Path.mkdir

    def refused(path: Path, *arguments: object, **options: object) -> None:
        if path.is_relative_to(folder):
            raise PermissionError(13, "Permission denied")
        mkdir(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refused)


def test_read_only_shards_leave_it_in_the_users_cache(
    copy: Path, trainings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    shutil.rmtree(place_of(copy))
    _refuse_below(copy, monkeypatch)
    opened(copy)
    (place,) = (tmp_path / "cache/causalfusion/classifiers").iterdir()
    assert f"the classifier of {copy} is kept in {place}" in log_lines
    opened(copy)
    assert trainings == ["digits"]


def test_without_any_place_it_is_trained_each_time(
    copy: Path, trainings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    shutil.rmtree(place_of(copy))
    _refuse_below(tmp_path, monkeypatch)
    opened(copy)
    opened(copy)
    assert trainings == ["digits", "digits"]
    assert f"the classifier of {copy} is not kept: the next command trains it again" in log_lines


def test_readers_of_the_shards_do_not_see_it(copy: Path) -> None:
    assert scan_shards(copy).checked.bad == {}
    assert is_replaceable(copy)
    before = Manifest.read(copy)
    assert write_digits(copy) == before
    assert place_of(copy).is_dir()
    assert len(pq.read_table(copy)) == 1797


def test_latents_are_no_images(copy: Path) -> None:
    manifest = Manifest.read(copy)
    coder = manifest.autoencoder.model_copy(update={"name": "AutoencoderKL"})
    with pytest.raises(UserError, match="are of AutoencoderKL: no classifier"):
        open_classifier(copy, manifest.model_copy(update={"autoencoder": coder}))
