"""Job of a sweep, and the trials that finished in earlier launches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.commands import command
from ...config.compose import Composed
from ...config.errors import UserError
from ...config.schema import Experiment
from ...config.sweep import SweepConfig
from ...data.validate import CheckedShards
from ...report.numbers import is_number
from ..runs.folder import RunFolder
from .population import member_of, newest_of
from .search import check_metrics, check_secrets, measuring, optuna_trial, studied_points
from .trials import Trial, sweep_of, trials_of

MEASURED_ANEW = ("sampling", "evaluation")
"""Settings of finished runs that may have changed: a reproduction measures anew, with the present ones."""


@dataclass
class SweepJob:
    """Trials of a sweep, and the settings that they share."""

    composed: Composed
    """The sweep: its name, its folder, its tracking, and the settings that trials share."""
    sweep: SweepConfig
    trials: list[Trial] = field(default_factory=list)
    """All trials, where they are known beforehand."""
    elsewhere: dict[str, Path] = field(default_factory=dict)
    """Trial → folder of a finished run of another sweep with the same settings, which is taken as its own."""
    anew: str = "name=…"
    """Argument of the command line that makes it another sweep."""
    measured_anew: bool = False
    """A report measures all trials anew, so that their own scores need not compare."""
    checked: dict[Path, CheckedShards] = field(default_factory=dict)
    """Folder of shards → the check of them by the sweep. Trials do not read them again."""

    def __post_init__(self) -> None:
        """Check where the trials would be kept.

        Raises:
            UserError: on object storage, where sweeps are not supported.
        """
        if self.experiment.run_url is not None:
            raise UserError(
                f"runs={self.experiment.runs}: the trials of a sweep need a folder that all nodes share\n"
                f"  name one: runs=FOLDER; a single run can be on object storage: causalfusion train"
            )

    @property
    def experiment(self) -> Experiment:
        """The sweep's experiment."""
        return self.composed.experiment

    def check_folder(self, folder: RunFolder) -> None:
        """Check that the sweep is continued with the settings that it was started with.

        Raises:
            UserError: others have changed than those that are measured anew.
        """
        folder.check_config(self.experiment, MEASURED_ANEW if self.measured_anew else (), anew=self.anew)

    @property
    def chosen_on_the_way(self) -> bool:
        """Optuna chooses each trial when its turn comes."""
        return self.sweep.search == "optuna"

    def run_dir(self, name: str) -> Path:
        """Folder of a trial's newest run."""
        if self.sweep.population is not None and (member := member_of(self.experiment, name)):
            name = member.run_name
        return self.elsewhere.get(name, self.experiment.run_dir / name)

    def run(self, name: str) -> RunFolder:
        """Return a trial's newest run."""
        return RunFolder(self.run_dir(name))


def job_of(composed: Composed) -> SweepJob:
    """Return the job that the sweep section of an experiment asks for.

    Raises:
        UserError: the section is missing or wrong.
    """
    composed = measuring(composed)
    sweep = sweep_of(composed.experiment)
    check_metrics(composed.experiment)
    check_secrets(sweep)
    return SweepJob(composed, sweep, [] if sweep.search == "optuna" else trials_of(composed))


def finished_trials(job: SweepJob) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Yield the trials that have finished in earlier launches, with their summaries.

    Raises:
        UserError: one was trained with other settings than it has now.
    """
    known = job.trials
    trials = points_tried(job) if job.chosen_on_the_way else [newest_of(job.experiment, trial) for trial in known]
    for trial in trials:
        run = job.run(trial.name)
        if not run.finished:
            continue
        if not job.chosen_on_the_way and job.sweep.population is None and trial.name not in job.elsewhere:
            run.check_config(trial.experiment, MEASURED_ANEW, anew=job.anew)
        summary = run.read_summary()
        _check_numbers(run, summary, job.sweep.targets)
        yield trial, summary


def _check_numbers(run: RunFolder, summary: Mapping[str, Any], targets: Iterable[str]) -> None:
    """Check that the scores which rank a finished run are numbers.

    Raises:
        UserError: one is something else.
    """
    for target in targets:
        value = summary.get(target)
        if value is not None and not is_number(value):
            raise UserError(
                f"{run.summary_file} is damaged: {target} is {value!r:.80}, not a number\n"
                f"  put a copy of the file back, or measure the weights again: {command('evaluate', run.root)}"
            )


def points_tried(job: SweepJob) -> list[Trial]:
    """Return the trials of a search by Optuna that were begun: the points of its study that have a folder."""
    points = studied_points(job.sweep, job.experiment.run_dir)
    trials = {trial.name: trial for trial in (optuna_trial(job.composed, job.sweep, point) for point in points)}
    return [trial for name, trial in sorted(trials.items()) if job.run(name).state_file.is_file()]
