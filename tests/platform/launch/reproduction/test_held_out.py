"""Denoising losses of trained rows: which images and draws they are of, when they are measured, what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tests.platform.checkpoint.made import facts, hash_files

from causalfusion import CausalFusion, Model, ObjectiveConfig, load_weights, save_weights
from causalfusion.analysis import validation_loss
from causalfusion.objective import Objective, draw
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.paper_table import Column
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.split_digits import validation_folder, write_split_digits
from causalfusion_platform.data.validate import open_shards
from causalfusion_platform.launch.reproduction import held_out
from causalfusion_platform.launch.reproduction.held_out import HeldOut, loss_at, open_held_out
from causalfusion_platform.launch.runs.folder import RunFolder

MakeExperiment = Callable[..., Experiment]
DRAWS = 2


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the training part of the digits, beside that of validation. Tests do not change them."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    write_split_digits(folder)
    return folder


@pytest.fixture
def experiment(make_experiment: MakeExperiment, digits: Path) -> Experiment:
    return make_experiment(data={"path": digits, "validation": validation_folder(digits)})


@pytest.fixture
def run(own_folder: Path, random_model: CausalFusion) -> RunFolder:
    """A run with a checkpoint of the random model."""
    run = RunFolder(own_folder / "runs/one")
    put(run, random_model, 6400)
    return run


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose weights are loaded to measure a loss."""
    found: list[Path] = []

    def load(folder: Path, **given: str) -> Model:
        found.append(folder)
        return load_weights(folder, **given)

    monkeypatch.setattr(held_out, "load_weights", load)
    return found


def put(run: RunFolder, model: CausalFusion, images: int, factor: float = 1.0) -> None:
    """Write a checkpoint of a model, whose parameters are multiplied."""
    folder = checkpoint_folder(run.root / "checkpoints", images)
    state = {name: factor * tensor.float() for name, tensor in model.state_dict().items()}
    save_weights(folder / "weights", model.config, state)
    write_manifest(folder, facts(images), hash_files(folder))


def kept(run: RunFolder) -> list[Path]:
    return sorted((run.root / "evaluation").iterdir())


def validation_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 300 digits of the validation part, straight from scikit-learn."""
    images, labels = load_digits(return_X_y=True)
    rows = np.sort(train_test_split(np.arange(1797), test_size=300, random_state=0)[1])
    latents = torch.from_numpy(images[rows].reshape(-1, 1, 8, 8) / 8 - 1).float()
    return latents, torch.from_numpy(labels[rows]).long()


# The loss


def test_losses_are_of_all_held_out_images_and_draws(experiment: Experiment, run: RunFolder) -> None:
    """The package's loss of the digits of scikit-learn's split, each of them twice, with draws of one seed."""
    latents, labels = validation_digits()
    model = load_weights(run.root / "checkpoints/images-000000006400/weights", device="cpu")
    found = open_held_out(experiment, DRAWS).losses(run, experiment, 3)
    twice = torch.cat([latents] * 2), torch.cat([labels] * 2)
    expected = validation_loss(model, *twice, experiment.diffusion, num_ar_steps=3, seed=1_000_000)
    assert found == pytest.approx(expected.tolist(), rel=1e-6)
    once = open_held_out(experiment, 1).losses(run, experiment, 3)
    first = validation_loss(model, latents, labels, experiment.diffusion, num_ar_steps=3, seed=1_000_000)
    assert once == pytest.approx(first.tolist(), rel=1e-6)
    assert once != pytest.approx(found, rel=1e-4)  # the second draw of an image is another one
    other = open_held_out(experiment, 1).losses(run, experiment, 3, seed=7)
    assert other != pytest.approx(once, rel=1e-4)


def test_the_loss_of_all_tokens_is_the_mean_over_tokens(experiment: Experiment, run: RunFolder) -> None:
    """Sixteen tokens in three AR steps are 6, 5 and 5: the mean of the steps' losses would be another number."""
    latents, labels = validation_digits()
    model = load_weights(run.root / "checkpoints/images-000000006400/weights", device="cpu")
    config = ObjectiveConfig(num_ar_steps=3, ar_weight=1.0, class_dropout=0.0)
    drawn = draw(model.config, config, experiment.diffusion, seed=1_000_000, step=0, samples=range(300))
    with torch.no_grad():
        errors = Objective(model, config, experiment.diffusion)(model, latents, labels, drawn).error_L
    assert errors.shape == (16,)
    losses = open_held_out(experiment, 1).losses(run, experiment, 3)
    column = Column(name="loss", metric="denoising_loss", ar_steps=3)
    assert loss_at(losses, column, 16) == pytest.approx(float(errors.double().mean()), rel=1e-5)
    assert np.mean(losses) != pytest.approx(float(errors.double().mean()), rel=1e-5)


@pytest.mark.parametrize("tokens", [16, 64])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 16])
def test_steps_of_unequal_size(tokens: int, steps: int) -> None:
    errors: NDArray[np.float64] = np.random.default_rng(steps).random(tokens)
    losses = [float(part.mean()) for part in np.array_split(errors, steps)]  # larger parts first
    whole = Column(name="loss", metric="denoising_loss", ar_steps=steps)
    assert loss_at(losses, whole, tokens) == pytest.approx(errors.mean(), rel=1e-12)
    for place, loss in enumerate(losses, 1):
        column = Column(name="loss", metric="denoising_loss", ar_steps=steps, ar_step=place)
        assert loss_at(losses, column, tokens) == loss


