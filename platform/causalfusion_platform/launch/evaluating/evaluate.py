"""Measure a checkpoint at places of the factorization plane: one job, one table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config.errors import UserError
from ...data.npz import read_images
from ...evaluation.reference import check_size
from ...sampling.outputs import NPZ_FILE
from ...sampling.pixels import Pixels
from ...sampling.progress import Generating, GeneratingSink
from ...sampling.sample_set import SamplePlan
from ...sampling.settings import inference_steps, num_ar_steps
from ...storage.atomic import replacing, write_atomically
from ...storage.json_file import read_object
from ...storage.run_layout import EVALUATION_FOLDER
from ..generating.actors import Generators
from ..generating.generate import run_generate
from ..generating.request import GenerateRequest, plan_set
from .measuring import Measuring

_PICTURED = 10


@dataclass(frozen=True)
class PlanePoint:
    """Place of the plane. A field that is None is as the run samples."""

    ar_steps: int | None = None
    """S_eval"""
    diffusion_steps: int | None = None
    """T of each AR step"""
    guidance_scale: float | None = None
    """Classifier-free guidance"""
    patch_order: str | None = None
    """Order in which tokens are sampled"""
    order_block: int | None = None
    """Block side or stride of the order"""

    @property
    def settings(self) -> list[str]:
        """As changes of a sampling configuration."""
        given = (
            ("num_ar_steps", self.ar_steps),
            ("num_inference_steps", self.diffusion_steps),
            ("guidance_scale", self.guidance_scale),
            ("patch_order", self.patch_order),
            ("order_block", self.order_block),
        )
        return [f"{key}={value}" for key, value in given if value is not None]


def plane_points(ar_steps: Sequence[int], steps: Sequence[int], cfg: Sequence[float]) -> list[PlanePoint]:
    """Return every combination. An empty list stands for the run's own value."""
    axes: list[list[Any]] = [list(axis) or [None] for axis in (ar_steps, steps, cfg)]
    return [PlanePoint(*values) for values in itertools.product(*axes)]


@dataclass(frozen=True)
class Evaluated:
    """Measurement at one place."""

    plan: SamplePlan
    metrics: dict[str, float]
    path: Path
    """File of the measurement."""
    measured_now: bool
    """False: an earlier call had measured it."""
    first: Pixels | None
    """Its first samples (n, H, W, 3), for pictures, or None if they are not at hand."""

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
    cells: Iterable[PlanePoint],
    measuring: Measuring,
    generators: Generators,
    *,
    keep_samples: bool = True,
    show: GeneratingSink = lambda _: None,
) -> list[Evaluated]:
    """Generate and measure samples at each place that has not been measured before.

    Args:
        request: the checkpoint, and what all places share.
        keep_samples: keep the samples. Else they are removed once they are measured.
        show: called with progress of generating, counted over the samples of all places.

    Raises:
        UserError: an argument is wrong.
        StoppedRun: a signal came. The same call goes on.
    """
    requests = [dataclasses.replace(request, settings=[*request.settings, *cell.settings]) for cell in cells]
    total = 0
    for one in requests:  # finds faults before hours go into the first places
        plan, _ = plan_set(one)
        total += plan.num
        check_size(measuring.reference.image_size, plan.image_size, measuring.reference.source)

    def show_all(place: int) -> GeneratingSink:
        before = total // len(requests) * place
        return lambda seen: show(Generating(before + seen.done, total, seen.samples_per_second))

    return [
        _evaluate_one(one, measuring, generators, keep_samples, show_all(place))
        for place, one in enumerate(requests)
    ]


def _evaluate_one(
    request: GenerateRequest,
    measuring: Measuring,
    generators: Generators,
    keep_samples: bool,
    show: GeneratingSink,
) -> Evaluated:
    plan, folder = plan_set(request)
    origin = measuring.provenance
    root = folder.parent.parent if request.out is None else folder
    path = root / EVALUATION_FOLDER / f"{plan.name}.{origin['space']}-{origin['weights_sha256'][:8]}.json"
    pictured = root / EVALUATION_FOLDER / f"{plan.name}.npy"
    known = _read(path, origin)
    if known is not None:
        return Evaluated(plan, known, path, measured_now=False, first=_read_first(pictured))
    there = (folder / NPZ_FILE).is_file()  # an earlier call generated this set, and its user may still want it
    made = run_generate(request, generators, show=show)
    metrics = measuring.measure(made.npz, None if plan.prompts else plan.label_tensor())
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "metrics": metrics,
        "provenance": origin,
        "samples": made.digest,
        "plan": plan.model_dump(mode="json"),
    }
    first = next(read_images(made.npz).batches(_PICTURED, stop=_PICTURED))
    with replacing(pictured) as file:
        np.save(file, first, allow_pickle=False)
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    if not (keep_samples or there):
        shutil.rmtree(folder)
    return Evaluated(plan, metrics, path, measured_now=True, first=first)


def _read_first(path: Path) -> Pixels | None:
    try:
        first: Pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return first


def _read(path: Path, origin: dict[str, str]) -> dict[str, float] | None:
    try:
        record = read_object(path)
        metrics = {name: float(value) for name, value in record["metrics"].items()}
        return metrics if record["provenance"] == origin else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


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
