"""What is recorded of a run's samples, on the way and at its end: names, steps, and the same numbers everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.platform.tracking.recorded import waiting

from causalfusion import preset
from causalfusion.weights import load_class_names
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import read_all
from causalfusion_platform.data.validate import CheckedShards
from causalfusion_platform.evaluation.classifier.folder import open_classifier
from causalfusion_platform.tasks import TaskContext, class_to_image
from causalfusion_platform.tasks.class_to_image import ClassToImage, build_measure
from causalfusion_platform.tracking.journal import AttemptStarted, Incident, Journal, Measured
from causalfusion_platform.tracking.outbox import Outbox
from causalfusion_platform.tracking.records import Metrics, RunFiles, Tags
from causalfusion_platform.tracking.tracker import NoTracker
from causalfusion_platform.train.control import LocalControl
from causalfusion_platform.train.metrics import Spent


@pytest.fixture
def case(
    make_experiment: Callable[..., Experiment], tmp_path: Path, digits_folder: Path
) -> tuple[Experiment, Manifest, Outbox]:
    """A run whose samples are real digits."""
    experiment = make_experiment(
        evaluation={"num_samples": 40, "while_training": True, "ar_steps": [2]},
        data={"path": digits_folder},
    )
    (experiment.run_dir / "samples").mkdir(parents=True)
    return experiment, Manifest.read(digits_folder), Outbox(tmp_path)


def metrics_of(outbox: Outbox) -> dict[str, tuple[float, int]]:
    found = [record for record in waiting(outbox.journal.path.parent) if isinstance(record, Metrics)]
    return {key: (value, record.step) for record in found for key, value in record.values.items()}


def test_final_scores_are_recorded_as_bars(case: tuple[Experiment, Manifest, Outbox]) -> None:
    experiment, manifest, outbox = case
    real = read_all(experiment.data.path, manifest)
    samples = {"latents": real.latents[:40], "labels": real.labels[:40], "latents_s2": real.latents[40:80]}
    results = ClassToImage(experiment).evaluate(samples, manifest, outbox)
    names = ["class_accuracy", "judge_accuracy", "fd_digits_cnn", "fd_digits_cnn_real"]
    names += ["class_accuracy_s2", "fd_digits_cnn_s2"]
    assert metrics_of(outbox) == {f"eval/{name}": (results[name], 0) for name in names}
    digest = open_classifier(experiment.data.path, manifest).extractor.digest
    assert results["classifier_sha256"] == digest
    (tags,) = (record.values for record in waiting(outbox.journal.path.parent) if isinstance(record, Tags))
    assert tags == {"classifier.sha256": digest, "classifier.space": "digits_cnn"}
    (image,) = outbox.folder.glob("*.image/*.png")
    assert image.name.startswith(f"samples~final+step+{experiment.train.total_images}+")
    files = [record for record in waiting(outbox.journal.path.parent) if isinstance(record, RunFiles)]
    (artifact,) = (record.files for record in files if record.kind == "artifact")
    assert [path.name for path in (outbox.folder / artifact).iterdir()] == ["final.png"]


def test_curves_say_how_many_samples_they_are_of(case: tuple[Experiment, Manifest, Outbox], tmp_path: Path) -> None:
    """The classifier is the same all along: its accuracy is not a curve."""
    experiment, manifest, outbox = case
    journal = Journal(tmp_path)
    context = TaskContext(torch.device("cpu"), False, manifest, NoTracker(), journal, 3, LocalControl(), Spent())
    measure = build_measure(experiment, context)
    assert measure is not None
    real = read_all(experiment.data.path, manifest)
    measure(real.latents[:30], real.labels[:30], 512)
    assert len(journal.path.read_bytes().splitlines()) == 1  # a kill leaves all of a measurement, or nothing
    (event,) = journal.events()
    assert isinstance(event, Measured)
    assert (event.attempt, event.images) == (3, 512)
    digest = open_classifier(experiment.data.path, manifest).extractor.digest
    assert event.classifier_sha256 == digest
    names = ["class_accuracy", "fd_digits_cnn", "fd_digits_cnn_real"]
    assert metrics_of(outbox) == {f"eval/{name}_n30": (event.values[name], 512) for name in names}
    wrong = (real.labels[:30] + 1) % 10
    measure(real.latents[:30], wrong, 1024)
    value, step = metrics_of(outbox)["eval/class_accuracy_n30"]
    assert step == 1024
    assert value < event.values["class_accuracy"]
    assert build_measure(_silent(experiment), context) is None


def test_a_measurement_before_a_fault_is_not_recorded_again(
    case: tuple[Experiment, Manifest, Outbox], tmp_path: Path
) -> None:
    """After a roll-back it is: the order of the data is another."""
    experiment, manifest, _ = case
    journal = Journal(tmp_path)
    real = read_all(experiment.data.path, manifest)
    measured: list[list[int]] = []
    for attempt, cause in ((1, "worker"), (2, "diverged"), (3, "worker")):
        journal.add(AttemptStarted(launch=1, attempt=attempt, workers=1, zero_stage=0, images=256))
        context = TaskContext(
            torch.device("cpu"), False, manifest, NoTracker(), journal, attempt, LocalControl(), Spent()
        )
        measure = build_measure(experiment, context)
        assert measure is not None
        measure(real.latents[:30], real.labels[:30], 512)
        journal.add(Incident.model_validate({"attempt": attempt, "cause": cause, "detail": "", "images": 512}))
        measured.append([event.attempt for event in journal.events() if isinstance(event, Measured)])
    assert measured == [[1], [1], [1, 3]]


def _silent(experiment: Experiment) -> Experiment:
    return _with(experiment, while_training=False)


def _with(experiment: Experiment, **changes: Any) -> Experiment:
    evaluation = experiment.evaluation.model_copy(update=changes)
    return experiment.model_copy(update={"evaluation": evaluation})


def test_the_seed_of_a_run_decides_nothing_of_its_measure(case: tuple[Experiment, Manifest, Outbox]) -> None:
    """A sweep over seeds compares numbers of one space. `evaluate` measures in the same one."""
    experiment, manifest, outbox = case
    real = read_all(experiment.data.path, manifest)
    samples = {"latents": real.latents[:40], "labels": real.labels[:40], "latents_s2": real.latents[40:80]}
    found = [
        ClassToImage(experiment.model_copy(update={"seed": seed})).evaluate(samples, manifest, outbox)
        for seed in (0, 1)
    ]
    assert found[0] == found[1]


def test_a_run_can_end_without_scores(
    case: tuple[Experiment, Manifest, Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing opens or trains a classifier. The samples are drawn."""
    experiment, manifest, outbox = case
    experiment = _with(experiment, while_training=False, score=False)
    monkeypatch.setattr(class_to_image, "open_classifier", None)
    real = read_all(experiment.data.path, manifest)
    samples = {"latents": real.latents[:40], "labels": real.labels[:40], "latents_s2": real.latents[40:80]}
    task = ClassToImage(experiment)
    results = task.evaluate(samples, manifest, outbox)
    assert Path(results["grid_path"]).is_file()
    assert {key: value for key, value in results.items() if value is not None} == {
        "num_samples": 40,
        "grid_path": results["grid_path"],
    }
    assert metrics_of(outbox) == {}
    assert (task.scores(), task.scores_on(manifest), task.show_scores(results)) == ([], [], [])


