"""Wrong input of text and images: found before anything starts, in one message, by every command that looks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.platform.config.trees import load_experiment
from tests.platform.data.captioned import write_captioned
from tests.platform.data.damage import put, rewrite
from tests.platform.tasks.text_process import Engine

from causalfusion.text.tokenizer import train_bpe
from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.captioned_digits import write_captioned_digits
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.split_digits import validation_folder
from causalfusion_platform.data.validate import CheckedShards, open_shards
from causalfusion_platform.launch.doctor.step import _tiny
from causalfusion_platform.launch.doctor.storage import check_shards
from causalfusion_platform.launch.doctor.task import check_task
from causalfusion_platform.launch.runs.state import RunState, check_same_config
from causalfusion_platform.launch.sweeping.search import check_metrics
from causalfusion_platform.launch.training.dry_run import make_plan
from causalfusion_platform.launch.training.train import check_inputs
from causalfusion_platform.tasks import check_data, open_task
from causalfusion_platform.tasks.text_image import TextImage

Fault = Callable[..., str]
CLASSES = ["model=digits", "objective.text=null"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with captions, and the validation ones beside them; not to be changed."""
    folder = tmp_path_factory.mktemp("captioned") / "digits"
    write_captioned_digits(folder)
    return folder


@pytest.fixture
def shards(written: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    for source in (written, validation_folder(written)):
        shutil.copytree(source, tmp_path / source.name)
    return tmp_path / written.name


def composed(shards: Path, *overrides: str) -> Composed:
    paths = [f"data.path={shards}", f"data.validation={validation_folder(shards)}"]
    return compose_experiment("text", [*paths, *overrides])


def listed(shards: Path) -> list[Path]:
    return sorted([*shards.rglob("*"), *validation_folder(shards).rglob("*")])


@pytest.fixture
def fault(shards: Path) -> Fault:
    """Return what `train`, `train --dry-run` and `doctor` say alike of wrong input. None of them writes shards."""

    def say(*overrides: str) -> str:
        before = listed(shards)
        experiment = composed(shards, *overrides)
        with pytest.raises(UserError) as caught:
            check_inputs(experiment.experiment)
        said = str(caught.value)
        with pytest.raises(UserError) as planned:
            make_plan(experiment)
        assert str(planned.value) == said
        doctor = check_shards(experiment.experiment)
        assert doctor.verdict == "FAIL"
        assert f"{doctor.line} {doctor.advice}".split() == said.split()
        assert listed(shards) == before
        return said

    return say


def test_good_input_passes_and_the_plan_writes_nothing(shards: Path) -> None:
    experiment, before = composed(shards), listed(shards)
    plan = make_plan(experiment)
    assert plan.data.rows == 1497
    assert check_shards(experiment.experiment).verdict == "ok"
    checked = check_inputs(experiment.experiment)
    assert listed(shards) == before
    open_task(experiment.experiment).prepare(checked)
    assert len(listed(shards)) == len(before) + 1


def test_shards_without_captions(fault: Fault, shards: Path) -> None:
    write_digits(shards)
    said = fault("data.prepare=false")
    assert f"task=text_image reads captions, but the shards in {shards} have row_id, label, key, mean" in said
    assert f"data digits {shards}-captions --captions" in said


def test_images_without_captions(fault: Fault, shards: Path) -> None:
    rewrite(shards, 0, put("captions", 5, []))
    rewrite(shards, 1, put("captions", 6, []))
    manifest = Manifest.read(shards)
    assert f"2 of 1,497 images in {shards} have no caption: " in fault()
    assert manifest.rows == 1497


def test_validation_images_without_captions(fault: Fault, shards: Path) -> None:
    """They would end the run after its training."""
    rewrite(validation_folder(shards), 0, put("captions", 5, []))
    assert f"1 of 300 images in {validation_folder(shards)} have no caption: " in fault()


def test_validation_shards_that_do_not_fit(fault: Fault, shards: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert fault(f"data.validation={gone}").startswith(f"data.validation: {gone} is not a folder of latent shards")
    write_digits(tmp_path / "plain")
    said = fault(f"data.validation={tmp_path}/plain")
    assert f"data.validation: the shards in {tmp_path}/plain have no captions" in said
    write_captioned(tmp_path / "small", [["one"]] * 10)
    assert "hold latents of shape (1, 2, 2), but the model takes (1, 8, 8)" in fault(
        f"data.validation={tmp_path}/small"
    )


def test_validation_shards_that_are_yet_to_be_written(shards: Path) -> None:
    """`data.prepare=captions` writes them beside those of training, and nowhere else."""
    shutil.rmtree(validation_folder(shards))
    assert make_plan(composed(shards)).data.rows == 1497
    assert check_shards(composed(shards).experiment).verdict == "ok"
    check_inputs(composed(shards).experiment)
    assert Manifest.read(validation_folder(shards)).rows == 300
    shutil.rmtree(shards)
    elsewhere = composed(shards, f"data.validation={shards.parent}/elsewhere")
    with pytest.raises(UserError, match=r"data\.validation: .*/elsewhere is not a folder"):
        make_plan(elsewhere)
    assert check_shards(elsewhere.experiment).verdict == "FAIL"
    assert not shards.exists()


def test_tokenizers(fault: Fault, tmp_path: Path) -> None:
    assert f"there is no tokenizer at {tmp_path}/none.json" in fault(f"data.tokenizer={tmp_path}/none.json")
    tokenizer = train_bpe(["a text that is long enough for merges, enough"] * 9, vocabulary=280)
    (tmp_path / "tokenizer.json").write_text(tokenizer.json)
    given = f"data.tokenizer={tmp_path}"
    said = fault(given, f"model.text.vocabulary={tokenizer.size - 1}")
    assert f"has {tokenizer.size} tokens, but the model's table {tokenizer.size - 1}" in said
    assert "is not the tokenizer of the model's training" in fault(given, f"model.text.tokenizer_sha256={'0' * 64}")
    assert "model.text.vocabulary=200 is too small" in fault("model.text.vocabulary=200")


def test_a_share_of_less_than_one_image(fault: Fault) -> None:
    said = fault("objective.text.share=0.01", "train.global_batch_size=64")
    assert "objective.text.share 0.01 of a global batch of 64 images is less than one image" in said
    assert said.endswith("set train.global_batch_size to at least 100")


def test_a_share_of_one_image_exactly_is_enough(shards: Path) -> None:
    for share, batch in (("0.01", 100), ("0.07", 16), ("0.0", 2), ("0.1", 10)):
        overrides = (f"objective.text.share={share}", f"train.global_batch_size={batch}", "train.num_workers=1")
        check_data(TextImage(composed(shards, *overrides).experiment), open_shards(shards, hashes=False))


def test_a_tokenizer_is_not_trained_on_some_of_the_shards(shards: Path) -> None:
    """It would be another one once the file is restored."""
    (shards / Manifest.read(shards).shards[1].file).unlink()
    with pytest.raises(UserError, match=r"captions of all shards, but shard-00001-of-00004\.parquet in") as caught:
        check_inputs(composed(shards, "data.max_bad_rows=0.5").experiment)
    assert "data.tokenizer" in str(caught.value)


def test_a_kept_tokenizer_serves_without_them(shards: Path) -> None:
    experiment = composed(shards, "data.max_bad_rows=0.5").experiment
    TextImage(experiment).prepare(check_inputs(experiment))
    (shards / Manifest.read(shards).shards[1].file).unlink()
    assert check_inputs(experiment).bad


def test_validation_rows_come_from_whole_shards_without_a_folder_of_their_own(shards: Path) -> None:
    experiment = composed(shards, "data.validation=null").experiment
    manifest = Manifest.read(shards)
    (shards / manifest.shards[0].file).unlink()
    usable = manifest.without([manifest.shards[0].file])
    assert len(TextImage(experiment)._read_validation(20, usable)) == 20


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["task=class_to_image"], ("task=class_to_image trains on classes", "set task=text_image")),
        (CLASSES, ("task=text_image trains a model of text", "task=class_to_image")),
        (["model.class_tokens=2"], ("task=text_image trains a model of text without classes",)),
        (["evaluation.while_training=true"], ("does not read evaluation.while_training",)),
        (["evaluation.ar_steps=[4]"], ("does not read evaluation.ar_steps",)),
    ],
    ids=["text for classes", "classes for text", "both", "while training", "ar steps"],
)
def test_models_and_settings_of_the_other_task(shards: Path, overrides: list[str], parts: tuple[str, ...]) -> None:
    experiment = composed(shards, *overrides)
    with pytest.raises(UserError) as caught:
        check_inputs(experiment.experiment)
    with pytest.raises(UserError) as planned:
        make_plan(experiment)
    assert str(planned.value) == str(caught.value)
    assert check_task(experiment.experiment).verdict == "FAIL"
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("architecture", ["causalfusion", "transfusion"])
def test_the_doctor_replaces_a_model_that_is_too_large_by_one_of_its_kind(architecture: str) -> None:
    one = ["objective.num_ar_steps=1", "objective.ar_weight=1"] if architecture == "transfusion" else []
    experiment = load_experiment(
        "text", [f"model.architecture={architecture}", "model.text.vocabulary=128256", *one]
    )
    tiny = _tiny(experiment.model)
    assert (tiny.architecture, tiny.hidden_size, tiny.num_class_tokens) == (architecture, 32, 0)
    small = experiment.model_copy(update={"model": tiny})
    model = open_task(small).build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    task = TextImage(small)
    objective = task.objective(model)
    step = objective.step(task.example_batch(2), 0)
    loss = step.loss(Engine(objective.objective.model), step.part(slice(0, 2)), step.totals)
    assert bool(loss.weighted.isfinite())


