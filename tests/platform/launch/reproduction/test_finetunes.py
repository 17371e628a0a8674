"""Fine-tunes of a table's rows: which there are, what they start from, what their runs say, and what is refused."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.platform.config.trees import write_yaml
from tests.platform.launch.reproduction.test_rows import finish

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.split_digits import write_split_digits
from causalfusion_platform.launch.reproduction import reproduce as stages
from causalfusion_platform.launch.reproduction.finetunes import (
    FinetuneStage,
    check_finetunes,
    finetuned_values,
    plan_finetunes,
)
from causalfusion_platform.launch.reproduction.measured import Measured
from causalfusion_platform.launch.reproduction.rows import Reproduction, reproduction_of
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.sweeping.job import SweepJob, finished_trials
from causalfusion_platform.launch.sweeping.results import SweepResult
from causalfusion_platform.report.paper.words import budget, missing
from causalfusion_platform.report.sweeps.live import LiveTable

OF_ALL = ("classify", "caption", "classify-10")
OF_TWO = tuple(f"{kind}-{ending}" for kind in OF_ALL for ending in ("frozen", "scratch"))


def planned(found: Reproduction) -> FinetuneStage:
    stage = plan_finetunes(found)
    assert stage is not None
    return stage


def digits(**given: Any) -> FinetuneStage:
    return planned(reproduction_of("table6b", "digits", **given))


def paper(*vaes: str) -> FinetuneStage:
    return planned(reproduction_of("table6b", "paper", extractor="inception:x", vaes=vaes))


def experiments(stage: FinetuneStage) -> dict[str, Experiment]:
    return {one.trial.name: one.trial.experiment for one in stage.trials}


def score(stage: FinetuneStage, name: str, **summary: Any) -> None:
    """Leave a fine-tune as one that has finished with a summary."""
    run = stage.job.run_dir(name)
    finish(run, experiments(stage)[name])
    RunFolder(run).write_summary({"run_dir": str(run), "images_seen": 640, **summary})


# Plan


def test_the_fine_tunes_of_table_6b(own_folder: Path) -> None:
    stage = digits()
    of_row = {"dit": (*OF_ALL, *OF_TWO), "causalfusion": (*OF_ALL, *OF_TWO), "causalfusion-x0": OF_ALL}
    expected = {f"{row}.{kind}.seed-{seed}" for row, kinds in of_row.items() for kind in kinds for seed in range(3)}
    assert len(expected) == 63
    assert {trial.name for trial in stage.job.trials} == set(experiments(stage)) == expected
    assert not stage.job.elsewhere
    assert stage.job.experiment.run_dir == own_folder / "runs/table6b-digits-finetune"
    rows = stage.reproduction.experiments
    for name, of in experiments(stage).items():
        row, kind, seed = name.split(".")
        assert of.model == rows[f"{row}.{seed}"].model
        assert f"seed-{of.seed}" == seed
        assert of.run_dir == own_folder / "runs/table6b-digits-finetune" / name
        assert of.finetune is not None
        scratch = kind.endswith("scratch")
        assert of.finetune.weights == (None if scratch else own_folder / f"runs/table6b-digits/{row}.{seed}")
        assert of.finetune.freeze == kind.endswith("frozen")
        assert of.tracking.experiment == "table6b-digits-finetune"


def test_a_table_without_fine_tunes_has_one_stage(own_folder: Path) -> None:
    assert plan_finetunes(reproduction_of("table3a", "mnist")) is None


def test_rows_and_seeds_that_are_asked_for(own_folder: Path) -> None:
    """The sweep of the fine-tunes stays the same, so that another choice continues it."""
    stage = digits(rows=["causalfusion-x0"], seeds=[1])
    assert sorted(experiments(stage)) == sorted(f"causalfusion-x0.{kind}.seed-1" for kind in OF_ALL)
    other = digits(rows=["dit"], seeds=[1])
    assert other.job.experiment == stage.job.experiment


def test_paper_scale_tries_three_blocks_and_encodes_by_the_rows_autoencoder(own_folder: Path) -> None:
    found = experiments(paper("weights/sd", "causalfusion-x0=/weights/mar"))
    rows = ("dit", "causalfusion", "causalfusion-x0")
    kinds = ("classify", *(f"caption-layer-{layer}" for layer in (14, 21, 24)))
    assert set(found) == {f"{row}.{kind}.seed-0" for row in rows for kind in kinds}
    for name, of in found.items():
        row, kind, _ = name.split(".")
        assert of.finetune is not None
        layer = kind.removeprefix("caption-layer-")
        assert of.finetune.layer == (None if kind == "classify" else int(layer))
        mar = row == "causalfusion-x0"
        if kind == "classify":
            assert of.finetune.vae == (Path("/weights/mar") if mar else own_folder / "weights/sd")
        else:
            assert of.data.path.name == ("coco-karpathy-mar" if mar else "coco-karpathy")


def test_an_override_of_a_fine_tune_is_not_one_of_rows(own_folder: Path) -> None:
    overrides = ["runs=elsewhere", "train.images=640", "caption:train.images=128"]
    stage = digits(overrides=overrides, rows=["dit"], seeds=[0])
    assert stage.reproduction.experiments["dit.seed-0"].train.images == 640
    images = {name.split(".")[1]: of.train.images for name, of in experiments(stage).items()}
    assert images == dict.fromkeys((*OF_ALL, *OF_TWO), 14_976) | {
        "caption": 128,
        "caption-scratch": 128,
        "caption-frozen": 8_960,
    }
    assert stage.job.experiment.run_dir == own_folder / "elsewhere/table6b-digits-finetune"


def test_a_fine_tune_starts_from_the_run_that_stands_for_its_row(own_folder: Path) -> None:
    before = reproduction_of("table1", "paper", rows=["dit"], extractor="inception:x")
    finish(before.folder / "dit.seed-0", before.experiments["dit.seed-0"])
    finetune = experiments(paper())["dit.classify.seed-0"].finetune
    assert finetune is not None and finetune.weights == own_folder / "runs/table1-paper/dit.seed-0"


def test_the_same_scratch_is_trained_once(own_folder: Path) -> None:
    """The last row differs in its prediction, which a fine-tune does not have."""
    found = reproduction_of("table6b", "digits", seeds=[0])
    columns = tuple(column.model_copy(update={"rows": ()}) for column in found.table.columns)
    stage = planned(dataclasses.replace(found, table=found.table.model_copy(update={"columns": columns})))
    twice = {f"causalfusion-x0.{kind}-scratch.seed-0" for kind in OF_ALL}
    assert set(stage.job.elsewhere) == twice
    assert {trial.name for trial in stage.job.trials} == set(experiments(stage)) - twice
    folder = own_folder / "runs/table6b-digits-finetune/causalfusion.caption-scratch.seed-0"
    assert stage.job.elsewhere["causalfusion-x0.caption-scratch.seed-0"] == folder


def test_a_finished_fine_tune_is_not_trained_again(own_folder: Path) -> None:
    stage = digits(rows=["dit"], seeds=[0])
    score(stage, "dit.classify-scratch.seed-0", top1=0.5)
    assert [trial.name for trial, _ in finished_trials(digits(seeds=[0]).job)] == ["dit.classify-scratch.seed-0"]
    with pytest.raises(UserError, match=r"train\.images: was 14976, now 6400"):
        list(finished_trials(digits(rows=["dit"], seeds=[0], overrides=["classify:train.images=6400"]).job))


def test_rows_that_have_not_finished_are_not_fine_tuned(own_folder: Path) -> None:
    stage = digits(seeds=[0, 1])
    done = stage.reproduction.folder / "causalfusion.seed-1"
    finish(done, stage.reproduction.experiments["causalfusion.seed-1"])
    scratch = {name for name in experiments(stage) if "-scratch" in name}
    ours = {name for name in experiments(stage) if name.startswith("causalfusion.") and name.endswith("seed-1")}
    assert {trial.name for trial in stage.ready().trials} == scratch | ours
    assert len(scratch) == 12


# Values


def test_values_are_those_of_the_summaries(own_folder: Path) -> None:
    stage = digits(rows=["dit"], seeds=[0, 1])
    assert set(finetuned_values(stage)[0].values()) == {None}
    score(stage, "dit.classify.seed-0", top1=0.91, num_images=300)
    score(stage, "dit.classify-scratch.seed-1", top1=0.83, num_images=300)
    score(stage, "dit.caption.seed-1", cider_d_words_beam3=2.5, cider_d_words=2.75, num_images=300)
    values, notes = finetuned_values(stage)
    found = {key: value for key, value in values.items() if value is not None}
    assert found == {
        ("dit", "top-1", 0): 0.91,
        ("dit", "top-1 scratch", 1): 0.83,
        ("dit", "CIDEr", 1): 2.5,
    }
    assert len(values) == 2 * 9  # all that are planned
    assert notes == dict.fromkeys(("top1", "cider_d_words_beam3"), "of 300 images that no training sees")


def test_the_block_that_is_best_on_validation_counts_and_test_is_reported(own_folder: Path) -> None:
    stage = paper()
    number = "cider_d_words_beam3"
    for layer, val, test in ((14, 0.90, 0.95), (21, 0.93, 0.91), (24, 0.92, 0.99)):
        assert finetuned_values(stage)[0]["dit", "CIDEr", 0] is None  # one that is missing could be the best
        scores = {number: val, f"{number}_test": test, "num_images": 5000, "num_images_test": 5001}
        score(stage, f"dit.caption-layer-{layer}.seed-0", **scores)
    values, notes = finetuned_values(stage)
    assert values["dit", "CIDEr", 0] == 0.91
    assert notes[f"{number}_test"] == (
        f"of 5,001 images that no training sees; dit, seed 0: block 21, the best of 14, 21, 24 by {number}"
    )


# The two stages


@pytest.fixture
def launched(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, list[str]]]]:
    """Replace training: runs finish at once, but for `dit.seed-1`, which fails."""
    jobs: list[tuple[str, list[str]]] = []

    def run(job: SweepJob, _: object) -> SweepResult:
        jobs.append((job.experiment.name, [trial.name for trial in job.trials]))
        for trial in job.trials:
            if trial.name != "dit.seed-1":
                finish(trial.experiment.run_dir, trial.experiment)
                scores = {"top1": 0.9, "cider_d_words_beam3": 2.0, "num_images": 300}
                summary = {"run_dir": "", "images_seen": trial.experiment.train.total_images, **scores}
                RunFolder(trial.experiment.run_dir).write_summary(summary)
        failed = sum(trial.name == "dit.seed-1" for trial in job.trials)
        return SweepResult([], [], failed=failed, stopped=False, mlflow_run_id="", ends=[])

    monkeypatch.setattr(stages, "run_sweep", run)
    monkeypatch.setattr(stages, "ray_session", nullcontext)
    monkeypatch.setattr(stages, "check_measurable", lambda _: None)
    monkeypatch.setattr(stages, "check_finetunes", lambda _: None)
    monkeypatch.setattr(stages, "measure_rows", lambda found: Measured({("dit", "S = 1", 0): 20.0}))
    monkeypatch.setattr(stages, "draw_more", lambda *_: [])
    monkeypatch.setattr(stages, "_publish", lambda *given: jobs.append(("published", [f"{given[-1]} failed"])))
    yield jobs


def display(metric: str) -> LiveTable:
    return LiveTable(Console(file=io.StringIO()), metric)


def test_rows_are_trained_before_their_fine_tunes(launched: list[tuple[str, list[str]]]) -> None:
    found = reproduction_of("table6b", "digits", rows=["dit"], seeds=[0, 1], command="the command")
    report = stages.reproduce(found, display)
    (first, rows), (second, finetunes), published = launched
    assert (first, rows) == ("table6b-digits", ["dit.seed-0", "dit.seed-1"])
    assert second == "table6b-digits-finetune"
    left_out = {f"dit.{kind}.seed-1" for kind in (*OF_ALL, *OF_TWO) if not kind.endswith("scratch")}
    assert set(finetunes) == set(experiments(planned(found))) - left_out
    assert published == ("published", ["1 failed"])

    [dit, *_] = report.rows
    places = {column.name: place for place, column in enumerate(report.table.columns)}
    assert dit.cells[places["top-1"]].by_seed == {0: 0.9, 1: None}
    assert dit.cells[places["top-1 scratch"]].by_seed == {0: 0.9, 1: 0.9}
    assert report.rows[2].cells[places["CIDEr scratch"]].by_seed == {}
    lost = "S = 1, top-1, CIDEr, top-1 frozen, top-1 of 10, of 10 frozen and CIDEr frozen: seed 1"
    assert lost in missing(report)[0]
    assert budget(report)["fine-tunes"].startswith("12 of 18 finished, 8,960 to 14,976 images each, ")
    assert budget(report)["top1"] == "of 300 images that no training sees"


# Refusals


def own_table(recipe: dict[str, Any], **changes: Any) -> None:
    """Write a table of one row and one fine-tune into the working directory."""
    tree: dict[str, Any] = {
        "title": "t",
        "source": "Table 9z",
        "varied": "v",
        "measured": "m",
        "columns": [{"name": "top-1", "metric": "top1", "finetune": "classify"}],
        "rows": [{"file": "only", "label": "o", "printed": [None]}],
        "scales": {"digits": {"metrics": {"top1": "top1"}, "samples": 9, "seeds": [0]}},
        **changes,
    }
    folder = Path("experiments/table9z")
    write_yaml(folder / "table.yaml", yaml.safe_dump(tree))
    row = {"defaults": ["/table6b/digits/causalfusion", "_self_"], "name": "only"}
    for name, content in (("only", row), ("finetune-classify", recipe)):
        write_yaml(
            folder / f"digits/{name}.yaml", "# @package _global_\n" + yaml.safe_dump(content, sort_keys=False)
        )


CLASSIFY = {"defaults": ["/table6b/digits/finetune-classify", "_self_"], "name": "mine"}


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        do()
    return str(caught.value)


def test_a_recipe_that_does_not_exist(own_folder: Path) -> None:
    own_table(CLASSIFY)
    Path("experiments/table9z/digits/finetune-classify.yaml").unlink()
    said = refusal(lambda: planned(reproduction_of("table9z", "digits")))
    assert "column top-1, fine-tune classify: no experiment 'table9z/digits/finetune-classify'" in said


def test_a_recipe_that_is_not_a_fine_tune(own_folder: Path) -> None:
    own_table({"defaults": ["/base/digits", "_self_"], "name": "mine"})
    said = refusal(lambda: planned(reproduction_of("table9z", "digits")))
    assert "column top-1: table9z/digits/finetune-classify has task=class_to_image and no section finetune" in said


def test_a_recipe_that_measures_something_else(own_folder: Path) -> None:
    own_table(
        CLASSIFY,
        columns=[{"name": "CIDEr", "metric": "cider", "finetune": "classify"}],
        scales={"digits": {"metrics": {"cider": "cider_d_words"}, "samples": 9, "seeds": [0]}},
    )
    said = refusal(lambda: planned(reproduction_of("table9z", "digits")))
    assert "column CIDEr takes cider_d_words, which runs of table9z/digits/finetune-classify do not" in said
    assert "they measure: top1, top5" in said


def test_data_are_checked_before_a_row_is_trained(own_folder: Path) -> None:
    """Labels beyond the head, and no part for validation. Those of the digits are written."""
    own_table(CLASSIFY)
    check_finetunes(planned(reproduction_of("table9z", "digits")))
    assert Manifest.read(Path("shards/digits-split")).rows == 1497
    own_table(CLASSIFY | {"data": {"validation": "shards/none"}})
    said = refusal(lambda: check_finetunes(planned(reproduction_of("table9z", "digits"))))
    assert "fine-tune classify of row only: data.validation: " in said and "does not exist" in said
    more = write_split_digits(Path("shards/more")).validation
    more.model_copy(update={"class_names": [*more.class_names, "ten"]}).write(Path("shards/more-validation"))
    own_table(CLASSIFY | {"data": {"validation": "shards/more-validation"}})
    said = refusal(lambda: check_finetunes(planned(reproduction_of("table9z", "digits"))))
    assert "data.validation: classes of the shards in" in said and ": 11, but of those in" in said
