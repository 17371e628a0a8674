"""`causalfusion generate`: a whole command in this process, and what is said instead of samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.platform.cli.conftest import Run, check_refusal

from causalfusion import CausalFusion, save_weights

FAST = ["num_inference_steps=2", "--local", "--num", "12", "--batch-size", "4", "--out", "out"]


@pytest.fixture
def weights(own_folder: Path, random_model: CausalFusion) -> Path:
    """A folder with the tiny random model in float32."""
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(own_folder / "weights", random_model.config, state)
    return own_folder / "weights"


def test_a_set_is_generated_and_then_there(run: Run, weights: Path, own_folder: Path) -> None:
    options = ["--ar-steps", "4", "--cfg", "1.5", "--labels", "random", "--classes", "3,8", "--uint8", "truncate"]
    result = run("generate", str(weights), *FAST, *options, "--png", "--json")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("generate 12/12 samples  ")
    assert lines[1:3] == ["writing samples.npz of 12 samples", "writing png of 12 samples"]
    assert "S = 4 AR step(s) of 16 tokens, 2 ddpm steps each, guidance 1.5" in result.out
    assert "random, 2 classes, seed 0" in result.out
    summary = json.loads(lines[-1])
    assert summary["folder"] == "out"
    assert summary["files"] == ["out/samples.npz", "out/png"]
    assert (summary["samples"], summary["made"]) == (12, 12)

    plan = json.loads((own_folder / "out/samples.json").read_text())["plan"]
    assert (plan["labels"], plan["classes"], plan["uint8"]) == ("random", [3, 8], "truncate")
    assert (plan["sampling"]["num_ar_steps"], plan["sampling"]["num_inference_steps"]) == (4, 2)
    with np.load(own_folder / "out/samples.npz", allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert set(labels.tolist()) == {3, 8}
    with Image.open(own_folder / "out/png/000/000011.png") as image:
        assert np.array_equal(np.asarray(image), images[11])

    again = run("generate", str(weights), *FAST, *options, "--json")
    assert again.out.startswith("all samples were there; nothing was generated\n")
    found = json.loads(again.out.splitlines()[-1])
    assert (found["made"], found["digest"]) == (0, summary["digest"])


def test_steps_can_be_options_or_settings(run: Run, weights: Path) -> None:
    common = [str(weights), "--local", "--num", "4", "--json"]
    digests = [
        json.loads(run("generate", *common, *given, "--out", name).out.splitlines()[-1])["digest"]
        for name, given in (
            ("a", ["--ar-steps", "2", "--steps", "3", "--cfg", "2"]),
            ("b", ["num_ar_steps=2", "sampling.num_inference_steps=3", "guidance_scale=2"]),
            ("c", ["num_ar_steps=2", "num_inference_steps=3", "guidance_scale=3"]),
        )
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--steps", "3"], ["--steps and num_inference_steps=… are the same setting"]),
        (["--ar-steps", "99"], ["99", "16 image tokens"]),
        (["--labels", "equal"], ["labels must be balanced or random, got 'equal'"]),
        (["--uint8", "floor"], ["uint8 must be round or truncate"]),
        (["--classes", "10"], ["labels '10': the model's classes are 0…9"]),
        (["--no-npz"], ["neither samples.npz nor PNGs are asked for", "--png"]),
        (["--workers", "2"], ["--local is one process without workers, but --workers 2"]),
        (["--vae", "nowhere"], ["no autoencoder in ", "nowhere"]),
        (["steps=3"], ["setting 'steps=3' is not KEY=VALUE"]),
    ],
)
def test_refusals(run: Run, weights: Path, own_folder: Path, arguments: list[str], parts: list[str]) -> None:
    check_refusal(run("generate", str(weights), *FAST, *arguments), *parts)
    assert not (own_folder / "out").exists()


def test_another_set_in_the_folder(run: Run, weights: Path) -> None:
    assert run("generate", str(weights), *FAST).status == 0
    check_refusal(run("generate", str(weights), *FAST, "--seed", "4"), "seed: was 0, now 4", "--out FOLDER")


def test_a_folder_without_weights(run: Run) -> None:
    check_refusal(run("generate", "runs/quickstart", *FAST), "no weights in runs/quickstart")


def test_options_out_of_range(run: Run, weights: Path) -> None:
    for option, value in (
        ("--num", "0"),
        ("--batch-size", "0"),
        ("--workers", "0"),
        ("--cfg", "-1"),
        ("--seed", "x"),
    ):
        result = run("generate", str(weights), option, value)
        assert result.status == 2
        assert result.err.startswith("Usage: ")
