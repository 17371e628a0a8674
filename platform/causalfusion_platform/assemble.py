"""Build a training job from a configuration. Only this module knows every stage."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from causalfusion import draws

from .checkpoint.manifest import config_digest
from .checkpoint.open import open_checkpoints
from .checkpoint.save import Saver
from .checkpoint.storage import CheckpointStorage, OnBad
from .checkpoint.store import Retention
from .config.errors import UserError
from .config.schema import Experiment
from .config.secrets import remember
from .data.manifest import Manifest
from .data.read import Collate, Dataset
from .storage.fence import Fence, LaunchFence, NoFence
from .storage.json_file import Damaged, read_object
from .storage.object_fence import ObjectFence
from .storage.objects import ObjectUrl, open_store
from .storage.private import make_private
from .storage.run_layout import RunPaths
from .tasks import Task, TaskContext, open_task
from .tasks.final import write_final
from .tracking.journal import Journal, Resharded, SetAside, StepSkipped, TrainingStarted
from .tracking.lineage import package_versions
from .tracking.outbox import Outbox
from .tracking.tracker import NoTracker, Tracker
from .train.blocks import Recompilations
from .train.checkpointing import CheckpointHook, Fixed
from .train.control import Control, StopHook
from .train.deepspeed_config import Arithmetic
from .train.device import peak
from .train.ema import Averages
from .train.ema_profiles import profiles_of
from .train.engine import build_engine, choose_precision, grad_norm
from .train.guard import Guard
from .train.loop import Hook, TrainLoop, TrainState
from .train.metrics import MetricsHook, Recording, Spent
from .train.progress import ProgressSink
from .train.resume import Resume, find_resume, restore
from .train.system import System


class Job(BaseModel):
    """Input of every worker of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    experiment: Experiment
    mlflow_run_id: str | None = None
    """Id of the run at MLflow. None: MLflow had not answered when the attempt began."""
    bad_shards: tuple[str, ...] = ()
    """Shards that the run leaves out."""
    launch: int = 1
    """Number of the launch."""
    launch_id: str = ""
    """`LaunchToken.id` of the launch. Empty: no other launch competes with it."""
    attempt: int = 1
    """Number of the attempt, over all launches."""
    order: int = 0
    """Times that the order of the data was changed, by going back to a checkpoint after divergence."""
    recorded_images: int = 0
    """Images up to which metrics are recorded already."""
    other_data: bool = False
    """Continue even if the checkpoint was trained on other data."""
    secrets: dict[str, str] = {}
    """Secret → text in its place. Workers write none of them."""
    published: str | None = None
    """Folder of runs on object storage, where `experiment.runs` is a folder of the worker's machine alone. None:
    `experiment.runs` is where the run is."""

    @property
    def paths(self) -> RunPaths:
        """Paths of the run's files on this machine."""
        return RunPaths(self.experiment.run_dir)

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints on this machine."""
        return self.paths.checkpoints

    @property
    def url(self) -> ObjectUrl | None:
        """Address of the run on object storage. None: it is in its folder."""
        return self.as_given.run_url

    @property
    def as_given(self) -> Experiment:
        """The experiment with the folder of runs that the user gave."""
        if self.published is None:
            return self.experiment
        return self.experiment.model_copy(update={"runs": ObjectUrl.parse(self.published)})

    def in_folder(self, runs: Path) -> Job:
        """Return the job of a worker that writes into a folder of runs of its own. It publishes where it did."""
        experiment = self.experiment.model_copy(update={"runs": runs})
        return self.model_copy(update={"experiment": experiment, "published": str(self.as_given.runs)})

    @property
    def storage(self) -> CheckpointStorage:
        """Where the run's checkpoints are published."""
        return open_checkpoints(self.paths.root, self.url)

    @property
    def fence(self) -> Fence:
        """Fence of the launch, which is checked right before a checkpoint is published or removed."""
        if self.url is None or not self.launch_id:
            return self.folder_fence
        return ObjectFence(open_store(self.url), self.launch_id)

    @property
    def folder_fence(self) -> Fence:
        """Fence of the launch for writes into the run's folder on this machine."""
        return LaunchFence(self.paths.root, self.launch_id) if self.launch_id else NoFence()


@dataclass(frozen=True)
class WorkerContext:
    """Differences between a Ray worker and a process on its own."""

    device: torch.device
    batches: Callable[[Experiment, Dataset, Collate, int, int], Iterator[Any]]
    """(experiment, data, collate, start, stop) → this rank's part of the global batches of rows start … stop − 1.

    Reading starts at the call, before the first batch is requested."""
    progress: ProgressSink
    control: Control


@dataclass(frozen=True)
class TrainingTimes:
    """Times and images that a worker measured, and what it wrote at the end."""

    train_seconds: float
    """Optimizer steps alone, waiting for data included."""
    hook_seconds: float
    """Metrics, checkpoints and grids."""
    sample_seconds: float
    """The task's end, such as the final samples."""
    images: int
    """Images trained on by this attempt. They are fewer than the run's if it resumed."""
    final_attempt: int | None = None
    """Attempt that wrote the tensors of the task's end. None: there are none."""


