"""A run of text and images: interrupted, refused with another tokenizer, moved, resumed, and scored."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from causalfusion import CausalFusionConfig, load_weights
from causalfusion.text.tokenizer import Tokenizer, train_bpe
from causalfusion.weights.folder import load_config, load_tokenizer
from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.caption_language import CELLS, describe, parse
from causalfusion_platform.data.captioned_rows import read_captioned_rows
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.evaluation.classifier.folder import open_classifier
from causalfusion_platform.evaluation.classifier.recipe import ClassifierRecipe
from causalfusion_platform.evaluation.metrics.caption_tokenizers import WordTokenizer
from causalfusion_platform.evaluation.metrics.cider import cider_d
from causalfusion_platform.launch.runs.find import look_at
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.training.train import Outcome, run_training
from causalfusion_platform.report.runs.list import run_panel, runs_table
from causalfusion_platform.tasks import generation, open_task
from causalfusion_platform.tasks.final import unpacked
from causalfusion_platform.tasks.text_image import task as text_task
from causalfusion_platform.tasks.text_image.training import TextImageTraining
from causalfusion_platform.tracking.mlflow import client

BATCH, STEPS, STOP = 20, 6, 3
SCORES = {"cider_d_words", "caption_class", "caption_ink", "caption_slant", "caption_width", "caption_all"}
DRAWN = {"t2i_class", "t2i_ink", "t2i_slant", "t2i_width"}


def composed(home: Path, name: str, *overrides: str) -> Composed:
    """Six steps of a tiny model, with checkpoints after 2, 4 and 6. Its table has more rows than tokens exist."""
    return compose_experiment(
        "text",
        [
            f"name={name}",
            f"runs={home}/runs",
            f"data.path={home}/shards/digits",
            f"data.validation={home}/shards/digits-validation",
            "model.preset=tiny",
            "model.text.vocabulary=2000",
            "train.num_workers=1",
            f"train.global_batch_size={BATCH}",
            "train.micro_batch_size=10",
            f"train.images={BATCH * STEPS}",
            f"train.checkpoint_every_images={2 * BATCH}",
            f"train.sample_every_images={4 * BATCH}",
            f"train.log_every_images={BATCH}",
            "train.precision=fp32",
            "optim.warmup_images=0",
            "sampling.num_inference_steps=2",
            "evaluation.num_samples=12",
            "evaluation.num_captions=9",
            "evaluation.beam=2",
            "evaluation.guidance_scales=[2.5]",
            *overrides,
        ],
    )


class Runs:
    """A whole run, and one that was interrupted."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.refusals: list[str] = []
        self.whole = run_training(composed(home, "whole"), local=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TextImageTraining, "step", interrupted_at(STOP))
            with pytest.raises(KeyboardInterrupt):
                run_training(composed(home, "broken"), local=True)
        before = self.files("broken")
        other = home / "other.json"
        other.write_text(train_bpe(["another text", "and another"], vocabulary=300).json)
        with pytest.raises(UserError) as refused:
            run_training(composed(home, "broken", f"data.tokenizer={other}"), local=True)
        self.refused, self.lost = str(refused.value), before - self.files("broken")
        self.resumed = self.resume_elsewhere()

    def resume_elsewhere(self) -> Outcome:
        """Go on with moved validation shards, and the tokenizer of the checkpoint: the kept one is lost."""
        shards = self.home / "shards"
        for kept in shards.glob("digits/.tokenizer-*"):
            kept.unlink()
        (shards / "digits-validation").rename(shards / "moved")
        moved = [f"data.validation={shards}/moved", f"data.tokenizer={self.weights('broken')}"]
        return run_training(composed(self.home, "broken", *moved), local=True)

    def files(self, name: str) -> set[Path]:
        return set((self.home / "runs" / name / "checkpoints").rglob("*"))

    def weights(self, name: str) -> Path:
        return max((self.home / "runs" / name / "checkpoints").glob("images-*")) / "weights"


