"""Reproduce a table of the paper: train its rows with each seed, measure every column, test its claims."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from causalfusion import count_parameters

from ...config.errors import UserError
from ...config.paper_table import Column, Row
from ...config.schema import Experiment
from ...report.paper.pages import render_markdown
from ...report.paper.report import Circumstances, PaperReport, RunFacts, build_report
from ...report.sweeps.live import SweepDisplay
from ...report.terminal import as_path
from ...report.write import write_paper_report
from ...sampling.pixels import Pixels
from ...tracking.journal import Ended, Journal, Launched
from ...tracking.lineage import git_sha, package_versions
from ...tracking.pages import NOTE
from ..cluster.session import ray_session
from ..evaluating.evaluate import PlanePoint, evaluate
from ..evaluating.measuring import Measuring, open_measuring
from ..generating.actors import RayGenerators
from ..generating.request import GenerateRequest
from ..runs.exit_status import StoppedRun
from ..runs.folder import RunFolder
from ..runs.sync import sync_run
from ..sweeping.description import pinned
from ..sweeping.results import SweepResult
from ..sweeping.sweep import run_sweep
from .figures import draw_more
from .measurable import check_measurable
from .rows import Reproduction, trial_name

logger = logging.getLogger(__name__)

REPORT_FOLDER = "report"


def reproduce(reproduction: Reproduction, display: SweepDisplay) -> PaperReport:
    """Train and measure the rows that earlier launches left, and write the report.

    Raises:
        UserError: an argument is wrong. Nothing was started.
        StoppedRun: a signal came. The same call goes on.
    """
    table, job = reproduction.table, reproduction.job
    check_measurable(reproduction)
    with ray_session():
        if reproduction.elsewhere:
            where = sorted({path.parent.name for path in reproduction.elsewhere.values()})
            logger.info(f"{len(reproduction.elsewhere)} rows × seeds are trained as runs of {', '.join(where)}")
        result = run_sweep(job, display)
        if result.stopped:
            raise StoppedRun(f"reproduction of {table.source} was stopped\n  the same command continues it")
        measured = _measure(reproduction)
    report = build_report(
        table, reproduction.scale, measured.values, _facts(reproduction), _around(reproduction, measured.spaces)
    )
    folder = reproduction.folder / REPORT_FOLDER
    pictures = draw_more(reproduction, measured.first, folder)
    paths = write_paper_report(report, folder, pictures=pictures)
    paths += [folder / f"{picture.title}.png" for picture in pictures]
    _publish(reproduction, report, paths, result)
    return report


@dataclass(frozen=True)
class _AllMeasured:
    values: dict[tuple[str, str, int], float | None] = field(default_factory=dict)
    """Row, column and seed → value."""
    first: dict[tuple[str, str, int], Pixels] = field(default_factory=dict)
    """The first samples there."""
    spaces: dict[str, str] = field(default_factory=dict)
    """Metric → its extractor and reference."""


def _measure(reproduction: Reproduction) -> _AllMeasured:
    table, plan, found = reproduction.table, reproduction.plan, _AllMeasured()
    opened: dict[tuple[str | None, Path], Measuring] = {}
    spaces: dict[str, dict[str, list[str]]] = {}
    runs = [one for one in reproduction.runs() if one[0] in reproduction.rows and one[2].finished]
    with RayGenerators() as generators:
        for number, (row, seed, run) in enumerate(runs, 1):
            experiment = reproduction.experiments[trial_name(row, seed)]
            if experiment.objective.text is not None:
                _take_over(found, reproduction, row, seed, run)
                continue
            if not opened:
                logger.info(f"measuring {plan.samples:,} samples for each value")
            reference = reproduction.references.of(row)
            if (reference, experiment.data.path) not in opened:
                opened[reference, experiment.data.path] = open_measuring(
                    reproduction.extractor,
                    Path(reference) if reference else None,
                    experiment.data.path,
                    checked=reproduction.job.checked.get(experiment.data.path),
                )
            measuring = opened[reference, experiment.data.path]
            places = _places(experiment, table.columns)
            # By this row's own settings: the run may stand for another row that is sampled differently.
            request = GenerateRequest(
                checkpoint=run.root,
                num=plan.samples,
                sampling=experiment.sampling,
                seed=seed,
                vae=reproduction.vaes.of(row),
            )
            cells = list(dict.fromkeys(places.values()))
            results = evaluate(request, cells, measuring, generators, keep_samples=reproduction.scale == "digits")
            by_cell = dict(zip(cells, results, strict=True))
            for column in table.columns:
                name, origin = plan.metrics[column.metric], measuring.provenance
                space = (
                    f"space {origin['space']}, weights {origin['weights_sha256'][:12]}…, reference: "
                    f"{origin['reference']}"
                )
                in_space = spaces.setdefault(name, {}).setdefault(space, [])
                in_space += [row.file] if row.file not in in_space else []
                if column.name in places:
                    one, key = by_cell[places[column.name]], (row.file, column.name, seed)
                    found.values[key] = one.metrics.get(name)
                    if one.first is not None:
                        found.first[key] = one.first
            if any(one.measured_now for one in results):
                logger.info(f"measured {trial_name(row, seed)} ({number} of {len(runs)})")
    for name, rows in spaces.items():
        found.spaces[name] = "; ".join(
            space if len(rows) == 1 else f"{', '.join(files)}: {space}" for space, files in rows.items()
        )
    return found


def _take_over(found: _AllMeasured, reproduction: Reproduction, row: Row, seed: int, run: RunFolder) -> None:
    """Take the values of a run of text and images from its summary: its end has measured both directions."""
    plan, summary = reproduction.plan, run.read_summary()
    for column in reproduction.table.columns:
        name = plan.metrics[column.metric]
        found.values[row.file, column.name, seed] = summary.get(name)
        found.spaces[name] = f"of {summary.get('num_captions')} captions and {summary.get('num_samples')} drawings"


def _places(experiment: Experiment, columns: Sequence[Column]) -> dict[str, PlanePoint]:
    """Return the place of each column: column → place. A DiT does not have AR steps, so that S is 1."""
    dit = experiment.model.architecture == "dit"
    return {
        column.name: PlanePoint(ar_steps=None if dit else column.ar_steps, guidance_scale=column.guidance_scale)
        for column in columns
        if not dit or column.ar_steps in (None, 1)
    }


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


def _around(reproduction: Reproduction, spaces: Mapping[str, str]) -> Circumstances:
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = package_versions()
    lineage = {
        "commit": git_sha(),
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("torch", "ray", "deepspeed")),
    }
    times = [
        event.time
        for row, seed, _ in reproduction.runs()
        for event in Journal(reproduction.folder / trial_name(row, seed)).events()
        if isinstance(event, Launched | Ended)
    ]
    return Circumstances(
        command=reproduction.command,
        hardware=f"{cores} CPU cores, {memory:.0f} GiB, {platform.machine()}",
        generated_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        wall_seconds=max(times) - min(times) if times else None,
        spaces=spaces,
        lineage=lineage,
    )


def _publish(
    reproduction: Reproduction,
    report: PaperReport,
    paths: Sequence[Path],
    result: SweepResult,
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
            outbox.finish("FAILED" if result.failed else "FINISHED")
        sync_run(run, seconds=60)
    except UserError as error:
        logger.warning(str(error))
