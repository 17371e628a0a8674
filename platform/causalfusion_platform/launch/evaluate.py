"""Measure a checkpoint at places of the factorization plane: one job, one table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..assemble import SPOOL_FOLDER
from ..checkpoint.find import find_weights
from ..config.errors import UserError
from ..data.manifest import write_atomically
from ..report.tables import markdown_table
from ..sampling.labels import asked_labels
from ..sampling.progress import GeneratingSink
from ..sampling.sample_set import SamplePlan
from ..sampling.settings import inference_steps, num_ar_steps
from ..tracking.spool import Spool
from .generate import run_generate
from .generate_plan import GenerateRequest, plan_set
from .generators import Generators
from .lock import is_under_way
from .measuring import Measuring
from .run_folder import read_state
from .sync import sync_run

EVALUATION_FOLDER = "evaluation"


@dataclass(frozen=True)
class Cell:
    """A place of the plane; what is None is as the run samples."""

    ar_steps: int | None = None
    """S_eval"""
    diffusion_steps: int | None = None
    """T, of each AR step"""
    guidance_scale: float | None = None
    """Classifier-free guidance"""

    @property
    def settings(self) -> list[str]:
        """As changes of a sampling configuration."""
        given = (
            ("num_ar_steps", self.ar_steps),
            ("num_inference_steps", self.diffusion_steps),
            ("guidance_scale", self.guidance_scale),
        )
        return [f"{key}={value}" for key, value in given if value is not None]


def cells_of(ar_steps: Sequence[int], steps: Sequence[int], cfg: Sequence[float]) -> list[Cell]:
    """Return every combination; an empty list stands for the run's own value."""
    axes: list[list[Any]] = [list(axis) or [None] for axis in (ar_steps, steps, cfg)]
    return [Cell(*values) for values in itertools.product(*axes)]


@dataclass(frozen=True)
class Evaluated:
    """What was measured at one place."""

    plan: SamplePlan
    metrics: dict[str, float]
    path: Path
    """The file that says so."""
    measured_now: bool
    """False: an earlier call had measured it."""

    @property
    def place(self) -> dict[str, Any]:
        """S, T and guidance."""
        sampling = self.plan.sampling
        return {
            "S": num_ar_steps(sampling),
            "T": inference_steps(sampling),
            "cfg": sampling.guidance_scale,
        }


def evaluate(
    request: GenerateRequest,
    cells: Iterable[Cell],
    measuring: Measuring,
    generators: Generators,
    *,
    keep_samples: bool = True,
    show: GeneratingSink = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Evaluated]:
    """Generate and measure samples at each place; what is measured already is not done again.

    Args:
        request: the checkpoint, and what all places share.
        cells: the places.
        measuring: what measures.
        generators: who generates.
        keep_samples: leave the samples where they are; else they are removed once they are measured.
        show: called with progress of generating.
        say: called with what a person must know.

    Raises:
        UserError: something given is wrong.
        StoppedRun: a signal came; the same call goes on.
    """
    requests = [dataclasses.replace(request, settings=[*request.settings, *cell.settings]) for cell in cells]
    for one in requests:
        plan_set(one)  # faults are found before hours go into the first places
    return [_evaluate_one(one, measuring, generators, keep_samples, show, say) for one in requests]


def _evaluate_one(
    request: GenerateRequest,
    measuring: Measuring,
    generators: Generators,
    keep_samples: bool,
    show: GeneratingSink,
    say: Callable[[str], None],
) -> Evaluated:
    plan, folder = plan_set(request)
    origin = measuring.provenance
    root = folder.parent.parent if request.out is None else folder
    path = root / EVALUATION_FOLDER / f"{plan.name}.{origin['space']}-{origin['weights_sha256'][:8]}.json"
    known = _read(path, origin)
    if known is not None:
        return Evaluated(plan, known, path, measured_now=False)
    made = run_generate(request, generators, show=show, say=say)
    labels = asked_labels(plan.labels, plan.num, plan.class_list, plan.seed)
    metrics = measuring.measure(made.npz, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "metrics": metrics,
        "provenance": origin,
        "samples": made.digest,
        "plan": plan.model_dump(mode="json"),
    }
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    if not keep_samples:
        shutil.rmtree(folder)
    return Evaluated(plan, metrics, path, measured_now=True)


def _read(path: Path, origin: dict[str, str]) -> dict[str, float] | None:
    try:
        record = json.loads(path.read_bytes())
        metrics: dict[str, float] = record["metrics"]
        return metrics if record["provenance"] == origin else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def evaluation_table(results: Sequence[Evaluated]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows: the place, then every metric."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [[*_shown(result.place), *(result.metrics.get(name) for name in names)] for result in results]
    return ["S", "T", "cfg", *names], rows


def _shown(place: dict[str, Any]) -> list[Any]:
    return ["+".join(map(str, value)) if isinstance(value, list | tuple) else value for value in place.values()]


def charts(result: Evaluated) -> dict[str, float]:
    """Return the metrics of a place as MLflow shows them: a group of charts a metric, in it a chart a place."""
    values = zip(("S", "T", "cfg"), _shown(result.place), strict=True)
    where = "-".join(f"{key}{value}" for key, value in values).replace("+", "_")  # MLflow allows no +
    return {f"eval/{name}/{where}": value for name, value in result.metrics.items()}


def record_evaluation(checkpoint: Path, results: Sequence[Evaluated], measuring: Measuring) -> Path | None:
    """Write the table of an evaluation beside its files, and into the run's page in MLflow.

    Returns:
        The table's path; None if the weights are of no run.

    Raises:
        UserError: MLflow does not take it; the table is written all the same.
    """
    found = find_weights(checkpoint)
    state = read_state(found.run) if found.run else None
    if found.run is None or state is None:
        return None
    columns, rows = evaluation_table(results)
    path = found.run / EVALUATION_FOLDER / "table.md"
    origin = measuring.provenance
    about = (
        f"{results[0].plan.num:,} samples each; space {origin['space']}, weights {origin['weights_sha256'][:12]}…"
    )
    write_atomically(path, f"{about}; {origin['reference']}\n\n{markdown_table(columns, rows)}".encode())
    if is_under_way(found.run):
        return path  # its own process delivers; the table waits in the folder
    spool = Spool(found.run / SPOOL_FOLDER)
    spool.reopen()
    for result in results:
        if result.measured_now:
            spool.metrics(charts(result), _images(found.folder))
    spool.tags({"evaluation.space": origin["space"], "evaluation.weights_sha256": origin["weights_sha256"]})
    spool.artifact(path, EVALUATION_FOLDER)
    spool.finish("FINISHED" if state.finished else "KILLED")
    sync_run(found.run, seconds=60)
    return path


def _images(weights: Path) -> int:
    """Return the images that the weights had seen, by the name of their checkpoint; 0 for others."""
    _, _, number = weights.parent.name.partition("images-")
    return int(number) if number.isdecimal() else 0


def read_scales(text: str) -> list[float]:
    """Read guidance scales such as 1.0,2.5.

    Raises:
        UserError: these are not positive numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not min(values) > 0:
        raise UserError(f"{text!r} are not numbers such as 1.0,2.5")
    return values
