"""Fine-tunes of a trained model: interrupted, resumed bit for bit, measured again by hand, and refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from rich.console import Console
from safetensors.torch import load_file
from tests.conftest import logged
from tests.platform.tasks.test_text_run import wait_for_a_checkpoint

from causalfusion import CaptionConfig, ModelConfig, build_model, caption, save_weights
from causalfusion.representation import Captioner, Classifier, load_captioner_tokenizer, load_finetuned
from causalfusion.text.tokenizer import train_bpe
from causalfusion.weights.folder import load_class_names
from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.finetune import CaptionHeadConfig, FinetuneConfig
from causalfusion_platform.data.captioned_rows import read_captioned_rows
from causalfusion_platform.data.digits import ensure_digits
from causalfusion_platform.data.manifest import AutoencoderId, Manifest, sha256_of
from causalfusion_platform.data.read import read_all
from causalfusion_platform.data.split_digits import ensure_split_digits, write_split_digits
from causalfusion_platform.evaluation.metrics.caption_tokenizers import WordTokenizer
from causalfusion_platform.evaluation.metrics.cider import cider_d
from causalfusion_platform.launch.runs.find import look_at
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.register import register_run
from causalfusion_platform.launch.training import finetuning
from causalfusion_platform.launch.training.finetuning import compose_finetune
from causalfusion_platform.launch.training.train import Outcome, check_inputs, run_training
from causalfusion_platform.report.runs.list import run_panel
from causalfusion_platform.sampling.image_captions import ImageCaptioner
from causalfusion_platform.tasks import open_task
from causalfusion_platform.tasks.final import unpacked
from causalfusion_platform.tasks.finetune.captioning import CaptioningObjective
from causalfusion_platform.tasks.finetune.classification import ClassificationObjective
from causalfusion_platform.tracking.mlflow import client

BATCH, STEPS, STOP = 32, 6, 3
RECIPES = {"classify": "finetune/digits-classify", "caption": "finetune/digits-caption"}
OBJECTIVES: dict[str, Any] = {"classify": ClassificationObjective, "caption": CaptioningObjective}
HEAD = {"width": 16, "num_heads": 2}
OTHER_HEAD = {"classify": "finetune.drop_path=0.2", "caption": "finetune.caption_head.encoder_depth=2"}


class Home:
    """Folder of runs and shards, with weights of a tiny model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = compose_experiment("finetune/digits-classify", ["model.preset=tiny"]).experiment.model
        torch.manual_seed(0)
        network = build_model(model)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        save_weights(self.weights, model, network.state_dict())

    @property
    def weights(self) -> Path:
        return self.folder / "trained"

    def composed(self, kind: str, name: str, *overrides: str) -> Composed:
        """Six steps of a fine-tune, with checkpoints after 2, 4 and 6."""
        shards = f"{self.folder}/shards/{kind}"
        head = [f"finetune.caption_head.{key}={value}" for key, value in HEAD.items()]
        return compose_finetune(
            RECIPES[kind],
            kind,
            self.weights,
            [
                f"name={name}",
                f"runs={self.folder}/runs",
                f"data.path={shards}",
                f"data.validation={shards}-validation",
                *(head if kind == "caption" else []),
                f"train.global_batch_size={BATCH}",
                "train.micro_batch_size=16",
                f"train.images={BATCH * STEPS}",
                f"train.checkpoint_every_images={2 * BATCH}",
                f"train.log_every_images={BATCH}",
                "train.precision=fp32",
                "optim.warmup_epochs=null",
                *overrides,
            ],
        )

    def weights_of(self, name: str) -> Path:
        """Weights of a run's newest checkpoint."""
        return max((self.folder / "runs" / name / "checkpoints").glob("images-*")) / "weights"

    def files(self, name: str) -> set[Path]:
        return set((self.folder / "runs" / name / "checkpoints").rglob("*"))

    def validation(self, kind: str) -> Path:
        return self.folder / "shards" / f"{kind}-validation"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, empty_mlflow_store: Path) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    (folder / "runs").mkdir()
    shutil.copy(empty_mlflow_store, folder / "runs" / "mlflow.db")
    yield Home(folder)