def recorded(home: Path) -> list[str]:
    """Return the names of the scores that a run on the digits has."""
    experiment = composed(home, "whole").experiment
    return open_task(experiment).scores_on(Manifest.read(experiment.data.path))


def interrupted_at(number: int) -> Any:
    step = TextImageTraining.step

    def stop(self: TextImageTraining, batch: Any, at: int) -> Any:
        if at == number:
            wait_for_a_checkpoint(self.experiment.run_dir)
            raise KeyboardInterrupt
        return step(self, batch, at)

    return stop


def wait_for_a_checkpoint(run: Path) -> None:
    """Wait until the checkpoint of an earlier step, which is written in the background, is whole."""
    end = time.monotonic() + 60
    while not list((run / "checkpoints").glob("images-*")):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, empty_mlflow_store: Path) -> Iterator[Runs]:
    home = tmp_path_factory.mktemp("home")
    (home / "runs").mkdir()
    shutil.copy(empty_mlflow_store, home / "runs" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        short = partial(open_classifier, recipe=ClassifierRecipe(epochs=1))
        for module in (text_task, generation):
            patch.setattr(module, "open_classifier", short)
        yield Runs(home)


def test_an_interrupted_run_goes_on_bit_for_bit(runs: Runs) -> None:
    ours, theirs = (load_file(runs.weights(name) / "model.safetensors") for name in ("broken", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = recorded(runs.home)
    assert [runs.resumed.summary[name] for name in names] == [runs.whole.summary[name] for name in names]
    assert (runs.resumed.summary["launches"], runs.whole.summary["launches"]) == (2, 1)


def test_another_tokenizer_is_refused_and_nothing_is_lost(runs: Runs) -> None:
    digest = load_tokenizer(runs.weights("whole")).digest
    for part in ("is not the tokenizer of the model's training", digest[:12], "set data.tokenizer="):
        assert part in runs.refused
    assert not runs.lost


def test_the_summary_has_both_directions_in_every_way(runs: Runs) -> None:
    summary = runs.whole.summary
    task = open_task(composed(runs.home, "whole").experiment)
    drawn = [*DRAWN, *(name.replace("t2i_", "t2i_unseen_") for name in DRAWN), "t2i_fd_digits_cnn"]
    ways = {*SCORES, *drawn} | {f"{name}_beam2" for name in SCORES}
    ways |= {f"{name}{end}" for name in drawn for end in ("_w2.5", "_best")}
    assert {*recorded(runs.home)} == ways < set(task.scores())
    assert all(isinstance(summary[name], float) for name in ways)
    assert (summary["num_samples"], summary["num_captions"]) == (12, 9)
    assert summary["validation_digest"] == Manifest.read(runs.home / "shards" / "moved").digest
    assert summary["classifier_sha256"]
    lines = dict(task.show_scores(summary))
    assert lines["captions"].startswith(f"cider_d_words {summary['cider_d_words']:.2f}, class ")
    assert {"captions, beam2", "drawing", "drawing, w2.5", "drawing, best", "unseen cells, best"} <= lines.keys()


def test_the_captions_are_texts_that_the_scores_are_of(runs: Runs) -> None:
    """They are decoded again by hand from the run's file, and counted."""
    final = load_file(runs.home / "runs/whole/samples/final.safetensors")
    validation = read_captioned_rows(runs.home / "shards/moved", Manifest.read(runs.home / "shards/moved"), 12)
    for name, end in (("captions", ""), ("captions_beam2", "_beam2")):
        texts = unpacked(final[name])
        assert len(texts) == 9
        score = cider_d(texts, validation.captions[:9], WordTokenizer()).score
        assert runs.whole.summary[f"cider_d_words{end}"] == pytest.approx(score)
        right = sum(
            parse(text).digit == parse(texts_of[0]).digit
            for text, texts_of in zip(texts, validation.captions, strict=False)
        )
        assert runs.whole.summary[f"caption_class{end}"] == pytest.approx(right / 9)
    assert final["latents"].shape == final["latents_w2.5"].shape == (12, 1, 8, 8)
    assert not torch.equal(final["latents"], final["latents_w2.5"])


def test_drawings_of_unseen_cells_are_scored_apart(runs: Runs) -> None:
    """They are counted again from the run's file. Of all 270 cells, their prompts name those without a row."""
    shards, final = runs.home / "shards/digits", load_file(runs.home / "runs/whole/samples/final.safetensors")
    seen = {parse(texts[0]) for texts in read_captioned_rows(shards, Manifest.read(shards), 1497).captions}
    unseen = sorted(set(CELLS) - seen, key=CELLS.index)
    assert len(unseen) == 70
    assert runs.whole.summary["t2i_unseen_images"] == 140
    for end in ("", "_w2.5"):
        latents = final[f"unseen{end}"]
        assert latents.shape == (140, 1, 8, 8)
        drawn = describe(latents, torch.zeros(140, dtype=torch.int64))
        for field in ("ink", "slant", "width"):
            right = [getattr(one, field) == getattr(unseen[place // 2], field) for place, one in enumerate(drawn)]
            assert runs.whole.summary[f"t2i_unseen_{field}{end}"] == pytest.approx(sum(right) / 140)
    best = "_w2.5" if runs.whole.summary["t2i_guidance_best"] == 2.5 else ""
    assert runs.whole.summary["t2i_unseen_width_best"] == runs.whole.summary[f"t2i_unseen_width{best}"]


def test_pictures_are_drawn_on_the_way_and_at_the_end(runs: Runs) -> None:
    for path in (runs.home / "runs/whole/samples/images-000000000080.png", Path(runs.whole.summary["grid_path"])):
        with Image.open(path) as picture:
            assert picture.height > 16 * 64
            assert len(picture.getcolors(1 << 20) or []) > 8


def test_weights_keep_their_tokenizer(runs: Runs) -> None:
    folder = Path(runs.whole.summary["weights_path"])
    tokenizer, config = load_tokenizer(folder), load_config(folder)
    assert isinstance(config, CausalFusionConfig)
    assert config.text is not None
    assert config.text.tokenizer_sha256 == tokenizer.digest == Tokenizer.read(folder / "tokenizer.json").digest
    assert tokenizer.size < config.text.vocabulary == 2000
    assert tokenizer.decode(tokenizer.encode("a bold seven leaning left")) == "a bold seven leaning left"
    assert load_weights(folder).config == config
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    (other / "tokenizer.json").write_text(train_bpe(["another"], vocabulary=300).json)
    with pytest.raises(ValueError, match="is not the tokenizer of the model's training"):
        load_tokenizer(other)


def test_its_metrics_are_recorded(runs: Runs) -> None:
    experiment = composed(runs.home, "whole").experiment
    api = client(experiment.tracking_uri)
    run = api.get_run(runs.whole.summary["mlflow_run_id"])
    named = {"train/text_loss", "train/captions_cut", "train/mse", "train/ar_steps", "train/loss"}
    assert named | {f"eval/{name}" for name in recorded(runs.home)} <= run.data.metrics.keys()
    assert run.data.metrics["eval/t2i_class_w2.5"] == runs.whole.summary["t2i_class_w2.5"]
    [_, *_, last] = api.get_metric_history(run.info.run_id, "train/text_loss")
    assert 0 < last.value < 10
    assert run.data.tags["classifier.sha256"] == runs.whole.summary["classifier_sha256"]


def test_a_finished_run_is_not_trained_again(runs: Runs) -> None:
    again = run_training(composed(runs.home, "whole", f"data.validation={runs.home}/shards/moved"), local=True)
    assert again.already_finished


def test_it_is_listed_and_shown(runs: Runs) -> None:
    view = look_at(RunFolder(runs.home / "runs" / "whole"))
    console = Console(width=80, record=True, file=StringIO())
    console.print(run_panel(view))
    shown = console.export_text()
    for name in recorded(runs.home):
        assert f"{name} " in shown
    assert "_stderr" not in shown
    assert "score: cider_d_words" in runs_table([("whole", view)]).plain
