"""The folder of one run: its configuration, its MLflow run, and whether it has finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from ...config.compose import Composed, flatten, validate
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.validate import CheckedShards
from ...storage.atomic import write_atomically
from ...tracking.lineage import lineage_tags
from ...tracking.pages import NOTE
from ...tracking.spool import Spool

STATE_FILE = "run.json"
CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"

# Keys that may change when a run is continued: they do not change what is computed, but for the order of sums where
# the work is divided in another way.
_FREE = (
    "description",
    "runs",
    "sweep",
    "supervision",
    "data.path",
    "data.prepare",
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
)
# Keys that no checkpoint survives a change of.
_FIXED = ("model", "name", "tracking")


class RunState(BaseModel):
    """What a run remembers between launches."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mlflow_run_id: str | None = None
    """Null until MLflow has answered for the first time."""
    tracking_uri: str
    config: dict[str, Any]
    """The resolved experiment that the run was started with."""
    finished: bool = False
    bad_shards: list[str] = []
    """Shards that the newest launch goes without."""
    launches: int = 1
    """Times that the run was launched: 1, and one more for each resume."""
    order: int = 0
    """Times that the run went back to a checkpoint and took another order of the data: training had diverged."""

    def write(self, folder: Path) -> None:
        """Write the state into the run's folder, atomically."""
        write_atomically(folder / STATE_FILE, (self.model_dump_json(indent=2) + "\n").encode())


def read_state(folder: Path) -> RunState | None:
    """Return the state of a run, or None if it was never started.

    Raises:
        UserError: the state file is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        return RunState.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {str(error).splitlines()[0]}\n  choose another name=…, or remove {folder}"
        ) from error


def run_experiment(folder: Path) -> Experiment | None:
    """Return the experiment that a run was started with, or None if the folder holds no run."""
    state = read_state(folder)
    return None if state is None else validate(state.config, folder.name)


def check_same_config(
    state: RunState, experiment: Experiment, allow: Sequence[str] = (), anew: str | None = None
) -> None:
    """Check that a run is continued with the configuration that it was started with.

    Args:
        state: what the run remembers.
        experiment: what it is to be continued with.
        allow: keys, or sections of keys, that may differ all the same.
        anew: what on the command line starts another one; given for sweeps, whose commands allow no changes.

    Raises:
        UserError: other keys differ, each is listed with both values; or `allow` names what cannot change.
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
    except UserError:  # a key is gone, or its values are others now: compare what is written
        started = state.config
    old, new = (dict(flatten(tree)) for tree in (started, experiment.model_dump(mode="json")))
    changed = [
        key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and not _is_under(key, (*_FREE, *allow))
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


def open_run(
    composed: Composed, shards: CheckedShards, state: RunState | None, spool: Spool, parent: str | None = None
) -> RunState:
    """Make the run's folder and record its MLflow run, or open them again; the state is written last.

    Args:
        composed: the experiment.
        shards: its data.
        state: what `read_state` returned.
        spool: takes what MLflow is to know.
        parent: MLflow run that a new run is a child of.
    """
    experiment = composed.experiment
    folder = experiment.run_dir
    tree = experiment.model_dump(mode="json")
    if state is not None:
        news = {"launches": state.launches + 1, "bad_shards": sorted(shards.bad), "config": tree}
        spool.reopen()
        if tree != state.config:
            spool.artifact(write_config(composed, folder))
        state = state.model_copy(update=news)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(spool.folder, ignore_errors=True)  # of a launch that ended before it wrote its state
        spool.create(
            experiment.tracking.experiment,
            experiment.name,
            artifacts=experiment.runs / "mlartifacts",
            parameters=dict(flatten(public_config(composed))),
            tags={
                "run.dir": str(folder),
                NOTE: experiment.description,
                **experiment.tracking.tags,
                **lineage_tags(shards.manifest),
            },
            parent=parent,
        )
        spool.data(shards.manifest, experiment.data.path)
        spool.artifact(write_config(composed, folder))
        state = RunState(tracking_uri=experiment.tracking_uri, config=tree, bad_shards=sorted(shards.bad))
    state.write(folder)
    return state


def write_config(composed: Composed, folder: Path) -> Path:
    """Write the configuration for people, interpolations as written so that no secret is copied."""
    path = folder / CONFIG_FILE
    header = f"# causalfusion train, run {composed.experiment.name}\n"
    path.write_text(header + yaml.safe_dump(public_config(composed), sort_keys=False, allow_unicode=True))
    return path


def public_config(composed: Composed) -> dict[str, Any]:
    """Return the whole resolved tree, with each value that came from an interpolation shown as written."""
    tree = composed.experiment.model_dump(mode="json")
    for key, value in flatten(composed.unresolved):
        if isinstance(value, str) and "${" in value:
            *path, last = key.split(".")
            node = tree
            for part in path:
                node = node[part]
            node[last] = value
    return tree


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """Write summary.json into the run's folder, atomically."""
    path = folder / SUMMARY_FILE
    write_atomically(path, (json.dumps(summary, indent=2) + "\n").encode())
    return path


def read_summary(folder: Path) -> dict[str, Any]:
    """Read what `write_summary` wrote."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    return summary
