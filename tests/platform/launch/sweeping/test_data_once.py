"""A sweep reads every byte of its data once, however many trials it has; what has changed since is read again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from rich.console import Console

from causalfusion_platform.checkpoint import store
from causalfusion_platform.config.compose import Composed
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import only_launch
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping import sweep
from causalfusion_platform.launch.sweeping.job import SweepJob, job_of
from causalfusion_platform.launch.sweeping.results import SweepResult
from causalfusion_platform.launch.training.launch import Launch
from causalfusion_platform.report.sweeps.live import LiveTable
from causalfusion_platform.tasks.class_to_image import ClassToImage
from causalfusion_platform.tracking.mlflow import check_reachable

MakeExperiment = Callable[..., Experiment]
DIGEST = "c" * 64


class Tuner:
    """Runs the trials of a grid in this process, one after the other."""

    between: Callable[[], None] = staticmethod(lambda: None)
    reports: list[dict[str, Any]]

    def __init__(self, trainable: Callable[[dict[str, Any]], None], *, param_space: Any, **_: Any) -> None:
        self.trainable, self.names = trainable, param_space["trial"]["grid_search"]

    def fit(self) -> list[SimpleNamespace]:
        results = []
        for name in self.names:
            try:
                self.trainable({"trial": name})
                metrics, error = Tuner.reports[-1], None
            except Exception as fault:
                metrics, error = {}, fault
            results.append(SimpleNamespace(config={"trial": name}, metrics=metrics, error=error))
            Tuner.between()
        return results


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Shard → bytes that were hashed of it; Ray and the training itself are left out."""
    read: dict[str, int] = {}
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        path = Path(file.name)
        if path.suffix == ".parquet":
            read[path.name] = read.get(path.name, 0) + os.fstat(file.fileno()).st_size
        return digest(file, name)

    def finish(launch: Launch, *_: object) -> dict[str, Any]:
        summary = {
            "fd_digits_cnn": 1.0,
            "classifier_sha256": DIGEST,
            "bad_shards": launch.shards.bad,
            "run_dir": str(launch.folder.root),
        }
        launch.folder.write_summary(summary)
        launch.folder.keep(finished=True)
        return summary

    Tuner.reports, Tuner.between = [], staticmethod(lambda: None)
    monkeypatch.setattr(ClassToImage, "classifier_of", lambda *_: DIGEST)
    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(Launch, "run", finish)
    monkeypatch.setattr(tune, "Tuner", Tuner)
    monkeypatch.setattr(tune, "report", Tuner.reports.append)
    monkeypatch.setattr(sweep, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(sweep, "write_results", lambda *_: [])
    monkeypatch.setattr(sweep, "concurrent_trials", lambda _: 1)
    monkeypatch.setattr(
        "causalfusion_platform.launch.training.train._workers_session", lambda *_: contextlib.nullcontext()
    )
    return read


@pytest.fixture
def job(make_experiment: MakeExperiment, own_folder: Path, hashed: dict[str, int]) -> SweepJob:
    """A sweep of three seeds."""
    write_digits(own_folder / "shards")
    hashed.clear()
    experiment = make_experiment(
        name="sweep",
        data={"path": str(own_folder / "shards"), "max_bad_rows": 0.5},
        sweep={"grid": {"seed": [0, 1, 2]}, "metric": "fd_digits_cnn", "mode": "min"},
    )
    return job_of(Composed(experiment, {}))


def run(job: SweepJob) -> SweepResult:
    return sweep.run_sweep(job, LiveTable(Console(file=io.StringIO()), "fd_digits_cnn"))


def test_every_byte_is_read_once_but_for_a_shard_that_is_damaged_between_two_trials(
    job: SweepJob, hashed: dict[str, int]
) -> None:
    first, *others = Manifest.read(job.experiment.data.path).shards
    path = job.experiment.data.path / first.file

    def damage() -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)  # of the same size
        Tuner.between = staticmethod(lambda: None)

    Tuner.between = staticmethod(damage)
    result = run(job)
    assert (len(result.ends), result.failed) == (3, 0)
    bad = [list(report["bad_shards"]) for report in Tuner.reports]
    assert bad == [[], [first.file], [first.file]]
    assert "its SHA-256 is" in Tuner.reports[-1]["bad_shards"][first.file]
    assert {shard.file: hashed[shard.file] for shard in others} == {shard.file: shard.bytes for shard in others}
    assert hashed[first.file] == 3 * first.bytes


def test_a_trial_with_other_data_has_them_checked_once_too(
    make_experiment: MakeExperiment, own_folder: Path, hashed: dict[str, int]
) -> None:
    folders = [own_folder / name for name in ("one", "other", "none")]
    for folder in folders[:2]:
        write_digits(folder)
    hashed.clear()
    grid = {"data.path": [str(folder) for folder in folders], "seed": [0, 1]}
    experiment = make_experiment(
        name="sweep",
        data={"path": str(folders[0])},
        sweep={"grid": grid, "metric": "fd_digits_cnn", "mode": "min"},
    )
    result = run(job_of(Composed(experiment, {})))
    assert sorted(end.error is None for end in result.ends) == [False, False, True, True, True, True]
    assert all(
        "does not exist" in str(end.error) or "causalfusion data" in str(end.error) for end in result.ends[4:]
    )
    manifest = Manifest.read(folders[0])
    assert hashed == {shard.file: 2 * shard.bytes for shard in manifest.shards}  # both folders name them alike


