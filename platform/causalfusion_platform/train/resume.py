"""Restore a run from its newest good checkpoint, for the present number of workers."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch

from ..checkpoint import store
from ..checkpoint.engine_state import load_engine
from ..checkpoint.manifest import BadCheckpoint, CheckpointManifest
from ..checkpoint.storage import CheckpointStorage, Found, OnBad
from ..checkpoint.universal import convert, load_universal, needs_conversion, reshardable
from ..config.errors import UserError
from ..config.schema import Experiment
from .loop import TrainLoop
from .optimizer import set_hyperparameters

UNIVERSAL_FOLDER = ".universal"


@dataclass(frozen=True)
class Resume:
    """Checkpoint to continue from, the same on all ranks."""

    folder: Path
    """Its folder on this machine."""
    manifest: CheckpointManifest
    universal: Path | None
    """Its engine state, converted to other workers or another ZeRO stage. None: used unchanged."""
    convert_seconds: float = 0.0

    @property
    def was(self) -> str:
        """Workers and ZeRO stage that wrote it, as text."""
        return f"{self.manifest.world_size} workers, ZeRO {self.manifest.zero_stage}"


def find_resume(
    experiment: Experiment, storage: CheckpointStorage, data_digest: str, other_data: bool, on_bad: OnBad
) -> Resume | None:
    """Return the newest good checkpoint, ready for these workers. All ranks call it together.

    The first rank searches. It converts if need be, and so does a rank of each machine where storage is not shared.
    Damaged checkpoints are set aside.

    Args:
        experiment: gives the present number of workers, and their ZeRO stage.
        storage: where the checkpoints are published.
        data_digest: of the shards' manifest.
        other_data: accept a checkpoint that was trained on other data too.
        on_bad: called with the name of each damaged checkpoint and the fault.

    Raises:
        UserError: the newest cannot be used. Every rank raises it.
    """
    rank = torch.distributed.get_rank()
    found: list[Found | UserError | None] = [None]
    if rank == 0:
        try:
            found[0] = _look(experiment, storage, None if other_data else data_digest, on_bad)
        except UserError as error:  # raised after the broadcast, for which the other ranks wait
            found[0] = error
    torch.distributed.broadcast_object_list(found)
    newest = found[0]
    if isinstance(newest, UserError):
        raise newest
    if newest is None:
        return None
    resume, fault = None, None
    try:
        resume = _bring(experiment, storage, newest, rank)
    except (UserError, BadCheckpoint, OSError) as error:  # raised once all ranks are through
        fault = error
    faults: list[Exception | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(faults, fault)
    for one in faults:
        if one is not None:
            raise one
    assert resume is not None
    return resume


def restore(loop: TrainLoop, resume: Resume) -> None:
    """Put a checkpoint's engine state, averages and position into the loop. All ranks call it together.

    Raises:
        UserError: a file holds code, or other averages than the experiment's.
    """
    folder, manifest = resume.folder, resume.manifest
    try:
        if resume.universal is None:
            load_engine(loop.engine, folder / "engine")
        else:
            load_universal(loop.engine, resume.universal)
    except UnpicklingError as error:
        raise UserError(
            f"{folder} is refused: a file of it holds code, which has not been run: {error}\n"
            f"  find out who wrote it; to go on from the checkpoint before it, remove this folder"
        ) from error
    set_hyperparameters(loop.engine, loop.experiment)
    torch.distributed.barrier()
    if resume.universal is not None and torch.distributed.get_rank() == 0:
        shutil.rmtree(resume.universal, ignore_errors=True)
    main, *others = manifest.averages
    loop.averages.load(
        {main: folder / store.WEIGHTS_FOLDER, **{name: folder / store.AVERAGES_FOLDER / name for name in others}}
    )
    loop.state.step, loop.state.images_seen = manifest.step, manifest.images_seen


def _look(
    experiment: Experiment, storage: CheckpointStorage, data_digest: str | None, on_bad: OnBad
) -> Found | None:
    newest = storage.latest(on_bad, set_aside=True)
    if newest is None:
        return None
    folder, manifest = storage.folder_here(newest), newest.manifest
    if data_digest not in (None, manifest.data_digest):
        raise UserError(
            f"{folder} was trained on data {manifest.data_digest[:12]}…, but data.path holds "
            f"{str(data_digest)[:12]}…\n"
            f"  point data.path at the old shards, start anew with another name=…, or go on all the same: "
            f"--allow-config-change data.digest"
        )
    train = experiment.train
    reason = reshardable(manifest.zero_stage, manifest.world_size, train.stage, train.num_workers)
    if reason is not None:
        raise UserError(
            f"{folder} does not fit train.zero_stage={train.stage}: {reason}\n"
            f"  resume with train.zero_stage={manifest.zero_stage}, or start anew with another name=…"
        )
    return newest


def _bring(experiment: Experiment, storage: CheckpointStorage, found: Found, rank: int) -> Resume:
    """Return a checkpoint on this machine, converted for these workers if need be.

    Raises:
        UserError: it cannot be converted.
        BadCheckpoint: this machine could not download it whole.
    """
    folder, manifest, train = storage.folder_here(found), found.manifest, experiment.train
    old, new = (manifest.zero_stage, manifest.world_size), (train.stage, train.num_workers)
    if not needs_conversion(*old, *new):
        return Resume(folder, manifest, None)
    started = time.perf_counter()
    out = folder.parent / UNIVERSAL_FOLDER
    with nullcontext(rank == 0) if storage.shared else storage.first_here("conversion") as first:
        if first:
            _convert(folder, out, manifest, train.stage)
    return Resume(folder, manifest, out, time.perf_counter() - started)


def _convert(folder: Path, out: Path, manifest: CheckpointManifest, stage: int) -> None:
    shutil.rmtree(out, ignore_errors=True)  # of an attempt that was cut short
    try:
        convert(folder / "engine", out, stage)
    except RuntimeError as error:
        raise UserError(
            f"{error}\n  resume with train.num_workers={manifest.world_size} "
            f"train.zero_stage={manifest.zero_stage}, which needs no conversion"
        ) from error
