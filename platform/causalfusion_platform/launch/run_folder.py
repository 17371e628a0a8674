"""The folder of one run: its configuration, its MLflow run, and whether it has finished."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from ..config.compose import Composed, flatten, validate
from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.validate import CheckedShards
from ..tracking.lineage import lineage_tags
from ..tracking.mlflow import MlflowTracker, start_run

STATE_FILE = "run.json"
CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"

# Keys that may change when a run is continued: they do not change what is computed.
_FREE = (
    "description",
    "runs",
    "sweep",
    "data.path",
    "data.prepare",
    "data.cpus_per_task",
    "data.concurrency",
    "data.prefetch_batches",
    "data.verify",
    "data.max_bad_rows",
    "train.cpus_per_worker",
    "train.keep_checkpoints",
    "train.max_failures",
)


class RunState(BaseModel):
    """What a run remembers between launches."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mlflow_run_id: str
    tracking_uri: str
    config: dict[str, Any]
    """The resolved experiment that the run was started with."""
    finished: bool = False
    bad_shards: list[str] = []
    """Shards that the newest launch goes without."""
    launches: int = 1
    """Times that the run was launched: 1, and one more for each resume."""

    def write(self, folder: Path) -> None:
        """Write the state into the run's folder, atomically."""
        temporary = folder / f".{STATE_FILE}.{os.getpid()}"
        temporary.write_text(self.model_dump_json(indent=2) + "\n")
        temporary.replace(folder / STATE_FILE)


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


def check_same_config(state: RunState, experiment: Experiment) -> None:
    """Check that a run is continued with the configuration that it was started with.

    Raises:
        UserError: keys differ; each is listed with both values.
    """
    # A run of an earlier version lacks keys that came later: their defaults do what was done before.
    try:
        started = validate(state.config, experiment.name).model_dump(mode="json")
    except UserError:  # a key is gone, or its values are others now: compare what is written
        started = state.config
    old, new = (dict(flatten(tree)) for tree in (started, experiment.model_dump(mode="json")))
    changed = [
        f"  {key}: was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith(_FREE)
    ]
    if changed:
        lines = "\n".join(changed)
        raise UserError(
            f"run {experiment.name!r} in {experiment.run_dir} was started with another configuration:\n{lines}\n"
            f"  use the old values to continue it, or name=… to start another run"
        )


def open_run(
    composed: Composed, shards: CheckedShards, state: RunState | None, parent: str | None = None
) -> RunState:
    """Make the run's folder and its MLflow run, or open them again; the state is written last.

    Args:
        composed: the experiment.
        shards: its data.
        state: what `read_state` returned.
        parent: MLflow run that a new run is a child of.
    """
    experiment = composed.experiment
    folder = experiment.run_dir
    if state is not None:
        state = state.model_copy(update={"launches": state.launches + 1, "bad_shards": sorted(shards.bad)})
        MlflowTracker(experiment.tracking_uri, state.mlflow_run_id).reopen()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        run_id = start_run(
            experiment.tracking_uri,
            experiment.tracking.experiment,
            experiment.name,
            artifacts=experiment.runs / "mlartifacts",
            parameters=dict(flatten(public_config(composed))),
            tags={
                "run.dir": str(folder),
                "mlflow.note.content": experiment.description,
                **lineage_tags(shards.manifest),
            },
            parent=parent,
        )
        state = RunState(
            mlflow_run_id=run_id,
            tracking_uri=experiment.tracking_uri,
            config=experiment.model_dump(mode="json"),
            bad_shards=sorted(shards.bad),
        )
        config = write_config(composed, folder)
        MlflowTracker(experiment.tracking_uri, run_id).artifact(config)
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
