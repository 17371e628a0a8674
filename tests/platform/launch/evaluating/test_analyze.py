"""Analyses of a run: its numbers by hand, its files, and refusals before anything is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.platform.checkpoint.made import put_weights

from causalfusion import SamplingConfig, load_weights, sample
from causalfusion_platform.checkpoint.find import find_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.pixels import to_pixels
from causalfusion_platform.evaluation.classifier.folder import open_classifier
from causalfusion_platform.evaluation.evaluate import SampleScorer
from causalfusion_platform.launch.evaluating.analyze import analyze_run, read_numbers
from causalfusion_platform.launch.runs.state import RunState

MakeRun = Callable[..., Path]
PLACES = {"ar_steps": [1, 4], "diffusion_steps": [2, 3], "num": 20}


@pytest.fixture
def make_run(make_experiment: Callable[..., Experiment], own_folder: Path, digits_folder: Path) -> MakeRun:
    """Return a function that makes a run on a copy of the digits, with weights of a tiny model."""

    def make(**changes: Any) -> Path:
        shards = own_folder / "shards"
        shutil.copytree(digits_folder, shards)
        experiment = make_experiment(data={"path": shards}, **changes)
        put_weights(experiment.run_dir, 64, seed=0)
        RunState(tracking_uri="", config=experiment.model_dump(mode="json")).write(experiment.run_dir)
        return experiment.run_dir

    return make


def test_numbers_and_figures_of_a_run(make_run: MakeRun, own_folder: Path) -> None:
    run, out, shown = make_run(), own_folder / "out", list[tuple[int, int]]()
    assert analyze_run(run, out, **PLACES, show=lambda *done: shown.append(done)) == out  # type: ignore[arg-type]
    found = json.loads((out / "analysis.json").read_text())
    assert shown == [(done, 6) for done in range(1, 7)]

    points = [(point["ar_steps"], point["diffusion_steps"]) for point in found["plane"]]
    assert points == list(product([1, 4], [2, 3]))
    shards = own_folder / "shards"
    classifier = open_classifier(shards, Manifest.read(shards))
    assert found["classifier_sha256"] == classifier.extractor.digest
    labels = torch.arange(20) % 10
    sampling = SamplingConfig(num_ar_steps=4, num_inference_steps=3)
    experiment = Experiment.model_validate(json.loads((run / "run.json").read_text())["config"])
    latents = sample(load_weights(find_weights(run).folder), labels, sampling, experiment.diffusion, seed=0)
    scores = SampleScorer(classifier).score(to_pixels(latents), labels)
    assert found["plane"][3]["class_accuracy"] == scores.class_accuracy
    assert found["plane"][3]["fd_digits_cnn"] == pytest.approx(scores.distance, rel=1e-3)

    assert {steps: len(losses) for steps, losses in found["loss_by_step"].items()} == {"1": 1, "4": 4}
    assert all(0 < loss < 10 for losses in found["loss_by_step"].values() for loss in losses)
    # γ = 1 draws S uniformly. A size of all 16 tokens is the one size of S = 1, and 1 + 2 + … + 16 sizes are drawn.
    laws = found["ar_step_sizes"]
    assert [*laws] == ["1", "0.95", "0.9", "0.8"]
    assert all(sum(law) == pytest.approx(1, abs=1e-6) for law in laws.values())
    assert laws["1"][15] == pytest.approx(1 / sum(range(1, 17)), rel=1e-5)
    for name in ("plane.png", "ar_step_sizes.png", "loss_by_step.png"):
        with Image.open(out / name) as figure:
            assert min(figure.size) > 200


@pytest.mark.parametrize(
    ("changes", "places", "message"),
    [
        ({}, {"ar_steps": [17]}, r"AR steps \[17\] .* must not exceed the run's 16 tokens and 1000 times"),
        ({}, {"diffusion_steps": [1001]}, r"diffusion steps \[1001\] must not exceed"),
        (
            {"model": {"preset": "digits-dit"}, "objective": {"num_ar_steps": 1}},
            {},
            "is a DiT, which has no AR steps to analyze",
        ),
    ],
)
def test_runs_and_places_that_do_not_fit_are_refused(
    make_run: MakeRun, own_folder: Path, changes: dict[str, Any], places: dict[str, Any], message: str
) -> None:
    run, out = make_run(**changes), own_folder / "out"
    with pytest.raises(UserError, match=message):
        analyze_run(run, out, **{**PLACES, **places})
    with pytest.raises(UserError, match="is no folder of a run\n  train one: causalfusion train quickstart"):
        analyze_run(own_folder, out, **PLACES)  # type: ignore[arg-type]
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "1,,2", "0", "-1", "1.5", "one"])
def test_numbers_of_the_command_line(text: str) -> None:
    assert read_numbers("1, 2,4") == [1, 2, 4]
    with pytest.raises(UserError, match="are not whole numbers such as 1,2,4"):
        read_numbers(text)
