"""`causalfusion sample` and `causalfusion edit`: pictures, and what is said instead of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFont
from tests.platform.checkpoint.made import facts, hash_files
from tests.platform.cli.conftest import Run, check_refusal

from causalfusion import CausalFusion, save_weights
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import AutoencoderId
from causalfusion_platform.launch.runs.state import RunState

GAP, CELL = 6, 48
FAST = "num_inference_steps=2"


@pytest.fixture
def weights(own_folder: Path, random_model: CausalFusion) -> Path:
    """A folder with the tiny random model in float32."""
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(own_folder / "weights", random_model.config, state)
    return own_folder / "weights"


@pytest.fixture
def of_a_run(own_folder: Path, weights: Path, make_experiment: Callable[..., Experiment]) -> Path:
    """The folder of a run that samples in its own way, with one checkpoint."""
    experiment = make_experiment(
        sampling={
            "num_ar_steps": 2,
            "num_inference_steps": [2, 3],
            "guidance_scale": 2.5,
            "sampler": "ddim",
            "guidance_interval": [0, 700],
        }
    )
    checkpoint = experiment.run_dir / "checkpoints/images-000000000064"
    checkpoint.mkdir(parents=True)
    weights.rename(checkpoint / "weights")
    write_manifest(checkpoint, facts(64), hash_files(checkpoint))
    state = RunState(mlflow_run_id="abc", tracking_uri="sqlite:///x", config=experiment.model_dump(mode="json"))
    state.write(experiment.run_dir)
    return experiment.run_dir


def pixels_of(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def cells_of(path: Path, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return the samples of a grid: (rows, columns, CELL, CELL, 3)."""
    pixels = pixels_of(path)
    assert pixels.shape[0] == rows * (CELL + GAP) + GAP
    body = pixels[GAP:, pixels.shape[1] - columns * (CELL + GAP) :]
    cells = body.reshape(rows, CELL + GAP, columns, CELL + GAP, 3)[:, :CELL, :, :CELL]
    return cells.transpose(0, 2, 1, 3, 4)


# Samples


def test_a_grid_is_drawn(run: Run, weights: Path, own_folder: Path) -> None:
    arguments = ["--labels", "0,3-4", "--per-label", "2", "--grid", "new/grid.png"]
    result = run("sample", str(weights), FAST, "num_ar_steps=4", *arguments)
    assert (result.status, result.err) == (0, "")
    said = "6 samples: S = 4 AR step(s) of 16 tokens, 2 ddpm steps each, guidance 1\nnew/grid.png\n"
    assert result.out == said
    cells = cells_of(own_folder / "new/grid.png", 3, 2)
    assert len({cell.tobytes() for row in cells for cell in row}) == 6


def test_the_seed_decides(run: Run, weights: Path, own_folder: Path) -> None:
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        run("sample", str(weights), FAST, "--per-label", "2", "--seed", seed, "--grid", name)
    a, b, c = (cells_of(own_folder / name, 1, 2) for name in ("a.png", "b.png", "c.png"))
    assert np.array_equal(a, b)
    assert not np.array_equal(a[0, 0], c[0, 0])