def train_and_sample(job: Job, context: WorkerContext) -> TrainingTimes:
    """Train one rank's part of a job to its end, then end the task. All ranks call it together.

    Raises:
        UserError: an input is wrong.
        Stopped: it was asked to stop, and saved a checkpoint, or another launch has taken the run over.
        Superseded: another launch has taken the run over at its very end.
        Diverged: skipping steps did not help.
        NotSaved: checkpoints cannot be written.
    """
    remember(job.secrets)
    experiment, control, task = job.experiment, context.control, open_task(job.experiment)
    rank = torch.distributed.get_rank()
    journal = Journal(experiment.run_dir, job.folder_fence) if rank == 0 else None
    manifest = Manifest.read(experiment.data.path)
    control.mark("find the checkpoint", 0)
    storage = job.storage
    resume = find_resume(experiment, storage, manifest.digest, job.other_data, _tell_bad(journal, control))
    first = resume.manifest.images_seen if resume else 0
    total = experiment.train.total_images
    # Reading starts while the model and the engine are built.
    data = open_dataset(experiment, manifest.without(job.bad_shards), task, job.order)
    batches = context.batches(experiment, data, task.collate, first, total) if first < total else iter(())
    control.mark("build the engine", first)
    precision = choose_precision(experiment.train.precision, context.device)
    loop = build_loop(job, task, context.device, precision, data.manifest.rows, resume)
    if resume:
        torch.distributed.barrier()  # every rank has read it
        storage.release()
    if resume and resume.universal:
        _tell_resharded(job, resume, journal, control)
    recompilations = compile_blocks(task, loop, control, first)

    tracker: Tracker = Outbox(job.paths.root, job.folder_fence) if rank == 0 else NoTracker()
    spent, peak_here = Spent(), peak(context.device, precision)
    recording = None
    if journal is not None:
        system = System(experiment.run_dir, context.device)
        recording = Recording(journal, context.progress, job.attempt, job.recorded_images, system)
    metrics = MetricsHook(experiment.train.log_every_images, recording, spent, peak_here, recompilations)
    guard = build_guard(job, loop, resume, journal, control)
    checkpoints = CheckpointHook(
        experiment.train.checkpoint_every_images,
        build_saver(job),
        Fixed(config_digest(job.as_given), manifest.digest, package_versions(), precision),
        guard=guard,
        metrics=metrics,
        spent=spent,
        control=control,
        journal=journal,
        attempt=job.attempt,
        save_weights=task.save_weights,
        mlflow_run_id=lambda: _mlflow_run_id(job) if rank == 0 else None,  # the first rank writes the manifest
    )
    stop = StopHook(
        control,
        checkpoints.now,
        checkpoints.storage_fails,
        lambda: checkpoints.superseded or (journal is not None and journal.superseded),
    )
    task_context = TaskContext(
        device=context.device,
        bf16=precision.startswith("bf16"),
        manifest=data.manifest,
        tracker=tracker,
        journal=journal,
        attempt=job.attempt,
        control=control,
        spent=spent,
    )
    hooks: list[Hook] = [guard, metrics, *task.hooks(task_context), checkpoints, stop]
    if journal is not None:
        device = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu"
        journal.add(
            TrainingStarted(
                attempt=job.attempt,
                images=first,
                device=device,
                peak_tflops=peak_here.tflops,
                peak_source=peak_here.source,
            )
        )
    control.mark("train", first)
    started = time.perf_counter()
    try:
        loop.run(batches, hooks)
    except BaseException:
        checkpoints.saver.abandon()
        raise
    loop_seconds = time.perf_counter() - started

    started = time.perf_counter()
    control.mark("end", total)
    final = task.end(loop, task_context)
    final_attempt = None
    if rank == 0:
        job.fence.check()
        final_attempt = write_final(job.paths.final_samples, final, job.attempt)
    training = spent.steps + spent.data
    return TrainingTimes(
        train_seconds=training,
        hook_seconds=loop_seconds - training,
        sample_seconds=time.perf_counter() - started,
        images=loop.state.images_seen - first,
        final_attempt=final_attempt,
    )


def build_loop(
    job: Job, task: Task, device: torch.device, precision: Arithmetic, data_rows: int, resume: Resume | None
) -> TrainLoop:
    """Build model, engine and averages, and restore them from the checkpoint."""
    experiment = job.experiment
    # Every rank starts from the same weights, independent of its earlier draws.
    torch.manual_seed(draws.stream_seed(experiment.seed, "initial weights"))
    model = task.build_model()
    objective = task.objective(model)
    universal = resume is not None and resume.universal is not None
    groups = task.parameter_groups(model)
    engine = build_engine(
        model,
        experiment,
        device,
        precision,
        groups=groups,
        load_universal=universal,
        lengths=task.lengths(device),
    )
    averages = Averages(engine.module, profiles_of(experiment.optim))
    state = TrainState(order=job.order)
    loop = TrainLoop(experiment, engine, objective, averages, state, device, data_rows=data_rows)
    if resume:
        restore(loop, resume)
    return loop