def test_paths_may_move_when_a_run_goes_on(shards: Path) -> None:
    started = composed(shards).experiment
    state = RunState(tracking_uri="sqlite:///x", config=started.model_dump(mode="json"))
    moved = composed(shards, f"data.validation={shards}", f"data.tokenizer={shards}").experiment
    check_same_config(state, moved)
    with pytest.raises(UserError, match=r"objective\.text\.share: was 0\.3, now 0\.2"):
        check_same_config(state, composed(shards, "objective.text.share=0.2").experiment)


def test_scores_that_a_sweep_can_rank_by(shards: Path, tmp_path: Path) -> None:
    def sweep(metric: str) -> Experiment:
        return composed(
            shards, "+sweep.grid={objective.text.share: [0.1, 0.3]}", f"+sweep.metric={metric}", "+sweep.mode=max"
        ).experiment

    for metric in ("caption_class", "cider_d_words", "cider_d_words_beam3", "t2i_class_w2.5", "t2i_ink_best"):
        check_metrics(sweep(metric))
    with pytest.raises(UserError, match=r"which their summaries will not have.*\n.*cider_d_words"):
        check_metrics(sweep("class_accuracy"))
    task = open_task(composed(shards).experiment)
    digits = Manifest.read(shards)
    mnist = digits.model_copy(update={"source": digits.source.model_copy(update={"kind": "mnist"})})
    here, there = task.scores_on(digits), task.scores_on(mnist)
    assert there == [name.replace("fd_digits_cnn", "fd_data_cnn") for name in here] != here
    assert set(task.scores()) == {*here, *there}
    other = write_captioned(tmp_path / "other", [["one"]] * 10)
    assert task.scores_on(other) == ["cider_d_words", "cider_d_words_beam3"]
    assert task.classifier_of(CheckedShards(tmp_path / "other", other, {}, hashes=False)) is None
    silent = open_task(composed(shards, "evaluation.score=false").experiment)
    assert silent.scores() == silent.scores_on(Manifest.read(shards)) == []


def test_the_plan_counts_text() -> None:
    def task(*overrides: str) -> Any:
        return open_task(load_experiment("text", overrides))

    assert "vocabulary of 384 tokens, tied" in task().describe_model()
    assert "16 image tokens, up to 16 text tokens; training sequences of 32 to 48 tokens" in task().describe_model()
    all_last = task("objective.text.share=1.0")
    assert "training sequences of 48 tokens" in all_last.describe_model()
    longer = task("model.text.max_tokens=32")
    assert longer.flops() > 1.2 * task().flops()
    assert longer.activation_bytes(8, "fp32") > 1.2 * task().activation_bytes(8, "fp32")
    wider = task("model.text.vocabulary=1000")
    assert wider.size.parameters - task().size.parameters == (1000 - 384) * 96