def test_samples_that_are_no_numbers_are_said(
    case: tuple[Experiment, Manifest, Outbox], log_lines: list[str]
) -> None:
    experiment, manifest, outbox = case
    real = read_all(experiment.data.path, manifest)
    samples = {"latents": real.latents[:40].clone(), "labels": real.labels[:40], "latents_s2": real.latents[40:80]}
    samples["latents"][3, 0, 1, 1] = torch.nan
    results = ClassToImage(experiment).evaluate(samples, manifest, outbox)
    assert log_lines[0] == "1 of 40 samples hold NaN or infinity, and are scored as black pixels"
    assert results["class_accuracy"] > 0.8


def test_data_of_few_rows_are_refused_before_the_run(case: tuple[Experiment, Manifest, Outbox]) -> None:
    experiment, manifest, _ = case
    few = manifest.model_copy(update={"rows": 9})
    shards = CheckedShards(experiment.data.path, few, {})
    fitting = experiment.model_copy(update={"model": preset("digits")})
    with pytest.raises(UserError, match=r"hold 9 rows, too few for the classifier.*\n  .*evaluation\.score=false"):
        ClassToImage(fitting).check(shards)
    ClassToImage(_with(fitting, while_training=False, score=False)).check(shards)


def test_scores_need_pixels(case: tuple[Experiment, Manifest, Outbox]) -> None:
    experiment, manifest, _ = case
    task = ClassToImage(experiment)
    names = ["class_accuracy", "judge_accuracy", "fd_digits_cnn", "fd_digits_cnn_real"]
    assert task.scores_on(manifest) == [*names, "class_accuracy_s2", "fd_digits_cnn_s2"]
    others = manifest.model_copy(update={"source": manifest.source.model_copy(update={"kind": "folders"})})
    assert task.scores_on(others) == [name.replace("digits", "data") for name in task.scores_on(manifest)]
    assert set(task.scores()) == {*task.scores_on(manifest), *task.scores_on(others)}
    coder = manifest.autoencoder.model_copy(update={"name": "AutoencoderKL"})
    assert task.scores_on(manifest.model_copy(update={"autoencoder": coder})) == []


def test_weights_are_saved_with_the_names_of_their_classes(
    case: tuple[Experiment, Manifest, Outbox], tmp_path: Path
) -> None:
    experiment, digits, _ = case
    manifest = digits.model_copy(update={"class_names": [*"abcdefghij"]})
    task = ClassToImage(experiment)
    task.hooks(TaskContext(torch.device("cpu"), False, manifest, NoTracker(), None, 1, LocalControl(), Spent()))
    task.save_weights(tmp_path / "weights", task.build_model().state_dict())
    assert load_class_names(tmp_path / "weights") == manifest.class_names