def compile_blocks(task: Task, loop: TrainLoop, control: Control, images: int) -> Recompilations | None:
    """Compile the blocks for all sequences of the task. Return the count of later ones, None without compiling.

    ZeRO 3 keeps parameters apart between steps. There the first steps compile.
    """
    train = loop.experiment.train
    if not train.compile:
        return None
    recompilations = Recompilations()
    if loop.engine.zero_optimization_stage() < 3:
        control.mark("compile", images)
        if task.warm_up(loop.engine, loop.device, lambda: control.mark("compile", images)):
            recompilations.begin()
    return recompilations


def build_guard(
    job: Job, loop: TrainLoop, resume: Resume | None, journal: Journal | None, control: Control
) -> Guard:
    """Build the guard, and let it decide on the optimizer's steps."""

    def skipped(images: int, reason: str) -> None:
        control.note(f"update skipped at {images} images: {reason}")
        if journal is not None:
            journal.add(StepSkipped(attempt=job.attempt, images=images, reason=reason))

    # The norms before a roll-back led to the divergence, so they are not used after it.
    norms = resume.manifest.grad_norms if resume and resume.manifest.order == job.order else ()
    guard = Guard(
        job.experiment.supervision,
        lambda: grad_norm(loop.engine),
        skipped,
        norms,
        overflow_is_usual=job.experiment.train.precision == "fp16",
    )
    guard.images = loop.state.images_seen
    if loop.device.type == "cuda" and loop.engine.zero_optimization_stage() == 0:
        loop.engine.basic_optimizer.left_out, loop.late = guard.left_out, guard.settle
    else:
        loop.engine.basic_optimizer.allow = guard.allow
    return guard


def build_saver(job: Job) -> Saver:
    """Build the saver of this rank's part of the checkpoints."""
    train = job.experiment.train
    staging = (train.staging or Path(tempfile.gettempdir())) / f"causalfusion-staging-{os.geteuid()}"
    with contextlib.suppress(OSError):  # such as a full disk: saving tries again, and says so
        try:
            make_private(staging)
        except PermissionError as error:
            raise UserError(
                f"{staging} cannot hold checkpoints on their way: {error.strerror}\n"
                f"  remove it, or name another folder: train.staging=FOLDER"
            ) from error
    return Saver(
        job.storage,
        staging / config_digest(job.as_given)[:16],
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        # Two launches that run at once may count alike.
        attempt="-".join(["attempt", f"{job.attempt:04d}", *filter(None, [job.launch_id])]),
        retention=Retention(train.keep_checkpoints, train.keep_best, every_images=train.keep_every_images),
        fence=job.fence,
    )


def open_dataset(experiment: Experiment, manifest: Manifest, task: Task, order: int = 0) -> Dataset:
    """Return the experiment's data, with the rule that draws a latent from each row.

    Args:
        experiment: its seed and its data section.
        manifest: the shards to read.
        task: says which fields of each row it reads, and what is made of them.
        order: 0, or how often a roll-back has changed the order of the rows.
    """
    data = experiment.data
    return Dataset(
        folder=data.path,
        manifest=manifest,
        seed=draws.stream_seed(experiment.seed, "order after a roll-back", order) if order else experiment.seed,
        window_rows=data.window_rows,
        sample_posterior=manifest.posterior and data.posterior == "sample",
        flip=manifest.flip and data.flip is not False,
        fields=task.fields,
        transform=task.transform(),
    )


def _mlflow_run_id(job: Job) -> str | None:
    """Return the id of the run at MLflow. The driver writes it into the run's state, maybe while workers start."""
    if job.mlflow_run_id is not None:
        return job.mlflow_run_id
    try:
        found = read_object(job.paths.state_file).get("mlflow_run_id")
    except (OSError, Damaged):  # a checkpoint without the id is worth more than none
        return None
    return found if isinstance(found, str) else None


def _tell_bad(journal: Journal | None, control: Control) -> OnBad:
    def tell(name: str, reason: str) -> None:
        control.note(f"checkpoint {name} is set aside: {reason}")
        if journal is not None:
            journal.add(SetAside(checkpoint=name, reason=reason))

    return tell


def _tell_resharded(job: Job, resume: Resume, journal: Journal | None, control: Control) -> None:
    train = job.experiment.train
    new = f"{train.num_workers} workers, ZeRO {train.stage}"
    control.note(f"checkpoint converted from {resume.was} to {new} in {resume.convert_seconds:.0f} s")
    if journal is not None:
        journal.add(
            Resharded(
                attempt=job.attempt,
                images=resume.manifest.images_seen,
                old=resume.was,
                new=new,
                seconds=resume.convert_seconds,
            )
        )
