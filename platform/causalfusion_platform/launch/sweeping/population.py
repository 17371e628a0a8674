"""Members of a population: each a series of runs, of which all but the first began with another member's weights.

Ray Tune decides which member goes on from which. Weights never go through Tune: its checkpoint is a pointer to a
run's checkpoint. A new generation is a run of its own, in a folder of its own, that starts from a verified copy.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import tune

from ...checkpoint.manifest import check
from ...checkpoint.store import checkpoint_folder
from ...config.compose import Composed
from ...config.errors import UserError
from ...config.schema import Experiment
from ...config.sweep import Distribution, SweepConfig
from ...storage.atomic import write_atomically
from ...storage.held import held_folder
from ...storage.json_file import Damaged, read_model
from ...storage.run_layout import RunPaths
from ...tracking.journal import Adopted, Journal
from .trials import Trial, compose_trial, rounded

_POINTER_FILE = "checkpoint-of.json"


class PopulationMember(BaseModel):
    """State of one member, a small file below the sweep's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    tune_id: str
    """Tune's name of it. The configuration does not identify it: an exploit copies all of the other member's."""
    generation: int = 1
    values: dict[str, Any]
    """Dotted key → value of the newest generation."""
    taken_from: str | None = None
    """Name of the run whose weights the newest generation began with."""
    taken_at: int = 0
    """Images that these weights had seen."""

    @property
    def run_name(self) -> str:
        """Name of the newest generation's run."""
        return self.name if self.generation == 1 else f"{self.name}.g{self.generation}"


def members_of(sweep: Experiment) -> dict[str, PopulationMember]:
    """Return the members of a sweep's population that were started, by name."""
    files = sorted(_folder(sweep).glob("*.json"))
    return {path.stem: _read(path) for path in files}


def member_of(sweep: Experiment, name: str) -> PopulationMember | None:
    """Return a member of a sweep's population, if it was started."""
    try:
        return _read(_folder(sweep) / f"{name}.json")
    except FileNotFoundError:
        return None


def _read(path: Path) -> PopulationMember:
    try:
        return read_model(path, PopulationMember)
    except Damaged as error:
        raise UserError(
            f"{path} is damaged: {error.reason}\n"
            f"  put a copy of the file back, or choose another name=… for the sweep"
        ) from error


def newest_of(sweep: Experiment, trial: Trial) -> Trial:
    """Return a trial with the values of its newest generation, if it is a member that has been exploited."""
    member = member_of(sweep, trial.name)
    return trial if member is None else dataclasses.replace(trial, values=member.values)


def member_trial(composed: Composed, sweep: SweepConfig, config: Mapping[str, Any]) -> Trial:
    """Return the run that Tune wants now of the member that this process is: its newest one, or a new generation.

    Args:
        composed: the sweep.
        sweep: its sweep section.
        config: what Tune gives the trial: `trial`, the name of a member, and a value for each key searched.
    """
    experiment, tune_id = composed.experiment, tune.get_context().get_trial_id()
    known = members_of(experiment)
    member = next((one for one in known.values() if one.tune_id == tune_id), None)
    if member is None:  # the first time in this launch
        member = known.get(config["trial"]) or PopulationMember(
            name=config["trial"], tune_id=tune_id, values=values_of(sweep, config)
        )
        member = member.model_copy(update={"tune_id": tune_id})
        _write(experiment, member)
    pointer = _pointed_at()
    trial = _trial_of(composed, member)
    if pointer is None or pointer[0] == trial.experiment.run_dir:
        return trial
    donor, images = pointer
    member = member.model_copy(
        update={
            "generation": member.generation + 1,
            "values": values_of(sweep, config),
            "taken_from": donor.name,
            "taken_at": images,
        }
    )
    trial = _trial_of(composed, member)
    adopt(checkpoint_folder(RunPaths(donor).checkpoints, images), trial.experiment.run_dir, donor.name)
    _write(experiment, member)
    return trial


def adopt(checkpoint: Path, run_dir: Path, run: str) -> None:
    """Begin a run's folder with a verified copy of another run's checkpoint.

    Raises:
        BadCheckpoint: it is damaged.
    """
    manifest = check(checkpoint)
    shutil.rmtree(run_dir, ignore_errors=True)  # left by a generation that was cut short before it was recorded
    root = RunPaths(run_dir).checkpoints
    root.mkdir(parents=True)
    shutil.copytree(checkpoint, root / checkpoint.name, copy_function=_link)
    Journal(run_dir).add(Adopted(run=run, images=manifest.images_seen))


def report_with_pointer(values: dict[str, Any], run_dir: Path, images: int) -> None:
    """Report a measurement to Tune with the checkpoint that it is of."""
    with held_folder() as held:
        folder = held / "pointer"
        folder.mkdir()
        content = json.dumps({"run_dir": str(run_dir), "images": images})
        (folder / _POINTER_FILE).write_text(content, encoding="utf-8")
        tune.report(values, checkpoint=tune.Checkpoint.from_directory(folder))


def _pointed_at() -> tuple[Path, int] | None:
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        pointer = json.loads((Path(folder) / _POINTER_FILE).read_text(encoding="utf-8"))
    return Path(pointer["run_dir"]), int(pointer["images"])


def _trial_of(composed: Composed, member: PopulationMember) -> Trial:
    tags = {"member": member.name, "generation": str(member.generation)}
    if member.taken_from:
        tags |= {"taken_from": member.taken_from, "taken_at": str(member.taken_at)}
    base = composed.experiment
    tagged = base.model_copy(
        update={"tracking": base.tracking.model_copy(update={"tags": {**base.tracking.tags, **tags}})}
    )
    return compose_trial(Composed(tagged, composed.unresolved), member.run_name, member.values)


def coordinate(sweep: SweepConfig, key: str, value: Any) -> Any:
    """Return a value of a key as Tune holds it.

    PB2's Gaussian process measures distances: it is given logarithms where orders of magnitude are to count alike.
    """
    return math.log(value) if _in_logarithms(sweep, key) else value


def searched_bounds(sweep: SweepConfig) -> dict[str, list[float]]:
    """Return the bounds of each key for PB2, in Tune's coordinates."""
    laws = {key: law.uniform or law.log_uniform or () for key, law in sweep.space.items()}
    return {key: [coordinate(sweep, key, bound) for bound in bounds] for key, bounds in laws.items()}


def values_of(sweep: SweepConfig, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trained values of a configuration of Tune's: readable numbers, inside their bounds."""
    held = {key: math.exp(config[key]) if _in_logarithms(sweep, key) else config[key] for key in sweep.space}
    return {key: _inside(sweep.space[key], value) for key, value in held.items()}


def _in_logarithms(sweep: SweepConfig, key: str) -> bool:
    return sweep.pb2 is not None and sweep.space[key].log_uniform is not None


def _inside(distribution: Distribution, value: Any) -> Any:
    """Bring a value that Tune has multiplied back into its bounds, and to digits that can be read."""
    if distribution.integers is not None:
        low, high = distribution.integers
        return min(max(round(value), low), high)
    bounds = distribution.uniform or distribution.log_uniform
    return value if bounds is None else rounded(float(value), bounds)


def _link(source: str, target: str) -> None:
    # Files of checkpoints never change: a hard link costs nothing, on storage that supports links.
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _folder(sweep: Experiment) -> Path:
    return RunPaths(sweep.run_dir).members


def _write(sweep: Experiment, member: PopulationMember) -> None:
    _folder(sweep).mkdir(parents=True, exist_ok=True)
    write_atomically(_folder(sweep) / f"{member.name}.json", (member.model_dump_json(indent=2) + "\n").encode())
