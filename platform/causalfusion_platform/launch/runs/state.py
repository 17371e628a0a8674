"""State of a run between launches, and the check of the configuration that it is continued with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from ...config.commands import command
from ...config.compose import flatten, recorded_tree, validate
from ...config.errors import UserError
from ...config.schema import Experiment
from ...config.secrets import redact, remember_address, restored
from ...data.manifest import AutoencoderId
from ...storage.atomic import write_atomically
from ...storage.fence import Fence, NoFence
from ...storage.json_file import Damaged, read_model
from ...storage.run_layout import RunPaths

# Keys that may change when a run is continued: they do not change what is computed, but for the order of sums where
# the work is divided in another way.
_FREE = (
    "description",
    "runs",
    "sweep",
    "supervision",
    "objective.sequence_multiple",  # padding, which changes no result but for rounding
    "data.path",
    "data.validation",  # the summary names the rows that it scores by their digest
    "data.max_overlap",
    "data.tokenizer",  # its SHA-256 is compared with that of the checkpoints
    "data.prepare",
    "data.subset",  # the digest of the rows is compared with that of the checkpoints
    "data.in_memory",
    "data.cpus_per_task",
    "data.concurrency",
    "data.prefetch_batches",
    "data.verify",
    "data.max_bad_rows",
    "train.num_workers",
    "train.cpus_per_worker",
    "train.gpus_per_worker",
    "train.zero_stage",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.offload",
    "train.compile",
    "train.log_every_images",
    "train.sample_every_images",
    "train.checkpoint_every_images",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.keep_every_images",
    "train.staging",
    "tracking.tags",
    "evaluation.score",
    "evaluation.probe_every_images",
)
# Keys that no checkpoint survives a change of.
_FIXED = ("task", "model", "name", "tracking")


class RunState(BaseModel):
    """State of a run between launches."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mlflow_run_id: str | None = None
    """Null until MLflow has answered for the first time."""
    tracking_uri: str
    """Address of MLflow, with variables in place of their values."""
    config: dict[str, Any]
    """The resolved experiment that the run was started with, without secrets."""
    finished: bool = False
    bad_shards: list[str] = []
    """Shards that the newest launch goes without."""
    autoencoder: AutoencoderId | None = None
    """Autoencoder that made the latents of training. Null in runs of earlier versions."""
    launches: int = 1
    """Times that the run was launched: 1, and one more for each resume."""
    order: int = 0
    """Times that the run went back to a checkpoint and took another order of the data: training had diverged."""
    folder: str | None = None
    """Folder of the run when this was written, which may have been moved since. Null in earlier versions."""
    user: str | None = None
    """Owner of the run: see `config.owner`. Null in runs of earlier versions, and where the system has no name."""
    identity: str = ""
    """Tells MLflow's run of a copied folder from the original's."""

    @property
    def address(self) -> str:
        """Address of MLflow to connect to.

        Raises:
            UserError: a variable in it is not set.
        """
        remember_address(self.tracking_uri)
        return restored(self.tracking_uri)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the state in a run's folder, or None if the run was never started.

        Raises:
            UserError: the file is damaged.
        """
        paths = RunPaths(folder)
        try:
            return read_model(paths.state_file, cls)
        except FileNotFoundError:
            return None
        except Damaged as error:
            raise UserError(f"{paths.state_file} is damaged: {error.reason}\n  {_advice(paths)}") from error

    def write(self, folder: Path, fence: Fence | None = None) -> None:
        """Write the state into a run's folder, atomically. Only its owner reads an address with a password.

        Raises:
            Superseded: another launch has taken the run over. The file is left alone.
        """
        content = (self.model_dump_json(indent=2) + "\n").encode()
        private = redact(self.tracking_uri) != self.tracking_uri
        write_atomically(RunPaths(folder).state_file, content, private=private, check=(fence or NoFence()).check)


def _advice(paths: RunPaths) -> str:
    """Return the next command for a run whose state is damaged. Its checkpoints may be whole."""
    if not any(paths.checkpoints.glob("images-*")):
        return f"choose another name=…, or remove {paths.root}"
    return (
        f"its checkpoints do not need this file: {command('sample', paths.root)}\n"
        f"  to continue the run, put a copy of the file back. To train anew, choose another name=…"
    )


def check_same_config(
    state: RunState, experiment: Experiment, allow: Sequence[str] = (), anew: str | None = None
) -> None:
    """Check that a run is continued with the configuration that it was started with.

    Args:
        state: that of the run.
        experiment: the one that it is to be continued with.
        allow: keys, or sections of keys, that may differ all the same.
        anew: arguments that start another one. Given for sweeps, whose commands do not allow changes.

    Raises:
        UserError: other keys differ, listed with both values, or `allow` names a key that cannot change.
    """
    fixed = [key for key in allow if key.startswith(_FIXED)]
    if fixed:
        raise UserError(
            f"--allow-config-change {','.join(fixed)}: the checkpoints of a run do not outlive such a change\n"
            f"  start another run: name=…"
        )
    # A run of an earlier version lacks keys that came later: their defaults do what was done before.
    try:
        started = validate(state.config, experiment.name).model_dump(mode="json")
    except UserError:  # a key or one of its values does not exist now: compare as written
        started = state.config
    old, new = dict(flatten(started)), dict(flatten(recorded_tree(experiment)))
    # Earlier versions wrote secrets as they are.
    plain = dict(flatten(experiment.model_dump(mode="json")))
    changed = [
        key
        for key in sorted({*old, *new})
        if old.get(key) not in (new.get(key), plain.get(key)) and not _is_under(key, (*_FREE, *allow))
    ]
    if not changed:
        return
    lines = "\n".join(f"  {key}: was {old.get(key)!r}, now {new.get(key)!r}" for key in changed)
    possible = [key for key in changed if not key.startswith(_FIXED)]
    advice = ""
    if possible and anew is None:
        advice = f",\n  --allow-config-change {','.join(possible)} to go on with the new ones"
    raise UserError(
        f"run {experiment.name!r} in {experiment.run_dir} was started with another configuration:\n{lines}\n"
        f"  use the old values to continue it{advice}, or {anew or 'name=…'} to start another run"
    )


def _is_under(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
