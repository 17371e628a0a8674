"""Values of trained rows: classes drawn at every column, prompts at every guidance scale, and ends of runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tests.platform.checkpoint.made import facts, hash_files
from tests.platform.evaluation.tiny_extractor import TinyExtractor, random_images
from torch import Tensor

from causalfusion import CausalFusion, Model, build_model, load_weights, preset, save_weights
from causalfusion.analysis import validation_loss
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.paper_table import Column, Row, Scale
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.npz import read_images
from causalfusion_platform.data.split_digits import write_split_digits
from causalfusion_platform.evaluation.extractors.extractor import Features
from causalfusion_platform.evaluation.extractors.inception_extractor import FID_DIGEST, FID_SPACE
from causalfusion_platform.evaluation.reference import reference_from_images
from causalfusion_platform.launch.evaluating.measuring import Measuring
from causalfusion_platform.launch.generating.actors import LocalGenerator
from causalfusion_platform.launch.generating.generate import run_generate
from causalfusion_platform.launch.generating.request import GenerateRequest
from causalfusion_platform.launch.reproduction import measured
from causalfusion_platform.launch.reproduction.measurable import check_measurable
from causalfusion_platform.launch.reproduction.measured import RowMeasurer
from causalfusion_platform.launch.reproduction.rows import Reproduction, reproduction_of
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState

SAMPLES = 12
PROMPTS = Path("fid30k.jsonl")


class FewPixels(TinyExtractor):
    """Features of every other pixel, under the name of the space of FID."""

    def __init__(self) -> None:
        super().__init__(space=FID_SPACE, digest=FID_DIGEST)

    def features(self, images: Tensor) -> Features:
        return super().features(images[..., ::2, ::2])


def asked(*overrides: str, prompts: Path | None = PROMPTS, **given: Any) -> Reproduction:
    """Return one row of Table 6a at paper scale, of a few samples."""
    found = reproduction_of(
        "table6a",
        "paper",
        rows=["causalfusion"],
        overrides=["sampling.num_inference_steps=3", *overrides],
        prompts=prompts,
        **given,
    )
    plan = found.plan.model_copy(update={"samples": SAMPLES})
    table = found.table.model_copy(update={"scales": {**found.table.scales, "paper": plan}})
    return dataclasses.replace(found, table=table)


@pytest.fixture
def prompts(own_folder: Path) -> Path:
    """A file of prompts, one of them longer than the 12 tokens of the model."""
    texts = ["a bold seven", "a thin three", "a bold three that leans and leans"] * (SAMPLES // 3)
    PROMPTS.write_text("".join(f"{json.dumps({'caption': text})}\n" for text in texts))
    return PROMPTS


@pytest.fixture
def run(own_folder: Path, text_weights: Path) -> RunFolder:
    """A finished run of the row, of a tiny model."""
    found = asked()
    [(row, seed, run)] = [one for one in found.runs() if one[0] in found.rows]
    experiment = found.experiments[f"{row.file}.seed-{seed}"]
    checkpoint = run.root / "checkpoints/images-000000000064"
    shutil.copytree(text_weights, checkpoint / "weights")
    write_manifest(checkpoint, facts(64), hash_files(checkpoint))
    RunState(tracking_uri="sqlite:///x", config=experiment.model_dump(mode="json"), finished=True).write(run.root)
    run.write_summary({"cider_d_words": 0.4, "num_captions": 5000, "num_samples": 64})
    return run


def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Fréchet's distance of features (N, F), with the root of the product of covariances by Schur."""
    shift = first.mean(axis=0) - second.mean(axis=0)
    one, other = np.cov(first.T), np.cov(second.T)
    return float(shift @ shift + np.trace(one + other - 2 * sqrtm(one @ other).real))