def test_a_run_samples_as_it_did(run: Run, of_a_run: Path, own_folder: Path) -> None:
    """Whether the run, a checkpoint of it or its weights are named; settings change what they name."""
    checkpoint = of_a_run / "checkpoints/images-000000000064"
    pictures = []
    for path in (of_a_run, checkpoint, checkpoint / "weights"):
        result = run("sample", str(path), "--per-label", "1")
        assert "S = 2 AR step(s) of 16 tokens, 2+3 ddim steps each, guidance 2.5" in result.out
        pictures.append((own_folder / "samples.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    result = run("sample", str(of_a_run), "sampling.guidance_scale=1", "num_inference_steps=4", "--per-label", "1")
    assert "S = 2 AR step(s) of 16 tokens, 4 ddim steps each, guidance 1" in result.out
    assert (own_folder / "samples.png").read_bytes() != pictures[0]


def test_without_a_run_the_papers_settings_are_taken(run: Run, of_a_run: Path, own_folder: Path) -> None:
    (of_a_run / "checkpoints/images-000000000064/weights").rename(own_folder / "alone")
    result = run("sample", "alone", "--per-label", "1")
    assert "S = 1 AR step(s) of 16 tokens, 250 ddpm steps each, guidance 1" in result.out


@pytest.mark.parametrize("content", ["{", "", "[]", None])
def test_a_run_whose_state_is_damaged_or_missing(
    run: Run, of_a_run: Path, own_folder: Path, content: str | None
) -> None:
    """The weights are enough. Their noise process lies beside them, the settings of sampling do not."""
    if content is None:
        (of_a_run / "run.json").unlink()
    else:
        (of_a_run / "run.json").write_text(content)
    result = run("sample", str(of_a_run), FAST, "--per-label", "1")
    assert result.status == 0
    assert "S = 1 AR step(s) of 16 tokens, 2 ddpm steps each, guidance 1" in result.out
    said = f"settings of sampling are not known, so defaults are taken: {of_a_run / 'run.json'} is damaged: "
    assert (said in result.err) == (content is not None)
    assert (own_folder / "samples.png").is_file()


def test_classes_go_by_their_names(run: Run, weights: Path, own_folder: Path) -> None:
    """They lie beside the weights; the rows of grids bear them."""
    numbers = ["3,1", "1"]
    for name, labels in zip(("a.png", "b.png"), numbers, strict=True):
        run("sample", str(weights), FAST, "--labels", labels, "--per-label", "2", "--grid", name)
    run("edit", str(weights), FAST, "--from", "3", "--labels", "1,3", "--per-label", "2", "--grid", "c.png")
    names = ["plane", "bird", "cat", "a very long name of a dog, a collie", *"efghij"]
    (weights / "classes.json").write_text(json.dumps(names))
    named = "a very long name of a dog, a collie,bird"
    result = run("sample", str(weights), FAST, "--labels", named, "--per-label", "2", "--grid", "named.png")
    assert (result.status, result.err) == (0, "")
    assert np.array_equal(cells_of(own_folder / "named.png", 2, 2), cells_of(own_folder / "a.png", 2, 2))
    font = ImageFont.load_default(size=CELL // 3)
    width = int(font.getlength("a very long name of a d…")) + 3 * GAP + 2 * (CELL + GAP)
    assert pixels_of(own_folder / "named.png").shape[1] == width
    arguments = ["--from", names[3], "--labels", "bird,3", "--per-label", "2", "--grid", "edited.png"]
    assert run("edit", str(weights), FAST, *arguments).status == 0
    assert np.array_equal(cells_of(own_folder / "edited.png", 3, 2), cells_of(own_folder / "c.png", 3, 2))
    assert pixels_of(own_folder / "edited.png").shape[1] > pixels_of(own_folder / "c.png").shape[1]
    check_refusal(run("sample", str(weights), "--labels", "brid"), "did you mean 'bird'?")
    for damaged, part in (('["a"]', "has 1 names for 10 classes"), ("{", "classes.json: "), ("{}", "not a list")):
        (weights / "classes.json").write_text(damaged)
        check_refusal(run("sample", str(weights)), part, "restore the file, or remove it")


@pytest.mark.parametrize("verb", ["sample", "edit"])
def test_another_autoencoder_than_the_runs_is_refused(
    run: Run, of_a_run: Path, own_folder: Path, verb: str
) -> None:
    made = AutoencoderId(name="AutoencoderKL", scale=0.5, weights_sha256="a" * 64)
    state = RunState.read(of_a_run)
    assert state is not None
    state.model_copy(update={"autoencoder": made}).write(of_a_run)
    check_refusal(run(verb, str(of_a_run)), "made by an autoencoder: AutoencoderKL", "--vae PATH")
    check_refusal(run(verb, str(of_a_run), "--vae", "identity"), "--vae identity is another autoencoder than")
    assert not (own_folder / "samples.png").exists()


# Edits


def test_the_first_row_has_the_originals(run: Run, weights: Path, own_folder: Path) -> None:
    """The lower half is kept, and so is drawn as it was; each row above is another class."""
    arguments = ["--from", "3", "--labels", "3,8", "--keep", "bottom", "--per-label", "2"]
    result = run("edit", str(weights), FAST, *arguments)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("4 edits, bottom kept: S = 1 AR step(s)")
    assert result.out.endswith("\nedits.png\n")
    cells = cells_of(own_folder / "edits.png", 3, 2)
    upper, lower = cells[:, :, : CELL // 2], cells[:, :, CELL // 2 :]
    for row in (1, 2):
        assert np.array_equal(lower[row], lower[0])
        for edited, original in zip(upper[row], upper[0], strict=True):
            assert not np.array_equal(edited, original)
    assert not np.array_equal(upper[1], upper[2])
    run("sample", str(weights), FAST, "--labels", "3", "--per-label", "2")
    assert np.array_equal(cells_of(own_folder / "samples.png", 1, 2)[0], cells[0])


def test_an_image_and_a_mask_from_files(run: Run, weights: Path, own_folder: Path) -> None:
    mask, image = np.zeros((8, 8), np.uint8), np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(own_folder / "mask.png")
    Image.fromarray(image).save(own_folder / "image.png")
    arguments = ["--from", "image.png", "--keep", "mask.png", "--per-label", "1", "--grid", "out.png"]
    assert run("edit", str(weights), FAST, *arguments).status == 0
    original, edited = cells_of(own_folder / "out.png", 2, 1)[:, 0, :, :, 0]
    enlarged = image.repeat(CELL // 8, axis=0).repeat(CELL // 8, axis=1)
    assert np.array_equal(original, enlarged)
    assert np.array_equal(edited[:, : CELL // 2], enlarged[:, : CELL // 2])
    assert (edited[:, CELL // 2 :] != enlarged[:, CELL // 2 :]).mean() > 0.5


# What is said instead


@pytest.mark.parametrize("verb", ["sample", "edit"])
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["steps=3"], "setting 'steps=3' is not KEY=VALUE with one of the keys num_ar_steps"),
        (["num_ar_steps=four"], "num_ar_steps=four: num_ar_steps: Input should be a valid integer"),
        (["num_ar_steps=99"], "99"),
        (["--labels", "10"], "labels '10': the model's classes are 0…9"),
        (["--labels", "three"], "labels 'three' are not numbers such as 3, 0,2,7 or 0-9"),
        (["--grid", "out.xyz"], "out.xyz has no suffix of pictures"),
        (["--vae", "nowhere"], "no autoencoder in nowhere"),
    ],
)
def test_refusals(run: Run, weights: Path, own_folder: Path, verb: str, arguments: list[str], part: str) -> None:
    check_refusal(run(verb, str(weights), FAST, *arguments), part)
    assert [path.name for path in own_folder.iterdir()] == ["weights"]


@pytest.mark.parametrize("verb", ["sample", "edit"])
def test_a_folder_without_weights(run: Run, own_folder: Path, verb: str) -> None:
    check_refusal(run(verb, "runs/quickstart"), "no weights in runs/quickstart", "causalfusion weights import")


def test_refusals_of_edits(run: Run, weights: Path) -> None:
    message = "--keep 'left' is no image file and none of center, outside, top, bottom"
    check_refusal(run("edit", str(weights), FAST, "--keep", "left"), message)
    check_refusal(run("edit", str(weights), FAST, "--from", "me.jpg"), "labels 'me.jpg' are not numbers")
    check_refusal(run("edit", str(weights), FAST, "--keep", str(weights / "config.json")), "not a readable image")


def test_options_out_of_range(run: Run, weights: Path) -> None:
    for arguments in (["--per-label", "0"], ["--seed", "-1"], ["--seed", "x"]):
        result = run("sample", str(weights), *arguments)
        assert result.status == 2
        assert result.err.startswith("Usage: ")
