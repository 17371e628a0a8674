"""Sample sets made in this process: interrupted at any point, they end with the very bytes of one that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.platform.checkpoint.made import facts

from causalfusion import (
    CausalFusion,
    DiffusionConfig,
    SamplingConfig,
    build_model,
    load_weights,
    preset,
    save_weights,
)
from causalfusion_platform.checkpoint.manifest import hash_files, write_manifest
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.npz import read_images
from causalfusion_platform.launch import generate as launch
from causalfusion_platform.launch.ended import StoppedRun
from causalfusion_platform.launch.generate import GeneratedSet, run_generate
from causalfusion_platform.launch.generate_plan import GenerateRequest, plan_set
from causalfusion_platform.launch.generators import LocalGenerator
from causalfusion_platform.launch.lock import only_launch
from causalfusion_platform.launch.run_folder import RunState
from causalfusion_platform.sampling.progress import Generating

FEW = SamplingConfig(num_inference_steps=2, num_ar_steps=2, guidance_scale=1.5)
NUM, BATCH = 10, 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, random_model: CausalFusion) -> Path:
    """The tiny random model in float32."""
    folder = tmp_path_factory.mktemp("generate") / "weights"
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(folder, random_model.config, state, DiffusionConfig(num_train_steps=100))
    return folder


def request_of(weights: Path, out: Path | None, **changes: Any) -> GenerateRequest:
    fields: dict[str, Any] = {"sampling": FEW, "num": NUM, "batch_size": BATCH, "out": out, "seed": 5}
    return GenerateRequest(checkpoint=weights, **{**fields, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> GeneratedSet:
    """A set that nothing interrupted: five parts, both kinds of files."""
    return run_generate(request_of(weights, tmp_path_factory.mktemp("whole") / "out", png=True), LocalGenerator())


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the lock and the plan, which names its place."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "samples.json")
    }


class Nobody(LocalGenerator):
    """Fails if anything is to be generated."""

    def start(self) -> None:
        raise AssertionError("it starts")


# A whole set


def test_a_set_is_there_with_its_labels(whole: GeneratedSet) -> None:
    assert (whole.made, whole.outputs) == (NUM, ["npz", "png"])
    assert whole.plan.num_parts == 5
    opened = read_images(whole.npz)
    assert opened.shape == (NUM, 8, 8, 3)
    labels = opened.labels()
    assert labels is not None
    assert labels.tolist() == list(range(10))
    assert len(list(whole.png.rglob("*.png"))) == NUM
    assert {path.name for path in whole.folder.iterdir()} == {".lock", "samples.json", "samples.npz", "png"}


def test_progress_is_told_by_part(tmp_path: Path, weights: Path) -> None:
    seen: list[Generating] = []
    run_generate(request_of(weights, tmp_path / "out"), LocalGenerator(), show=seen.append)
    assert [report.done for report in seen] == [2, 4, 6, 8, 10]
    assert {report.total for report in seen} == {NUM}
    assert all(report.samples_per_second > 0 for report in seen)
    assert seen[-1].eta_seconds == 0


def test_finished_says_finished(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole.folder, tmp_path / "out"))
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    again = run_generate(request_of(weights, out, png=True), Nobody())
    assert (again.made, again.digest, again.outputs) == (0, whole.digest, ["npz", "png"])
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before


def test_samples_are_numbered_whatever_their_number(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    """A longer set begins with the shorter one, batch for batch."""
    longer = run_generate(request_of(weights, tmp_path / "out", num=13), LocalGenerator())
    images = np.concatenate(list(read_images(longer.npz).batches(100)))
    assert np.array_equal(images[:NUM], np.concatenate(list(read_images(whole.npz).batches(3))))


def test_one_generator_serves_many_sets(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    generator = LocalGenerator()
    done = [
        run_generate(request_of(weights, tmp_path / f"{seed}", seed=seed, png=True), generator) for seed in (4, 5)
    ]
    assert done[0].digest != done[1].digest
    assert files_of(done[1].folder) == files_of(whole.folder)


def test_one_generator_serves_other_weights(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    model, generator = load_weights(weights), LocalGenerator()
    state = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    save_weights(tmp_path / "weights", model.config, state, DiffusionConfig(num_train_steps=100))
    other = run_generate(request_of(tmp_path / "weights", tmp_path / "other"), generator)
    assert other.digest != whole.digest
    assert run_generate(request_of(weights, tmp_path / "same"), generator).digest == whole.digest


# Interrupted sets


def interrupted(request: GenerateRequest, parts: int) -> None:
    """Generate some parts, and be killed before the next."""

    def show(report: Generating) -> None:
        if report.done == parts * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_generate(request, LocalGenerator(), show=show)
    assert request.out is not None
    assert {path.name for path in request.out.iterdir()} == {".lock", "samples.json", "parts"}
    assert len(list((request.out / "parts").iterdir())) == parts


@pytest.mark.parametrize("parts", [1, 4])
def test_killed_between_parts(whole: GeneratedSet, weights: Path, tmp_path: Path, parts: int) -> None:
    request, said = request_of(weights, tmp_path / "out", png=True), list[str]()
    interrupted(request, parts)
    done = run_generate(request, LocalGenerator(), say=said.append)
    assert done.made == NUM - parts * BATCH
    assert said[0] == f"{parts * BATCH} of 10 samples are there; {done.made} to do"
    assert files_of(done.folder) == files_of(whole.folder)


def test_damaged_and_half_written_parts_are_made_again(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    request = request_of(weights, tmp_path / "out", png=True)
    interrupted(request, 4)
    first, second, *_ = sorted((tmp_path / "out/parts").iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(bytes(len(second.read_bytes())))
    (tmp_path / "out/parts" / f".{first.name}.77").write_bytes(b"half")
    (tmp_path / "out/.samples.npz.77").write_bytes(b"half")
    done = run_generate(request, LocalGenerator())
    assert done.made == NUM - 2 * BATCH
    assert files_of(done.folder) == files_of(whole.folder)


def test_killed_while_the_files_are_written(
    whole: GeneratedSet, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(weights, tmp_path / "out", png=True)

    def fail(output: str, *arguments: Any) -> Any:
        if output == "png":
            raise KeyboardInterrupt
        return write(output, *arguments)  # type: ignore[arg-type]

    write = launch._write
    monkeypatch.setattr(launch, "_write", fail)
    with pytest.raises(KeyboardInterrupt):
        run_generate(request, LocalGenerator())
    monkeypatch.undo()
    done = run_generate(request, Nobody())
    assert done.made == 0
    assert files_of(done.folder) == files_of(whole.folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_part(
    whole: GeneratedSet, weights: Path, tmp_path: Path, number: signal.Signals
) -> None:
    request = request_of(weights, tmp_path / "out", png=True)

    def show(report: Generating) -> None:
        if report.done == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedRun) as stopped:
        run_generate(request, LocalGenerator(), show=show)
    assert stopped.value.status == 75
    assert str(stopped.value) == f"stopped with 4 of 10 samples in {tmp_path / 'out'}\n  the same command continues"
    done = run_generate(request, LocalGenerator())
    assert done.made == 6
    assert files_of(done.folder) == files_of(whole.folder)


def test_a_signal_stops_the_writing(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    request = request_of(weights, tmp_path / "out", png=True)

    def say(line: str) -> None:
        if "png" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedRun, match="not all written out"):
        run_generate(request, LocalGenerator(), say=say)
    assert not (tmp_path / "out/png").exists()
    done = run_generate(request, Nobody())
    assert files_of(done.folder) == files_of(whole.folder)


# Files that are asked for later, or gone


def test_pngs_can_be_had_later(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    for first in ({"npz": True, "png": False}, {"npz": False, "png": True}):
        out = tmp_path / str(first["npz"])
        one = run_generate(request_of(weights, out, **first), LocalGenerator())
        assert one.outputs == [name for name, wanted in first.items() if wanted]
        both = run_generate(request_of(weights, out, npz=True, png=True), Nobody())
        assert (both.made, both.outputs, both.digest) == (0, ["npz", "png"], whole.digest)
        assert files_of(out) == files_of(whole.folder)


def test_a_set_whose_files_are_gone_is_made_again(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole.folder, tmp_path / "out"))
    shutil.rmtree(out / "png")
    (out / "samples.npz").write_bytes(b"cut")
    done = run_generate(request_of(weights, out), LocalGenerator())
    assert (done.made, done.outputs, done.digest) == (NUM, ["npz"], whole.digest)
    assert done.npz.read_bytes() == whole.npz.read_bytes()


# Refusals


def refusal(request: GenerateRequest) -> str:
    with pytest.raises(UserError) as caught:
        run_generate(request, Nobody())
    return str(caught.value)


def test_another_plan_in_the_folder(whole: GeneratedSet, weights: Path) -> None:
    before = files_of(whole.folder)
    message = refusal(request_of(weights, whole.folder, seed=6, settings=["guidance_scale=2"], uint8="truncate"))
    for line in (
        "seed: was 5, now 6",
        "sampling.guidance_scale: was 1.5, now 2.0",
        "uint8: was 'round', now 'truncate'",
    ):
        assert f"\n  {line}\n" in message
    assert message.count(": was ") == 3
    assert files_of(whole.folder) == before


def test_two_launches_at_once(weights: Path, tmp_path: Path) -> None:
    with only_launch(tmp_path / "out"):
        message = refusal(request_of(weights, tmp_path / "out"))
    assert message.startswith(f"another process is generating into {tmp_path / 'out'}")
    assert run_generate(request_of(weights, tmp_path / "out"), LocalGenerator()).made == NUM


def test_folders_of_something_else(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    assert f"{tmp_path / 'out'} holds thesis.tex: it was not made by this command" in refusal(
        request_of(weights, tmp_path / "out")
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert "thesis.tex is a file" in refusal(request_of(weights, tmp_path / "out/thesis.tex"))


def test_too_little_room(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten samples of 192 bytes, as parts and in the .npz."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * 1920 - 1))
    assert "until they are finished, 10 samples of 8×8 pixels take 0.0 GiB" in refusal(
        request_of(weights, tmp_path / "out")
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * 1920))
    assert run_generate(request_of(weights, tmp_path / "out"), LocalGenerator()).made == NUM


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"settings": ["num_ar_steps=17"]}, "17"),
        ({"settings": ["num_inference_steps=101"]}, "[1, 100], got 101"),
        ({"settings": ["step_sizes=[5,12]"]}, "add up to 16, got [5, 12] (the model has 16 image tokens)"),
        ({"settings": ["patch_order=dilated", "order_block=3"]}, "3 does not divide the 4×4 patch grid"),
        ({"settings": ["steps=3"]}, "setting 'steps=3' is not KEY=VALUE"),
        ({"classes": "0-10"}, "labels '0-10': the model's classes are 0…9"),
        ({"vae": "nowhere"}, "no autoencoder in "),
    ],
)
def test_what_does_not_fit(weights: Path, tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    assert part in refusal(request_of(weights, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_weights_of_no_run_need_a_folder(weights: Path) -> None:
    assert "are of no run that samples could lie in\n  add --out FOLDER" in refusal(request_of(weights, None))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"labels": "equal"}, "labels must be balanced or random, got 'equal'"),
        ({"uint8": "floor"}, "uint8 must be round or truncate or adm, got 'floor'"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16, got 'fp16'"),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"npz": False}, "neither samples.npz nor PNGs are asked for"),
    ],
)
def test_requests_that_are_none(weights: Path, tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        request_of(weights, tmp_path / "out", **changes)
    assert part in str(caught.value)


def test_a_dit_has_one_ar_step(tmp_path: Path) -> None:
    model = build_model(preset("digits-dit", hidden_size=8, num_heads=2, depth=1))
    save_weights(tmp_path / "weights", model.config, model.state_dict())
    assert "a DiT has no AR steps: num_ar_steps must be 1, got 2" in refusal(
        request_of(tmp_path / "weights", tmp_path / "out")
    )
    request = request_of(tmp_path / "weights", tmp_path / "out", settings=["num_ar_steps=1"], num=2)
    assert run_generate(request, LocalGenerator()).made == 2


@pytest.mark.parametrize("content", ["", "{}x", '{"architecture": "gan"}', '{"architecture": "dit", "x": 1}', "[]"])
def test_a_damaged_configuration(weights: Path, tmp_path: Path, content: str) -> None:
    copied = Path(shutil.copytree(weights, tmp_path / "weights"))
    (copied / "config.json").write_text(content)
    assert "config.json is not the configuration of a model" in refusal(request_of(copied, tmp_path / "out"))


def test_other_versions_are_told(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, said = request_of(weights, tmp_path / "out"), list[str]()
    interrupted(request, 2)
    text = (tmp_path / "out/samples.json").read_text()
    version = json.loads(text)["plan"]["versions"]["torch"]
    (tmp_path / "out/samples.json").write_text(text.replace(f'"{version}"', '"1.0"'))
    run_generate(request, LocalGenerator(), say=said.append)
    assert "begun with torch 1.0, " in said[0]
    assert f"now torch {version}, " in said[0]


# Of a run


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