def test_the_guidance_scale_with_the_lowest_distance_counts(
    run: RunFolder, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked("evaluation.guidance_scales=[2.0,5.0]")
    extractor, real = FewPixels(), random_images(40).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    reference = reference_from_images([real], extractor, source="40,504 images", keep=False)
    monkeypatch.setattr(measured, "open_measuring", lambda *_, **__: Measuring(extractor, reference, None))
    measurer = RowMeasurer(found, LocalGenerator())
    [(row, seed, _)] = [one for one in found.runs() if one[0] in found.rows]
    assert len(measurer.measure(row, seed, run)) == 3
    values = measurer.found()

    experiment = found.experiments["causalfusion.seed-0"]
    expected = {}
    for scale in (1.0, 2.0, 5.0):
        sampling = dataclasses.replace(experiment.sampling, guidance_scale=scale)
        request = GenerateRequest(
            checkpoint=run.root, num=SAMPLES, sampling=sampling, seed=0, prompts=prompts, cut_prompts=True
        )
        images = next(read_images(run_generate(request, LocalGenerator()).npz).batches(SAMPLES))
        features = extractor.features(_tensor(images)).pool
        expected[scale] = distance(features.double().numpy(), extractor.features(real).pool.double().numpy())
    assert len({round(value, 6) for value in expected.values()}) == 3
    best = min(expected, key=lambda scale: expected[scale])
    assert values.values == {
        ("causalfusion", "FID-30k", 0): pytest.approx(expected[best], rel=1e-6),
        ("causalfusion", "CIDEr", 0): 0.4,
    }
    assert f"4 cut, guidance {best:g} of 1, 2, 5" in values.spaces["fid"]
    assert "reference: 40,504 images, prompts: 12 of fid30k.jsonl (SHA-256 " in values.spaces["fid"]
    assert values.spaces["cider_d_words"] == "of 5000 captions and 64 drawings"
    assert values.first["causalfusion", "FID-30k", 0].shape[1:] == (8, 8, 3)
    again = RowMeasurer(found, LocalGenerator())
    assert not any(one.measured_now for one in again.measure(row, seed, run))
    assert again.found().values == values.values


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    return Tensor(images.transpose(0, 3, 1, 2).copy()).byte()


class FirstPixel:
    """Measures the first pixel of a set of samples, and says how many sets it measured."""

    provenance: ClassVar = {"space": "pixels", "weights_sha256": "0" * 64, "reference": "none"}
    reference: ClassVar = SimpleNamespace(image_size=None, source="none")
    count = 0

    def measure(self, npz: Path, labels: Tensor) -> dict[str, float]:
        self.count += 1
        return {"fd_data_cnn": float(next(read_images(npz).batches(1))[0, 0, 0, 0])}


@pytest.fixture
def first_pixel(monkeypatch: pytest.MonkeyPatch) -> FirstPixel:
    found = FirstPixel()
    monkeypatch.setattr(measured, "open_measuring", lambda *_, **__: found)
    return found


def of_a_tiny_model(table: str, row: str, model: Model, *overrides: str) -> tuple[Reproduction, Row, RunFolder]:
    """Return a row on MNIST with a finished run of seed 0, its data the digits in two parts, and 4 samples each."""
    write_split_digits(Path("digits"))
    data = ["data.path=digits", "data.validation=digits-validation"]
    overrides = ("sampling.num_inference_steps=2", *data, *overrides)
    found = reproduction_of(table, "mnist", rows=[row], seeds=[0], overrides=overrides)
    plan = found.plan.model_copy(update={"samples": 4, "validation_draws": 2})
    scales = {**found.table.scales, "mnist": plan}
    found = dataclasses.replace(found, table=found.table.model_copy(update={"scales": scales}))
    [(its, _, run)] = [one for one in found.runs() if one[0] in found.rows]
    checkpoint = run.root / "checkpoints/images-000000000064"
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    save_weights(checkpoint / "weights", model.config, state)
    write_manifest(checkpoint, facts(64), hash_files(checkpoint))
    config = found.experiments[f"{row}.seed-0"].model_dump(mode="json")
    RunState(tracking_uri="sqlite:///x", config=config, finished=True).write(run.root)
    return found, its, run


def first_pixel_at(found: Reproduction, run: RunFolder, seed: int = 0, **place: Any) -> float:
    """Return the first pixel of samples at a place, generated as the command does."""
    [experiment] = found.experiments.values()
    sampling = dataclasses.replace(experiment.sampling, **place)
    request = GenerateRequest(checkpoint=run.root, num=4, sampling=sampling, seed=seed)
    images = next(read_images(run_generate(request, LocalGenerator()).npz).batches(1))
    return float(images[0, 0, 0, 0])


def held_out_loss(found: Reproduction, run: RunFolder, ar_steps: int, seed: int = 1_000_000) -> list[float]:
    """Return the losses of a run's AR steps on the 300 digits, twice each, by the package."""
    [experiment] = found.experiments.values()
    images, labels = load_digits(return_X_y=True)
    rows = np.tile(np.sort(train_test_split(np.arange(1797), test_size=300, random_state=0)[1]), 2)
    latents = torch.from_numpy(images[rows].reshape(-1, 1, 8, 8) / 8 - 1).float()
    model = load_weights(run.root / "checkpoints/images-000000000064/weights", device="cpu")
    losses: list[float] = validation_loss(
        model,
        latents,
        torch.from_numpy(labels[rows]).long(),
        experiment.diffusion,
        num_ar_steps=ar_steps,
        seed=seed,
    ).tolist()
    return losses


def test_classes_are_drawn_at_the_place_of_each_column(
    own_folder: Path, random_model: CausalFusion, first_pixel: FirstPixel
) -> None:
    """And the loss is that of all tokens at each S."""
    found, row, run = of_a_tiny_model("table3a", "gamma-0.9", random_model, "model=tiny")
    measurer = RowMeasurer(found, LocalGenerator())
    assert len(measurer.measure(row, 0, run)) == first_pixel.count == 4
    expected: dict[tuple[str, str, int], object] = {}
    for steps in (1, 2, 4, 8):
        expected["gamma-0.9", f"S = {steps}", 0] = first_pixel_at(found, run, num_ar_steps=steps)
        mean = float(np.mean(held_out_loss(found, run, steps)))  # of AR steps of equal size
        expected["gamma-0.9", f"loss, S = {steps}", 0] = pytest.approx(mean, rel=1e-6)
    assert measurer.found().values == expected
    [digest] = {Manifest.read(Path("digits-validation")).digest[:12]}
    assert measurer.found().spaces == {
        "fd_data_cnn": "space pixels, weights 000000000000…, reference: none",
        "denoising_loss": f"mean squared error of 300 held-out images of data {digest}, 2 draws of each, "
        "the same for all rows and seeds",
    }
    again = RowMeasurer(found, LocalGenerator())
    assert not any(one.measured_now for one in again.measure(row, 0, run))
    assert (again.found().values, first_pixel.count) == (measurer.found().values, 4)


def test_figure_4_has_the_loss_of_the_rows_own_steps_and_of_two_of_eight(
    own_folder: Path, random_model: CausalFusion, first_pixel: FirstPixel
) -> None:
    found, row, run = of_a_tiny_model("figure4", "s-4", random_model, "model=tiny")
    measurer = RowMeasurer(found, LocalGenerator())
    measurer.measure(row, 0, run)
    first, *_, last = held_out_loss(found, run, 8)
    own = float(np.mean(held_out_loss(found, run, 4)))
    assert first != pytest.approx(last, rel=1e-3)
    assert measurer.found().values == {
        ("s-4", "S_eval = S_train", 0): first_pixel_at(found, run, num_ar_steps=4),
        ("s-4", "loss, S_eval = S_train", 0): pytest.approx(own, rel=1e-6),
        ("s-4", "loss of the first of 8 AR steps", 0): pytest.approx(first, rel=1e-6),
        ("s-4", "loss of the last of 8 AR steps", 0): pytest.approx(last, rel=1e-6),
    }


def test_a_column_may_name_the_order_of_sampling(
    own_folder: Path, random_model: CausalFusion, first_pixel: FirstPixel
) -> None:
    """Question 3 samples a model in four orders, whichever its own is."""
    found, row, run = of_a_tiny_model("question3", "raster", random_model, "model=tiny")
    measurer = RowMeasurer(found, LocalGenerator())
    assert len(measurer.measure(row, 0, run)) == first_pixel.count == 4
    orders: dict[str, dict[str, Any]] = {
        "raster": {"patch_order": "raster"},
        "blocks of 4×4": {"patch_order": "blockwise", "order_block": 4},
        "dilated": {"patch_order": "dilated", "order_block": 2},
        "random": {"patch_order": "random"},
    }
    expected = {
        ("raster", name, 0): first_pixel_at(found, run, num_ar_steps=8, **order) for name, order in orders.items()
    }
    assert measurer.found().values == expected


def test_a_dit_has_the_loss_of_one_ar_step(own_folder: Path, first_pixel: FirstPixel) -> None:
    """It has no more of them: a column of 8 stays empty."""
    torch.manual_seed(0)
    dit = build_model(preset("digits-dit", depth=1))
    found, row, run = of_a_tiny_model("table1", "dit", dit, "model.input_size=8", "model.depth=1")
    more = Column(name="loss, S = 8", metric="denoising_loss", ar_steps=8)
    rows = tuple(one.model_copy(update={"printed": (*one.printed, None)}) for one in found.table.rows)
    table = found.table.model_copy(update={"columns": (*found.table.columns, more), "rows": rows})
    measurer = RowMeasurer(dataclasses.replace(found, table=table), LocalGenerator())
    measurer.measure(row, 0, run)
    [loss] = held_out_loss(found, run, 1)
    assert measurer.found().values == {
        ("dit", "S = 1", 0): first_pixel_at(found, run),
        ("dit", "loss, S = 1", 0): pytest.approx(loss, rel=1e-6),
    }


def test_the_first_columns_are_measured_again_with_other_random_numbers(
    own_folder: Path, random_model: CausalFusion, first_pixel: FirstPixel
) -> None:
    """Samples of another seed, and losses of other draws, of the same weights. No samples are kept of it."""
    found, row, run = of_a_tiny_model("table3a", "gamma-0.9", random_model, "model=tiny")
    measurer = RowMeasurer(found, LocalGenerator())
    measurer.measure(row, 0, run)
    values = dict(measurer.found().values)
    sets = len([*run.root.rglob("*.npz")])
    measurer.measure_again(row, 0, run)
    assert len([*run.root.rglob("*.npz")]) == sets
    assert (measurer.found().values, first_pixel.count) == (values, 5)
    [(first, again)] = measurer.found().repeats["S = 1"]
    assert (first, again) == (
        values["gamma-0.9", "S = 1", 0],
        first_pixel_at(found, run, seed=1_000_000, num_ar_steps=1),
    )
    [(loss, other)] = measurer.found().repeats["loss, S = 1"]
    assert loss == values["gamma-0.9", "loss, S = 1", 0]
    assert other == pytest.approx(held_out_loss(found, run, 1, seed=1_000_001)[0], rel=1e-6)
    assert other != pytest.approx(loss, rel=1e-5)
    assert set(measurer.found().repeats) == {"S = 1", "loss, S = 1"}
    measurer.measure_again(row, 0, run)
    assert first_pixel.count == 5  # a second time the value is at hand


def test_nothing_is_measured_again_at_paper_scale_or_of_text(run: RunFolder) -> None:
    found = asked(prompts=None)
    measurer = RowMeasurer(found, LocalGenerator())
    [(row, seed, _)] = [one for one in found.runs() if one[0] in found.rows]
    measurer.measure(row, seed, run)
    measurer.measure_again(row, seed, run)
    assert measurer.found().repeats == {}


def test_without_prompts_the_end_of_the_run_is_taken_over(run: RunFolder) -> None:
    found = asked(prompts=None)
    measurer = RowMeasurer(found, LocalGenerator())
    [(row, seed, _)] = [one for one in found.runs() if one[0] in found.rows]
    assert measurer.measure(row, seed, run) == []
    assert measurer.found().values == {("causalfusion", "FID-30k", 0): None, ("causalfusion", "CIDEr", 0): 0.4}


def test_prompts_reference_and_extractor_belong_together(prompts: Path, own_folder: Path) -> None:
    given: dict[str, Any] = {"references": ["val2014.npz"], "extractor": "inception:weights.pth"}
    check_measurable(asked(prompts=None))
    for missing, option in (("references", "--reference val2014.npz"), ("extractor", "--extractor inception:PATH")):
        some = {name: value for name, value in given.items() if name != missing}
        with pytest.raises(UserError, match=f"row causalfusion draws from text: .*\n  add {option}, or leave out"):
            check_measurable(asked(**some))
    with pytest.raises(UserError, match=r"add --prompts fid30k\.jsonl, or leave out"):
        check_measurable(asked(prompts=None, **given))
    with pytest.raises(UserError, match=r"add --prompts .* --reference .*, or leave out"):
        check_measurable(asked(prompts=None, extractor="inception:weights.pth"))


def test_prompts_that_the_table_does_not_draw_are_refused(prompts: Path, own_folder: Path) -> None:
    def one(table: str, scale: Scale, row: str, prompts: Path | None = None) -> Reproduction:
        return reproduction_of(table, scale, rows=[row], seeds=[0], prompts=prompts)

    given: dict[str, Any] = {"references": ["val2014.npz"], "extractor": "inception:weights.pth"}
    few = dataclasses.replace(asked(**given), table=one("table6a", "paper", "causalfusion").table)
    with pytest.raises(UserError, match=r"fid30k\.jsonl has 12 prompts, but Table 6a draws 30,000\n.*data prompts"):
        check_measurable(few)
    with pytest.raises(UserError, match=r"nowhere\.jsonl: there is no such file"):
        check_measurable(asked(prompts=Path("nowhere.jsonl"), **given))
    with pytest.raises(UserError, match="Table 3a draws classes, not text\n  leave out --prompts"):
        check_measurable(one("table3a", "mnist", "gamma-0.9", prompts))
    with pytest.raises(UserError, match="at digits scale the end of each run draws held-out captions"):
        check_measurable(one("table6a", "digits", "causalfusion", prompts))