def test_the_first_images_of_a_large_folder(
    experiment: Experiment, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "LOSS_ROWS", 40)
    opened = open_held_out(experiment, DRAWS)
    latents, labels = (part[:40].repeat(DRAWS, *[1] * (part.ndim - 1)) for part in validation_digits())
    model = load_weights(run.root / "checkpoints/images-000000006400/weights", device="cpu")
    expected = validation_loss(model, latents, labels, experiment.diffusion, num_ar_steps=2, seed=1_000_000)
    assert opened.losses(run, experiment, 2) == pytest.approx(expected.tolist(), rel=1e-6)
    assert opened.origin.startswith("mean squared error of 40 held-out images of data ")


def test_what_the_numbers_are_of(experiment: Experiment) -> None:
    opened = open_held_out(experiment, DRAWS)
    digest = opened.checked.usable.digest
    assert opened.origin == (
        f"mean squared error of 300 held-out images of data {digest[:12]}, 2 draws of each, "
        "the same for all rows and seeds"
    )


# When it is measured


def test_a_loss_is_measured_once(experiment: Experiment, run: RunFolder, loads: list[Path]) -> None:
    found = open_held_out(experiment, DRAWS).losses(run, experiment, 4)
    [path] = kept(run)
    content = path.read_bytes()
    assert json.loads(content)["losses"] == found
    assert (len(found), len(loads)) == (4, 1)
    assert open_held_out(experiment, DRAWS).losses(run, experiment, 4) == found
    assert (kept(run), path.read_bytes(), len(loads)) == ([path], content, 1)


def test_a_changed_fact_is_measured_anew(
    experiment: Experiment,
    run: RunFolder,
    digits: Path,
    loads: list[Path],
    make_experiment: MakeExperiment,
    own_folder: Path,
) -> None:
    """S, the seed of the draws, their number, the data. All are kept beside each other."""
    opened = open_held_out(experiment, DRAWS)
    other = own_folder / "other"
    write_split_digits(other, seed=1)
    of_other = make_experiment(data={"path": other, "validation": validation_folder(other)})
    asked: list[Callable[[], list[float]]] = [
        lambda: opened.losses(run, experiment, 1),
        lambda: opened.losses(run, experiment, 2),
        lambda: opened.losses(run, experiment, 2, seed=5),
        lambda: dataclasses.replace(opened, draws=1).losses(run, experiment, 2),
        lambda: open_held_out(of_other, DRAWS).losses(run, of_other, 2),
    ]
    found = [losses() for losses in asked]
    assert len(loads) == len(kept(run)) == len(asked)
    assert len({tuple(losses) for losses in found}) == len(asked)
    assert [losses() for losses in asked] == found
    assert len(loads) == len(asked)


def test_other_weights_are_measured_anew(
    experiment: Experiment, run: RunFolder, random_model: CausalFusion, loads: list[Path]
) -> None:
    """A run that was trained on has a newer checkpoint."""
    opened = open_held_out(experiment, DRAWS)
    before = opened.losses(run, experiment, 2)
    put(run, random_model, 12_800, factor=0.5)
    after = opened.losses(run, experiment, 2)
    assert [folder.parent.name for folder in loads] == ["images-000000006400", "images-000000012800"]
    assert after != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: json.dumps(json.loads(text) | {"losses": [0.5]}),
        lambda text: json.dumps(json.loads(text) | {"losses": [0.5, "much"]}),
        lambda text: json.dumps(json.loads(text) | {"losses": None}),
        lambda text: json.dumps(json.loads(text) | {"draws": DRAWS + 1}),
        lambda text: json.dumps(json.loads(text) | {"more": 1}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "losses"}),
    ],
    ids=["empty", "cut", "list", "nothing", "too few", "a word", "null", "other draws", "more", "no losses"],
)
def test_a_damaged_file_is_measured_anew(
    experiment: Experiment, run: RunFolder, loads: list[Path], damage: Callable[[str], str]
) -> None:
    opened = dataclasses.replace(open_held_out(experiment, 1))
    found = opened.losses(run, experiment, 2)
    [path] = kept(run)
    content = path.read_text()
    path.write_text(damage(content))
    assert opened.losses(run, experiment, 2) == found
    assert (path.read_text(), len(loads)) == (content, 2)


# Refusals


def refusal(experiment: Experiment) -> str:
    with pytest.raises(UserError) as caught:
        open_held_out(experiment, DRAWS)
    return str(caught.value)


def test_no_held_out_images(make_experiment: MakeExperiment, digits: Path) -> None:
    said = refusal(make_experiment(data={"path": digits}))
    assert said.startswith("the table measures the denoising loss on images that no training sees, but data.valida")
    assert said.endswith("name their shards, with those of training: data.path=FOLDER data.validation=FOLDER")


def test_images_that_training_has_seen(make_experiment: MakeExperiment, digits: Path, own_folder: Path) -> None:
    said = refusal(make_experiment(data={"path": digits, "validation": digits}))
    assert said.startswith(f"data.validation: the shards in {digits} are marked train")
    write_split_digits(own_folder / "other", seed=1)
    beside = validation_folder(own_folder / "other")
    said = refusal(make_experiment(data={"path": digits, "validation": beside}))
    assert f"of 300 rows in {beside} are rows of {digits} too: " in said
    said = refusal(make_experiment(data={"path": digits, "validation": own_folder / "gone"}))
    assert said.startswith(f"data.validation: {own_folder}/gone is not a folder")


def test_an_earlier_check_of_the_training_shards_is_taken(
    experiment: Experiment, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = open_shards(digits)
    opened: list[object] = []

    def look(folder: Path, **given: object) -> object:
        opened.append(given["known"])
        return open_shards(folder)

    monkeypatch.setattr(held_out, "open_shards", look)
    assert isinstance(open_held_out(experiment, 1, known), HeldOut)
    assert opened == [known]
