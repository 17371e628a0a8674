"""Reproduce a table of the paper: train its rows with each seed, measure every column, test its claims."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from causalfusion import count_parameters

from ...config.errors import UserError
from ...config.paper_table import PaperTable
from ...report.numbers import duration
from ...report.paper.pages import render_markdown
from ...report.paper.report import Circumstances, PaperReport, RunFacts, build_report
from ...report.paper.words import count_span
from ...report.sweeps.live import SweepDisplay
from ...report.terminal import as_path
from ...report.write import write_paper_report
from ...tracking.journal import Ended, Journal, Launched
from ...tracking.lineage import git_sha, package_versions
from ...tracking.pages import NOTE
from ..cluster.session import ray_session
from ..runs.exit_status import StoppedRun
from ..runs.folder import RunFolder
from ..runs.sync import sync_run
from ..sweeping.description import pinned
from ..sweeping.job import SweepJob
from ..sweeping.results import SweepResult
from ..sweeping.sweep import run_sweep
from .figures import draw_more
from .finetunes import FinetuneStage, check_finetunes, finetune_runs, finetuned_values, plan_finetunes
from .measurable import check_measurable
from .measured import measure_rows
from .rows import Reproduction, trial_name

logger = logging.getLogger(__name__)

REPORT_FOLDER = "report"


OpenDisplay = Callable[[str], AbstractContextManager[SweepDisplay]]
"""Opens the display of a sweep whose trials are ranked by a metric."""


def reproduce(reproduction: Reproduction, open_display: OpenDisplay) -> PaperReport:
    """Train, fine-tune and measure the rows that earlier launches left, and write the report.

    Args:
        reproduction: the table.
        open_display: called once for the trainings of rows, and once for their fine-tunes.

    Raises:
        UserError: an argument is wrong. Nothing was started.
        StoppedRun: a signal came. The same call goes on.
    """
    table, job = reproduction.table, reproduction.job
    stage = plan_finetunes(reproduction)
    check_measurable(reproduction)
    if stage is not None:
        check_finetunes(stage)
    with ray_session():
        if reproduction.elsewhere:
            where = sorted({path.parent.name for path in reproduction.elsewhere.values()})
            logger.info(f"{len(reproduction.elsewhere)} rows × seeds are trained as runs of {', '.join(where)}")
        result = _train(table, job, open_display)
        failed = result.failed
        if stage is not None and (ready := stage.ready()).trials:
            failed += _train(table, ready, open_display).failed
        measured = measure_rows(reproduction)
    values, notes = ({}, {}) if stage is None else finetuned_values(stage)
    report = build_report(
        table,
        reproduction.scale,
        {**measured.values, **values},
        _facts(reproduction),
        _around(reproduction, {**measured.spaces, **notes}, measured.repeats, stage),
    )
    folder = reproduction.folder / REPORT_FOLDER
    pictures = draw_more(reproduction, measured.first, folder)
    paths = write_paper_report(report, folder, pictures=pictures)
    paths += [folder / f"{picture.title}.png" for picture in pictures]
    _publish(reproduction, report, paths, result, failed)
    return report


def _train(table: PaperTable, job: SweepJob, open_display: OpenDisplay) -> SweepResult:
    """Run a sweep of the table.

    Raises:
        StoppedRun: a signal came.
    """
    with open_display(next(iter(job.sweep.targets))) as display:
        result = run_sweep(job, display)
    if result.stopped:
        raise StoppedRun(f"reproduction of {table.source} was stopped\n  the same command continues it")
    return result


def _facts(reproduction: Reproduction) -> dict[tuple[str, int], RunFacts]:
    facts = {}
    for row, seed, run in reproduction.runs():
        state, experiment = run.state, run.experiment
        if state is None or experiment is None:
            continue
        summary = run.read_summary() if state.finished else {}
        facts[row.file, seed] = RunFacts(
            folder=as_path(run.root),
            status="finished" if state.finished else "not finished",
            mlflow_run_id=state.mlflow_run_id,
            images=summary.get("images_seen"),
            parameters=count_parameters(experiment.model),
            seconds=_seconds(run),
        )
    return facts


def _seconds(run: RunFolder) -> float | None:
    """Return the time that all launches of a run took together."""
    total, began, last = 0.0, None, 0.0
    for event in run.journal.events():
        if isinstance(event, Launched):
            total += last - began if began is not None else 0.0  # it was killed: its last event counts
            began = event.time
        elif isinstance(event, Ended) and began is not None:
            total, began = total + event.time - began, None
        last = event.time
    return total or None


def _around(
    reproduction: Reproduction,
    spaces: Mapping[str, str],
    repeats: Mapping[str, Sequence[tuple[float, float]]],
    stage: FinetuneStage | None,
) -> Circumstances:
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = package_versions()
    lineage = {
        "commit": git_sha(),
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("torch", "ray", "deepspeed")),
    }
    folders = [reproduction.folder / trial_name(row, seed) for row, seed, _ in reproduction.runs()]
    if stage is not None:
        folders += [run.root for run in finetune_runs(stage)]
    times = [
        event.time
        for folder in folders
        for event in Journal(folder).events()
        if isinstance(event, Launched | Ended)
    ]
    return Circumstances(
        command=reproduction.command,
        hardware=f"{cores} CPU cores, {memory:.0f} GiB, {platform.machine()}",
        generated_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        wall_seconds=max(times) - min(times) if times else None,
        spaces=spaces,
        repeats=repeats,
        lineage=lineage,
        finetunes="" if stage is None else _finetunes(stage),
    )


def _finetunes(stage: FinetuneStage) -> str:
    """Return how many fine-tunes there are, their length and their time."""
    runs = list(finetune_runs(stage))
    finished = [run for run in runs if run.finished]
    seconds = sum(_seconds(run) or 0.0 for run in finished)
    images = sorted({run.read_summary()["images_seen"] for run in finished})
    seen = f"{count_span(images)} images each, " if images else ""
    return f"{len(finished)} of {len(runs)} finished, {seen}{duration(seconds)} of runs"


def _publish(
    reproduction: Reproduction,
    report: PaperReport,
    paths: Sequence[Path],
    result: SweepResult,
    failed: int,
) -> None:
    """Put the report on the page of the sweep's MLflow run: as its description, and its files as artifacts."""
    run, job = RunFolder(reproduction.folder), reproduction.job
    outbox = run.outbox
    try:
        with run.lock():
            outbox.reopen()
            outbox.tags({NOTE: pinned(job.experiment, job.sweep, result.mlflow_run_id, render_markdown(report))})
            for path in paths:
                outbox.artifact(path, REPORT_FOLDER)
            outbox.finish("FAILED" if failed else "FINISHED")
        sync_run(run, seconds=60)
    except UserError as error:
        logger.warning(str(error))
