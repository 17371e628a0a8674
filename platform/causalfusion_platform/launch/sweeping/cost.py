"""Cost of a sweep, before it starts."""

from __future__ import annotations

from ...report.runs.dry_run import gpu_hours
from ...tasks import Task, open_task
from ...tracking.journal import AttemptStarted, Ended
from ..runs.folder import RunFolder
from .job import SweepJob

_SHOWN = 6
CPU_RATE = 35e9
"""FLOP/s of one thread in training, measured with the model of the tables at MNIST scale in bf16 on AVX-512."""


def sweep_cost(job: SweepJob) -> list[str]:
    """Return lines with the trials, the length of each, and the cost of all."""
    tasks = [open_task(trial.experiment) for trial in job.trials] or [open_task(job.experiment)]
    total = len(job.trials) or job.sweep.num_trials or 0
    finished = [run for trial in job.trials if (run := job.run(trial.name)).finished]
    left = total - len(finished)
    images = max(task.experiment.train.total_images for task in tasks)
    parameters = sorted({task.size.parameters for task in tasks})
    sizes = f"{parameters[0]:,}" if len(parameters) == 1 else f"{parameters[0]:,} to {parameters[-1]:,}"
    lines = [f"{total} trials of up to {images:,} images, {sizes} parameters; {_manner(job)}"]
    if job.trials:
        names = [trial.name for trial in job.trials[:_SHOWN]]
        lines.append("  " + ", ".join(names) + (f", … and {total - _SHOWN} more" if total > _SHOWN else ""))
    flops = [one for task in tasks if (one := _flops(task)) is not None]
    if len(flops) < len(tasks):
        lines.append(f"  FLOPs are not known: task={job.experiment.task} does not state them")
    else:
        repeated = total / len(tasks)  # points that a search has still to draw cost as much as the given one
        precisions = [task.experiment.train.precision for task in tasks]
        work = [(repeated * one, precision) for one, precision in zip(flops, precisions, strict=True)]
        lines.append(f"  at most {repeated * sum(flops):.3g} FLOPs; GPU-hours {gpu_hours(work)}")
        if not any(task.experiment.train.gpus_per_worker for task in tasks):
            hours = repeated * sum(flops) / CPU_RATE / 3600
            lines.append(f"  {hours:,.2g} CPU-hours, assuming {CPU_RATE / 1e9:g} GFLOP/s on each core")
    seconds = [value for one in finished if (value := _seconds(one)) is not None]
    if seconds and left:
        mean = sum(seconds) / len(seconds)
        lines.append(f"  {left} are left; a finished one took {mean / 60:.1f} minutes")
    elif finished:
        lines.append(f"  {len(finished)} have finished before")
    return lines


def _manner(job: SweepJob) -> str:
    sweep = job.sweep
    if sweep.asha is not None:
        return f"ASHA compares them from {sweep.asha.grace_images:,} images on and ends the worse ones"
    if sweep.population is not None:
        kind = "PBT" if sweep.pbt is not None else "PB2"
        return f"{kind}: every {sweep.population.every_images:,} images the worst go on from the best"
    if sweep.search == "optuna":
        return "Optuna chooses them"
    return "every combination" if sweep.grid else "drawn at random" if sweep.space else "one for each row and seed"


def _flops(task: Task) -> float | None:
    per_row = task.flops()
    return None if per_row is None else per_row * task.experiment.train.total_images


def _seconds(run: RunFolder) -> float | None:
    """Return the time of a run from its first attempt to its end, if it was not interrupted."""
    events = run.journal.events()
    starts = [event.time for event in events if isinstance(event, AttemptStarted)]
    ends = [event.time for event in events if isinstance(event, Ended)]
    return ends[0] - starts[0] if len(starts) == len(ends) == 1 else None