def test_a_copy_of_the_data_that_the_sweep_has_not_seen_is_read(job: SweepJob, own_folder: Path) -> None:
    """A trial on another node may have its copy at the same path, of the same sizes and modification times."""
    shards = job.experiment.data.path
    (first, *_), copy = Manifest.read(shards).shards, own_folder / "copy"
    shutil.copytree(shards, copy)  # keeps modification times
    status = (copy / first.file).stat()
    content = bytearray((copy / first.file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / first.file).write_bytes(content)
    os.utime(copy / first.file, ns=(status.st_atime_ns, status.st_mtime_ns))

    def go_to_another_node() -> None:
        shards.rename(own_folder / "elsewhere")
        copy.rename(shards)
        Tuner.between = staticmethod(lambda: None)

    Tuner.between = staticmethod(go_to_another_node)
    run(job)
    assert [list(report["bad_shards"]) for report in Tuner.reports] == [[], [first.file], [first.file]]


def finishing_two(job: SweepJob, *classifiers: str | None) -> Callable[[str], None]:
    """Return a check of MLflow in which another launch finishes two of three trials."""

    def finish_all_but_one(uri: str) -> None:
        """The other launch ends after this one's checks, and before it has the lock."""
        for seed, trial in enumerate(job.trials[:2]):
            state = RunState(tracking_uri=uri, config=trial.experiment.model_dump(mode="json"), finished=True)
            trial.experiment.run_dir.mkdir(parents=True)
            state.write(trial.experiment.run_dir)
            summary = {"fd_digits_cnn": 7.0, "classifier_sha256": classifiers[seed % len(classifiers)]}
            job.run(trial.name).write_summary({**summary, "run_dir": str(trial.experiment.run_dir)})
        check_reachable(uri)

    return finish_all_but_one


def test_trials_that_another_launch_finishes_before_the_lock_are_not_begun(
    job: SweepJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "check_reachable", finishing_two(job, DIGEST))
    result = run(job)
    assert [report["trial"] for report in Tuner.reports] == [job.trials[2].name]
    assert sorted(end.summary["fd_digits_cnn"] for end in result.ends if end.summary) == [1.0, 7.0, 7.0]


def test_trials_under_another_classifier_are_not_ranked(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before Ray starts, unless a report measures all of them anew."""
    monkeypatch.setattr(sweep, "check_reachable", finishing_two(job, None))
    monkeypatch.setattr(sweep, "ray_session", None)
    with pytest.raises(UserError, match="ranked by fd_digits_cnn, but different classifiers score them") as caught:
        run(job)
    lines = str(caught.value).splitlines()
    names = [trial.name for trial in job.trials]
    assert lines[1].endswith(f"an unknown one (an earlier version recorded none): {names[0]}, {names[1]}")
    assert lines[2].endswith(f"cccccccccccc…: {names[2]}")
    assert "name=…" in lines[3]
    assert "causalfusion evaluate RUN" in lines[3]

    monkeypatch.setattr(sweep, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(sweep, "check_reachable", check_reachable)
    job.measured_anew = True
    result = run(job)
    assert [report["trial"] for report in Tuner.reports] == [job.trials[2].name]
    assert not any("fd_digits_cnn" in (end.summary or {}) for end in result.ends)


def test_finished_trials_under_another_classifier_are_scored_again(
    job: SweepJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last checkpoints are there, so that another launch of them trains nothing."""
    finish = finishing_two(job, None, DIGEST)

    def finish_two_with_checkpoints(uri: str) -> None:
        finish(uri)
        for trial in job.trials[:2]:
            run = job.run(trial.name)
            folder = store.checkpoint_folder(run.checkpoints, trial.experiment.train.total_images)
            folder.mkdir(parents=True)

    monkeypatch.setattr(sweep, "check_reachable", finish_two_with_checkpoints)
    result = run(job)
    assert [report["trial"] for report in Tuner.reports] == [job.trials[0].name, job.trials[2].name]
    assert {end.name: end.summary["fd_digits_cnn"] for end in result.ends if end.summary} == {
        job.trials[0].name: 1.0,
        job.trials[1].name: 7.0,
        job.trials[2].name: 1.0,
    }


def test_a_finished_trial_whose_score_is_no_number_is_named(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = finishing_two(job, DIGEST)

    def finish_and_damage(uri: str) -> None:
        finish(uri)
        run = job.run(job.trials[1].name)
        run.write_summary({**run.read_summary(), "fd_digits_cnn": "7.0"})

    monkeypatch.setattr(sweep, "check_reachable", finish_and_damage)
    with pytest.raises(UserError, match=r"summary\.json is damaged: fd_digits_cnn is '7\.0', not a number"):
        run(job)


def test_a_metric_that_the_data_do_not_give_is_refused(job: SweepJob) -> None:
    """The name of a distance says digits on the digits alone."""
    job.sweep = job.sweep.model_copy(update={"metric": "fd_data_cnn"})
    with pytest.raises(
        UserError, match=r"fd_data_cnn, which runs on the data .*\n  they measure: .*fd_digits_cnn, "
    ):
        run(job)


def test_a_sweep_waits_for_no_lock_and_starts_no_ray_beside_another(
    job: SweepJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ray_session", None)
    monkeypatch.setattr(RunFolder, "refuse_if_under_way", lambda _: None)  # the other one came a moment later
    with only_launch(job.experiment.run_dir), pytest.raises(UserError, match="is under way"):
        run(job)
