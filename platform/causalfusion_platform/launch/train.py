"""Run one training job from start to end: checks, workers, samples, scores, summary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..assemble import Job, TrainingTimes
from ..checkpoint import store
from ..config.compose import Composed
from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.digits import ensure_digits
from ..data.validate import CheckedShards, check_draws, check_model_fits, open_shards
from ..tracking.mlflow import MlflowTracker, check_reachable
from ..train.progress import ProgressSink
from .causes import user_error_in
from .finish import judge_and_draw, read_summary, write_summary
from .run_folder import check_same_config, open_run, read_state
from .session import check_resources, ray_session


@dataclass
class Stages:
    """Wall time of each stage of a run, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Add time to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class Outcome:
    """What a call of `run_training` came to."""

    summary: dict[str, Any]
    """What summary.json holds."""
    already_finished: bool = False
    """The run had finished before; nothing was trained."""


def run_training(
    composed: Composed,
    *,
    local: bool = False,
    show: ProgressSink = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    parent: str | None = None,
) -> Outcome:
    """Train an experiment, or continue it, to its end; then judge its samples.

    Args:
        composed: the experiment.
        local: run the worker in this process, without Ray.
        show: called with the newest progress, about twice a second.
        say: called with what a person must know beside that.
        parent: MLflow run that this one is a child of.

    Raises:
        UserError: something given is wrong; nothing was started.
    """
    started, stages = time.perf_counter(), Stages()
    experiment = composed.experiment
    if local and experiment.train.num_workers != 1:
        raise UserError(
            f"--local is one process, but train.num_workers={experiment.train.num_workers}\n"
            f"  add train.num_workers=1, or leave --local out"
        )
    state = read_state(experiment.run_dir)
    if state is not None:
        check_same_config(state, experiment)
        if state.finished:
            return Outcome(read_summary(experiment.run_dir), already_finished=True)
    with stages.time("prepare"):
        shards = check_inputs(experiment)
    if shards.bad:
        say(shards.notice)
    if state is not None and state.bad_shards != sorted(shards.bad):
        say(
            "the run had other shards before: the order of the rows to come is another one, and in the epoch under "
            "way some rows may come twice and others not at all"
        )
    with _workers_place(experiment, local, stages):
        with stages.time("prepare"):
            state = open_run(composed, shards, state, parent)
        tracker = MlflowTracker(experiment.tracking_uri, state.mlflow_run_id)
        job = Job(experiment=experiment, mlflow_run_id=state.mlflow_run_id, bad_shards=tuple(sorted(shards.bad)))
        try:
            began = time.perf_counter()
            times = _run_local(job, show) if local else _run_on_ray(job, show)
            _add_worker_stages(stages, times, time.perf_counter() - began)
            with stages.time("judge"):
                results = judge_and_draw(experiment, shards.usable, tracker)
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    summary = {
        "name": experiment.name,
        **results,
        "images_seen": experiment.train.total_images,
        "train_seconds": times.train_seconds,
        "images_per_second": times.images / times.train_seconds if times.images else 0.0,
        "total_seconds": time.perf_counter() - started,
        "stage_seconds": stages.seconds,
        "launches": state.launches,
        "num_workers": experiment.train.num_workers,
        "zero_stage": experiment.train.zero_stage,
        "run_dir": str(experiment.run_dir),
        "weights_path": str(_newest_weights(job)),
        "data_digest": shards.manifest.digest,
        "bad_shards": shards.bad,
        "mlflow_run_id": state.mlflow_run_id,
        "tracking_uri": experiment.tracking_uri,
    }
    tracker.artifact(write_summary(experiment.run_dir, summary))
    tracker.finish()
    state.model_copy(update={"finished": True}).write(experiment.run_dir)
    return Outcome(summary)


def check_inputs(experiment: Experiment) -> CheckedShards:
    """Check the shards, the model against them, and the tracking store, before anything is started.

    Raises:
        UserError: the first fault found.
    """
    check_reachable(experiment.tracking_uri)
    if experiment.data.prepare:
        ensure_digits(experiment.data.path)
    data = experiment.data
    shards = open_shards(data.path, max_bad_rows=data.max_bad_rows, hashes=data.verify == "hash")
    check_model_fits(shards.manifest, experiment.model, data.path)
    check_draws(shards.manifest, data.flip, data.path)
    return shards


@contextmanager
def _workers_place(experiment: Experiment, local: bool, stages: Stages) -> Iterator[None]:
    if local:
        yield
        return
    train = experiment.train
    started = time.perf_counter()
    with ray_session():
        check_resources(
            train.num_workers, train.cpus_per_worker, train.gpus_per_worker, experiment.data.cpus_per_task
        )
        stages.add("start Ray", time.perf_counter() - started)
        yield


def _run_local(job: Job, show: ProgressSink) -> TrainingTimes:
    from .worker import local_worker

    return local_worker(job, show)


def _run_on_ray(job: Job, show: ProgressSink) -> TrainingTimes:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from .board import Board, enter_worker

    train = job.experiment.train
    board = ray.remote(Board).options(num_cpus=0).remote()
    resources = {"CPU": train.cpus_per_worker}
    if train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    trainer = TorchTrainer(
        enter_worker,
        train_loop_config={"job": job.model_dump_json(), "board": board},
        torch_config=TorchConfig(backend="nccl" if train.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=bool(train.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # Ray's own state is new at every launch: what a run resumes from are its verified checkpoints.
            name=f"launch-{time.time_ns()}",
            storage_path=str(job.experiment.run_dir / "ray"),
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=1),
        ),
    )
    with _following(lambda: ray.get(board.read.remote())[0], show):
        _fit(trainer)
    _, times = ray.get(board.read.remote())
    ray.kill(board)
    return TrainingTimes(**times)


def _fit(trainer: Any) -> None:
    from ray.train import WorkerGroupError

    try:
        trainer.fit()
    except WorkerGroupError as error:
        # A fault that the user can mend reads the same from a worker as from the driver.
        raise (user_error_in(error) or error) from error


@contextmanager
def _following(read: Callable[[], Any], show: ProgressSink) -> Iterator[None]:
    """Show the newest progress about twice a second while the body runs."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.5):
            progress = read()
            if progress is not None:
                show(progress)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        last = read()
        if last is not None:
            show(last)


def _add_worker_stages(stages: Stages, times: TrainingTimes, wall: float) -> None:
    inside = times.train_seconds + times.hook_seconds + times.sample_seconds
    stages.add("workers up and down", max(wall - inside, 0.0))
    stages.add("train", times.train_seconds)
    stages.add("checkpoints and grids", times.hook_seconds)
    stages.add("sample", times.sample_seconds)


def _newest_weights(job: Job) -> Path | None:
    found = store.latest(job.checkpoints)
    return found[0] / store.WEIGHTS_FOLDER if found else None
