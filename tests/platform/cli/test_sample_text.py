"""`causalfusion sample --text` and `causalfusion edit --text`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tests.platform.cli.conftest import Run, check_refusal

from causalfusion import (
    CausalFusion,
    DiffusionConfig,
    Prompts,
    SamplingConfig,
    build_model,
    load_weights,
    preset,
    sample,
    save_weights,
)
from causalfusion.weights.folder import load_tokenizer

GAP, CELL, PIXEL = 6, 48, 6
FAST = "num_inference_steps=2"
SEVEN, THREE = "a bold seven", "a thin three"


def cells_of(path: Path, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return the samples at the right of a picture, one value a pixel: (rows, columns, 8, 8)."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] == rows * (CELL + GAP) + GAP
    body = pixels[GAP:, pixels.shape[1] - columns * (CELL + GAP) - 2 * GAP :][:, : columns * (CELL + GAP)]
    cells = body.reshape(rows, CELL + GAP, columns, CELL + GAP)[:, :CELL:PIXEL, :, :CELL:PIXEL]
    return cells.transpose(0, 2, 1, 3)


@pytest.fixture
def class_weights(own_folder: Path, random_model: CausalFusion) -> Path:
    """A folder with the tiny random model of classes."""
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(own_folder / "classes", random_model.config, state)
    return own_folder / "classes"


def test_samples_are_those_of_the_model(run: Run, text_weights: Path, own_folder: Path) -> None:
    """Two rows of two, at S = 4 and with guidance: the same numbers as the model package gives."""
    arguments = ["--text", SEVEN, "--text", THREE, "--per-label", "2", "--seed", "3", "--grid", "new/grid.png"]
    result = run("sample", str(text_weights), FAST, "num_ar_steps=4", "guidance_scale=2.5", *arguments)
    assert result.status == 0
    said = "4 samples: S = 4 AR step(s) of 16 tokens, 2 ddpm steps each, guidance 2.5\nnew/grid.png\n"
    assert result.out == said
    tokenizer = load_tokenizer(text_weights)
    prompts = Prompts.of([tokenizer.encode(text) for text in (SEVEN, SEVEN, THREE, THREE)])
    plane = SamplingConfig(num_ar_steps=4, num_inference_steps=2, guidance_scale=2.5)
    expected = sample(load_weights(text_weights), prompts, plane, DiffusionConfig(), seed=3)
    pixels = (127.5 * expected + 127.5).clamp(0, 255).round().numpy().astype(np.int64).reshape(2, 2, 8, 8)
    assert np.abs(cells_of(own_folder / "new/grid.png", 2, 2) - pixels).max() <= 1


def test_edits_keep_what_they_should(run: Run, text_weights: Path, own_folder: Path) -> None:
    """The first row has originals of a prompt or a file. Below them the lower half stays, and the upper is new."""
    gray = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(gray).save(own_folder / "digit.png")
    for source in ([], ["--from", THREE], ["--from", "digit.png"]):
        arguments = ["--text", SEVEN, "--text", THREE, "--keep", "bottom", "--per-label", "2"]
        result = run("edit", str(text_weights), FAST, *source, *arguments)
        assert result.status == 0
        assert result.out.startswith("4 edits, bottom kept: S = 1 AR step(s)")
        cells = cells_of(own_folder / "edits.png", 3, 2)
        for row in (1, 2):
            assert np.array_equal(cells[row, :, 4:], cells[0, :, 4:])
            assert not np.array_equal(cells[row, :, :4], cells[0, :, :4])
        assert not np.array_equal(cells[1, :, :4], cells[2, :, :4])
        if source == ["--from", "digit.png"]:
            assert np.array_equal(cells[0, 0], gray)


# What is said instead


@pytest.mark.parametrize("verb", ["sample", "edit"])
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--text", SEVEN, "--labels", "3"], ["--labels and --text exclude each other"]),
        (["--labels", "3"], ["this model draws from text and has no classes", 'give --text "…"']),
        ([], ["this model draws from text", '--text "…"']),
        (["--text", " "], ["a prompt must have words, got ' '"]),
        (["--text", SEVEN, "--text", ""], ["a prompt must have words, got ''"]),
        (["--text", "xyz" * 100], ["'xyzxyz", "…' has 302 tokens", "takes at most 12"]),
        (["--text", SEVEN, "num_ar_steps=99"], ["99"]),
    ],
)
def test_refusals_of_a_model_of_text(
    run: Run, text_weights: Path, own_folder: Path, verb: str, arguments: list[str], parts: list[str]
) -> None:
    check_refusal(run(verb, str(text_weights), FAST, *arguments), *parts)
    assert not list(own_folder.iterdir())


@pytest.mark.parametrize("verb", ["sample", "edit"])
def test_a_model_of_classes_takes_no_text(run: Run, class_weights: Path, verb: str) -> None:
    said = ["this model draws classes, not text", "--labels 0, up to --labels 0-9"]
    check_refusal(run(verb, str(class_weights), FAST, "--text", SEVEN), *said)
    check_refusal(run(verb, str(class_weights), FAST, "--text", SEVEN, "--labels", "1"), "exclude each other")


def test_a_dit_takes_no_text(run: Run, own_folder: Path) -> None:
    model = build_model(preset("digits-dit", hidden_size=8, num_heads=2, depth=1))
    save_weights(own_folder / "dit", model.config, model.state_dict())
    check_refusal(run("sample", "dit", FAST, "--text", SEVEN), "this DiT draws classes, not text", "--labels 0")


def test_a_transfusion_has_one_ar_step(run: Run, text_weights: Path, own_folder: Path) -> None:
    folder = own_folder / "weights"
    folder.mkdir()
    for file in text_weights.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"causalfusion"', '"transfusion"'))
    asked = ["--text", SEVEN, "--per-label", "2"]
    assert run("sample", "weights", FAST, *asked).status == 0
    said = "a Transfusion has no AR steps: num_ar_steps must be 1, got 2"
    check_refusal(run("sample", "weights", FAST, "num_ar_steps=2", *asked), said)
    generate = ["generate", "weights", FAST, "num_ar_steps=2", "--prompts", "p.jsonl", "--out", "out"]
    check_refusal(run(*generate), said)
    check_refusal(run("edit", "weights", FAST, *asked), "a Transfusion has no AR steps and takes no clean tokens")


def test_originals_from_a_file_that_is_not_there(run: Run, text_weights: Path) -> None:
    arguments = ["--text", SEVEN, "--from", "me.jpg"]
    check_refusal(run("edit", str(text_weights), FAST, *arguments), "there is no image me.jpg", "--from FILE")
    long = ["--text", SEVEN, "--from", "long " * 100]
    check_refusal(run("edit", str(text_weights), FAST, *long), "tokens", "takes at most 12")


def test_the_tokenizer_must_be_that_of_training(run: Run, text_weights: Path, own_folder: Path) -> None:
    folder = own_folder / "weights"
    folder.mkdir()
    for file in text_weights.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    other = (folder / "tokenizer.json").read_text().replace("{", "{ ", 1)
    (folder / "tokenizer.json").write_text(other)
    check_refusal(run("sample", "weights", "--text", SEVEN), "is not the tokenizer of the model's training")
    (folder / "tokenizer.json").unlink()
    said = ["there is no tokenizer at weights/tokenizer.json", "copy the tokenizer.json of the model's training"]
    check_refusal(run("sample", "weights", "--text", SEVEN), *said)