@pytest.fixture(scope="module", params=["classify", "caption"])
def runs(request: pytest.FixtureRequest, home: Home) -> tuple[str, Outcome, Outcome]:
    """A whole fine-tune, and one that was interrupted, refused with another head or start, and resumed."""
    kind = request.param
    whole = run_training(home.composed(kind, f"{kind}-whole"), local=True)
    step = OBJECTIVES[kind].step

    def stop(self: Any, batch: Any, number: int) -> Any:
        if number == STOP:
            wait_for_a_checkpoint(home.folder / "runs" / f"{kind}-broken")
            raise KeyboardInterrupt
        return step(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OBJECTIVES[kind], "step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_training(home.composed(kind, f"{kind}-broken"), local=True)
    before = home.files(f"{kind}-broken")
    for change in (OTHER_HEAD[kind], f"finetune.weights={home.folder}"):
        with pytest.raises(UserError, match=re.escape(change.partition("=")[0])):
            run_training(home.composed(kind, f"{kind}-broken", change), local=True)
    if kind == "caption":
        other = home.folder / "other.json"
        other.write_text(train_bpe(["another text", "and another"], vocabulary=300).json)
        with pytest.raises(UserError, match="is not the tokenizer of the model's training"):
            run_training(home.composed(kind, f"{kind}-broken", f"data.tokenizer={other}"), local=True)
    assert home.files(f"{kind}-broken") == before
    return kind, whole, run_training(home.composed(kind, f"{kind}-broken"), local=True)


def test_an_interrupted_fine_tune_goes_on_bit_for_bit(runs: tuple[str, Outcome, Outcome], home: Home) -> None:
    kind, whole, resumed = runs
    ours, theirs = (
        load_file(home.weights_of(f"{kind}-{how}") / "model.safetensors") for how in ("broken", "whole")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (resumed.summary["launches"], whole.summary["launches"]) == (2, 1)
    numbers = {key for key in whole.summary if key.startswith(("top", "cider", "bleu"))}
    assert len(numbers) >= 3
    assert {key: whole.summary[key] for key in numbers} == {key: resumed.summary[key] for key in numbers}


def test_the_scores_are_those_of_the_weights(runs: tuple[str, Outcome, Outcome], home: Home) -> None:
    """The folder of weights is loaded in Python and measured again."""
    kind, whole, _ = runs
    model = load_finetuned(home.weights_of(f"{kind}-whole"))
    folder, manifest = home.validation(kind), Manifest.read(home.validation(kind))
    assert whole.summary["finetuned_from"] == str(home.weights)
    assert whole.summary["finetuned_from_sha256"] == sha256_of(home.weights / "model.safetensors")
    assert whole.summary["num_images"] == manifest.rows == 300
    if kind == "classify":
        assert isinstance(model, Classifier)
        rows = read_all(folder, manifest)
        with torch.no_grad():
            order = model(rows.latents).argsort(dim=1, descending=True)
        for most, name in ((1, "top1"), (5, "top5")):
            right = (order[:, :most] == rows.labels[:, None]).any(dim=1).double().mean()
            assert whole.summary[name] == pytest.approx(float(right), abs=1e-12)
        assert load_class_names(home.weights_of("classify-whole")) == manifest.class_names
        return
    assert isinstance(model, Captioner)
    captioned = read_captioned_rows(folder, manifest, 300)
    tokenizer = load_captioner_tokenizer(home.weights_of("caption-whole"))
    found = caption(model, captioned.latents, begin=tokenizer.begin, end=tokenizer.end, vocabulary=tokenizer.size)
    texts = [tokenizer.decode(found[row]) for row in range(300)]
    score = cider_d(texts, captioned.captions, WordTokenizer()).score
    assert whole.summary["cider_d_words"] == pytest.approx(score, abs=1e-12)


def test_a_fine_tune_is_shown_registered_and_used(runs: tuple[str, Outcome, Outcome], home: Home) -> None:
    kind, whole, _ = runs
    run = RunFolder(home.folder / "runs" / f"{kind}-whole")
    console = Console(width=200, record=True, file=StringIO())
    console.print(run_panel(look_at(run)))
    shown = console.export_text()
    version = register_run(run)
    about = client(run.started.address).get_model_version(version.model, str(version.number)).description
    if kind == "classify":
        assert "causalfusion sample" not in shown
        assert version.model == "causalfusion-classification"
        assert "load_finetuned('FOLDER')" in about
        assert version.tags["top1"] == f"{whole.summary['top1']:.6g}"
        return
    assert f"causalfusion caption {run.root} IMAGE" in shown
    assert version.model == "causalfusion-captioning"
    assert "causalfusion caption FOLDER IMAGE" in about
    captioner = ImageCaptioner.open(home.weights_of("caption-whole"), None)
    rows = read_captioned_rows(home.validation(kind), Manifest.read(home.validation(kind)), 20)
    texts = captioner.describe(rows.latents, CaptionConfig(), "", 0).texts
    final = load_file(run.final_samples)
    assert texts == unpacked(final["captions"])[:20]
    with pytest.raises(UserError, match="leave out --ar-steps"):
        captioner.check(CaptionConfig(num_ar_steps=2), "")


def test_it_starts_from_the_trained_weights_and_a_frozen_one_keeps_them(home: Home) -> None:
    trained = load_file(home.weights / "model.safetensors")
    run_training(home.composed("classify", "frozen", "finetune.freeze=true"), local=True)
    frozen = load_file(home.weights_of("frozen") / "model.safetensors")
    shared = {name: tensor for name, tensor in trained.items() if name.startswith(("patch_embed.", "blocks."))}
    assert shared
    assert all(torch.equal(frozen[f"backbone.{name}"], tensor) for name, tensor in shared.items())
    assert frozen["head.weight"].norm() > 1e-2


@pytest.mark.parametrize(
    ("kind", "overrides", "parts"),
    [
        (
            "classify",
            ["data.validation=null"],
            ["that no training sees", "set data.validation=FOLDER"],
        ),
        ("classify", ["data.validation={shards}"], ["data.validation", "marked train"]),
        (
            "classify",
            ["train.micro_batch_size=null", "train.global_batch_size=31"],
            ["a worker takes 31 at once"],
        ),
        ("classify", ["finetune.augment.rand_augment=rand-m9-inc1"], ["distorts images, but mode latents"]),
        ("classify", ["finetune.augment.mode=pixels"], ["reads images in colour", "data encode"]),
        ("classify", ["finetune.weights={absent}"], ["no weights in"]),
        ("classify", ["finetune.test={absent}"], ["finetune.test", "it does not exist"]),
        ("classify", ["finetune.test={shards}"], ["finetune.test: the shards in", "marked train"]),
        ("classify", ["finetune.test={other}-validation"], ["finetune.test: ", "are rows of"]),
        ("caption", ["finetune.test={absent}"], ["finetune.test", "it does not exist"]),
        ("classify", ["task=class_to_image"], ["finetune is not read by task=class_to_image"]),
        ("classify", ["finetune.layer=2"], ["finetune.layer=2 is not read by task=classification", "leave it out"]),
        ("classify", ["finetune.condition=null"], ["finetune.condition", "use condition none"]),
        ("caption", ["finetune.caption_head.num_heads=3"], ["width 16 is not a multiple of num_heads 3"]),
        ("caption", ["finetune.layer=3"], ["finetune.layer=3", "allowed: 1 to 2"]),
        ("caption", ["finetune.augment.mode=pixels"], ["finetune.augment is not read by task=captioning"]),
        ("caption", ["finetune.drop_path=.5"], ["finetune.drop_path=0.5 is not read", "leave it out"]),
        ("classify", ["finetune.caption_head.width=12"], ["finetune.caption_head is not read", "a linear head"]),
        ("caption", ["data.path={classes}", "data.validation={classes}-validation"], ["captions"]),
        ("classify", ["model.depth=3"], ["model.depth=3 cannot be given", "leave it out"]),
    ],
)
def test_what_does_not_suit_is_refused(home: Home, kind: str, overrides: list[str], parts: list[str]) -> None:
    ensure_split_digits(home.folder / "shards" / "classes")
    if not (home.folder / "shards" / "other").exists():
        write_split_digits(home.folder / "shards" / "other", seed=1)
    places = {
        "shards": home.folder / "shards" / kind,
        "classes": home.folder / "shards" / "classes",
        "absent": home.folder / "absent",
        "other": home.folder / "shards" / "other",
    }
    with pytest.raises(UserError) as refused:
        check_inputs(home.composed(kind, "refused", *(text.format(**places) for text in overrides)).experiment)
    for part in parts:
        assert part in str(refused.value)
    assert not (home.folder / "runs" / "refused").exists()


def test_the_run_that_it_starts_from_is_compared_with_the_shards(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its autoencoder must be the same, and images of validation that it was trained on are logged."""
    folder = home.folder / "runs" / "pretrained"
    shutil.copytree(home.weights, folder / "checkpoints" / "images-000000000064" / "weights")
    weights = folder / "checkpoints" / "images-000000000064"
    composed = home.composed("classify", "unused", f"finetune.weights={weights}")
    ensure_digits(home.folder / "shards" / "all")

    def trained_on(shards: str, coder: AutoencoderId) -> list[str]:
        data = composed.experiment.data.model_copy(update={"path": home.folder / "shards" / shards})
        run = SimpleNamespace(autoencoder=coder, experiment=composed.experiment.model_copy(update={"data": data}))
        monkeypatch.setattr(finetuning, "RunFolder", lambda folder: run)
        with logged() as lines:
            check_inputs(composed.experiment)
        return [line for line in lines if "scores may be too high" in line]

    with pytest.raises(UserError, match=r"was trained with AutoencoderKL, scale 0\.18215"):
        trained_on("classify", AutoencoderId(name="AutoencoderKL", scale=0.18215))
    pixels = AutoencoderId(name="identity", scale=1.0)
    assert trained_on("classify", pixels) == []
    [line] = trained_on("all", pixels)
    assert "was trained on 300 of 300 rows" in line


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "dit"},
        {"architecture": "transfusion", "text": {"vocabulary": 384, "max_tokens": 16}},
        {"text": {"vocabulary": 384, "max_tokens": 16}},
        {"time_conditioning": "token"},
    ],
    ids=["dit", "transfusion", "text", "time-token"],
)
@pytest.mark.parametrize("kind", ["classify", "caption"])
def test_any_trained_model_is_fine_tuned_without_further_settings(
    tmp_path: Path, kind: str, model: dict[str, Any]
) -> None:
    """The settings of its own training, such as the number of AR steps, do not matter."""
    size = {"input_size": 8, "in_channels": 1, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    config = TypeAdapter[ModelConfig](ModelConfig).validate_python(
        {"architecture": "causalfusion", **size, **model}
    )
    save_weights(tmp_path / "any", config, build_model(config).state_dict())
    experiment = compose_finetune(RECIPES[kind], kind, tmp_path / "any", []).experiment
    assert experiment.model == config
    assert open_task(experiment).size.blocks == 2


@pytest.mark.parametrize(
    ("folder", "name"),
    [("digits v2 (best)", "digits-v2-best-classify"), (".hidden", "hidden-classify"), ("数字", "weights-classify")],
)
def test_a_folder_of_any_name_gives_a_run_a_name(home: Home, tmp_path: Path, folder: str, name: str) -> None:
    shutil.copytree(home.weights, tmp_path / folder)
    assert compose_finetune(RECIPES["classify"], "classify", tmp_path / folder, []).experiment.name == name


def test_a_recipe_of_the_other_kind_is_refused(home: Home) -> None:
    with pytest.raises(
        UserError, match=r"has task=captioning.*\n  causalfusion finetune caption .* or name a recipe"
    ):
        compose_finetune(RECIPES["caption"], "classify", home.weights, [])


def test_the_null_condition_of_a_dit_needs_no_quotes() -> None:
    """YAML and overrides read null as an empty value."""
    assert FinetuneConfig.model_validate({"condition": None}).condition == "null"
    composed = compose_experiment("finetune/digits-classify", ["finetune.condition=null"])
    assert composed.experiment.finetune is not None
    assert composed.experiment.finetune.condition == "null"


@pytest.mark.parametrize(
    ("size", "most"),
    [
        ("width", 65_536),
        ("num_heads", 4_096),
        ("encoder_depth", 1_000),
        ("decoder_depth", 1_000),
        ("vocabulary", 10_000_000),
        ("max_tokens", 65_536),
    ],
)
def test_a_head_that_the_model_refuses_is_refused_as_a_setting(size: str, most: int) -> None:
    with pytest.raises(ValueError, match=f"{size}\\n.*less than or equal to {most}"):
        CaptionHeadConfig.model_validate({size: most + 1})
