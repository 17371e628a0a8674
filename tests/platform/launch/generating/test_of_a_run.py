"""Sample sets of a run are made as the run says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from tests.platform.checkpoint.made import facts, hash_files
from tests.platform.launch.generating.asked import FEW, Nobody
from torch import Tensor

from causalfusion import DiffusionConfig, SamplingConfig
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import AutoencoderId, Manifest
from causalfusion_platform.data.npz import read_images
from causalfusion_platform.launch.evaluating.evaluate import PlanePoint, evaluate
from causalfusion_platform.launch.generating.actors import LocalGenerator
from causalfusion_platform.launch.generating.generate import run_generate
from causalfusion_platform.launch.generating.request import GenerateRequest, plan_set
from causalfusion_platform.launch.runs.state import RunState


@pytest.fixture
def of_a_run(tmp_path: Path, weights: Path, make_experiment: Callable[..., Experiment]) -> Path:
    """A run with one checkpoint that samples in its own way."""
    experiment = make_experiment(
        seed=7,
        sampling=dataclasses.asdict(FEW),
        diffusion={"num_train_steps": 50},
        evaluation={"batch_size": 3},
    )
    checkpoint = experiment.run_dir / "checkpoints/images-000000000064"
    shutil.copytree(weights, checkpoint / "weights")
    write_manifest(checkpoint, facts(64), hash_files(checkpoint))
    RunState(tracking_uri="sqlite:///x", config=experiment.model_dump(mode="json")).write(experiment.run_dir)
    return experiment.run_dir


def test_a_run_says_how(of_a_run: Path) -> None:
    plan, folder = plan_set(GenerateRequest(checkpoint=of_a_run, num=4))
    assert (plan.sampling, plan.seed, plan.batch_size) == (FEW, 7, 3)
    assert plan.diffusion == DiffusionConfig(num_train_steps=50)
    assert folder == of_a_run / "samples" / plan.name
    assert plan.weights == of_a_run / "checkpoints/images-000000000064/weights"
    same, _ = plan_set(GenerateRequest(checkpoint=of_a_run, num=4, classes="0-9", vae="identity"))
    assert same.identity == plan.identity
    changed, elsewhere = plan_set(GenerateRequest(checkpoint=of_a_run, num=4, settings=["num_ar_steps=4"], seed=0))
    assert (changed.sampling, changed.seed) == (dataclasses.replace(FEW, num_ar_steps=4), 0)
    assert elsewhere != folder


def test_sets_of_a_run_lie_side_by_side(of_a_run: Path) -> None:
    done = [
        run_generate(GenerateRequest(checkpoint=of_a_run, num=4, settings=settings), LocalGenerator())
        for settings in ([], ["guidance_scale=1"], [])
    ]
    assert [one.made for one in done] == [4, 4, 0]
    assert len({one.folder for one in done}) == 2


def test_without_a_run_the_papers_settings_are_taken(weights: Path, tmp_path: Path) -> None:
    plan, _ = plan_set(GenerateRequest(checkpoint=weights, num=4, settings=["num_inference_steps=9"], out=tmp_path))
    assert plan.sampling == SamplingConfig(num_inference_steps=9)
    assert (plan.seed, plan.batch_size, plan.diffusion) == (0, 64, DiffusionConfig(num_train_steps=100))


class Counting:
    """Measures how many images there are."""

    provenance: ClassVar = {"space": "count", "weights_sha256": "0" * 64}
    reference: ClassVar = SimpleNamespace(image_size=None, source="none")

    def measure(self, npz: Path, labels: Tensor) -> dict[str, float]:
        return {"count": float(len(read_images(npz).batches(100).__next__()))}


@pytest.mark.parametrize("there", [False, True])
def test_measuring_leaves_a_set_that_was_there(of_a_run: Path, there: bool) -> None:
    """What is generated only to be measured is removed; what somebody has generated stays."""
    request = GenerateRequest(checkpoint=of_a_run, num=4)
    _, folder = plan_set(request)
    if there:
        run_generate(request, LocalGenerator())
    measuring: Any = Counting()
    [found] = evaluate(request, [PlanePoint()], measuring, LocalGenerator(), keep_samples=False)
    assert (found.metrics, found.measured_now) == ({"count": 4.0}, True)
    assert (folder / "samples.npz").is_file() == there
    [again] = evaluate(request, [PlanePoint()], measuring, LocalGenerator(), keep_samples=False)
    assert (again.metrics, again.measured_now) == ({"count": 4.0}, False)


def test_progress_is_counted_over_all_places(of_a_run: Path) -> None:
    """A place that was measured before counts as done."""
    request = GenerateRequest(checkpoint=of_a_run, num=4, batch_size=2)
    seen: list[tuple[int, int]] = []
    places = [PlanePoint(diffusion_steps=steps) for steps in (2, 3, 4)]
    measuring: Any = Counting()
    evaluate(request, places[:1], measuring, LocalGenerator())
    evaluate(request, places, measuring, LocalGenerator(), show=lambda one: seen.append((one.done, one.total)))
    assert (seen[-1], {total for _, total in seen}) == ((12, 12), {12})
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[0][0] > 4


def test_classes_have_names(of_a_run: Path) -> None:
    """Those beside the weights."""
    names = [*"abcdefghi", "a cat, a dog"]
    weights = of_a_run / "checkpoints/images-000000000064/weights"
    (weights / "classes.json").write_text(json.dumps(names))
    plan, _ = plan_set(GenerateRequest(checkpoint=of_a_run, num=4, classes="a cat, a dog,b,3"))
    assert plan.classes == (9, 1, 3)
    with pytest.raises(UserError, match="'cat' is neither a number"):
        plan_set(GenerateRequest(checkpoint=of_a_run, num=4, classes="cat"))


def test_a_reference_of_another_size_is_refused_before_anything_is_generated(of_a_run: Path) -> None:
    class Larger(Counting):
        reference: ClassVar = SimpleNamespace(image_size=32, source="large.npz")

    measuring: Any = Larger()
    with pytest.raises(
        UserError, match=r"large\.npz\) is of images of 32×32 pixels, the samples have 8×8\n  .*--ref"
    ):
        evaluate(GenerateRequest(checkpoint=of_a_run, num=4), [PlanePoint()], measuring, Nobody())
    assert not (of_a_run / "samples").exists()


def test_another_autoencoder_than_that_of_the_runs_latents_is_refused(of_a_run: Path, digits_folder: Path) -> None:
    """The run names it. A run of an earlier version does not, and its shards do."""
    made = AutoencoderId(name="AutoencoderKL", scale=0.5, weights_sha256="a" * 64)
    request = GenerateRequest(checkpoint=of_a_run, num=4)
    plan_set(request)  # not known: its shards are gone
    state = RunState.read(of_a_run)
    assert state is not None
    state.model_copy(update={"autoencoder": made}).write(of_a_run)
    for vae, part in ((None, "name it: --vae PATH"), ("identity", "--vae identity is another autoencoder than")):
        with pytest.raises(UserError, match=r"AutoencoderKL, scale 0\.5, weights aaaaaaaaaaaaaaaa") as caught:
            plan_set(GenerateRequest(checkpoint=of_a_run, num=4, vae=vae))
        assert part in str(caught.value)
    config = {**state.config, "data": {**state.config["data"], "path": "shards"}}
    state.model_copy(update={"config": config}).write(of_a_run)
    shutil.copytree(digits_folder, "shards")
    plan_set(request)  # the pixels that it samples
    Manifest.read(Path("shards")).model_copy(update={"autoencoder": made}).write(Path("shards"))
    with pytest.raises(UserError, match="made by an autoencoder: AutoencoderKL"):
        plan_set(request)
