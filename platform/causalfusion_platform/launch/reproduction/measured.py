"""Values of a table's trained rows: samples drawn and measured at every column, and the scores of ends of runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...config.paper_table import Column, PaperTable, Row
from ...config.schema import Experiment
from ...sampling.pixels import Pixels
from ...sampling.settings import num_ar_steps
from ..evaluating.evaluate import Evaluated, PlanePoint, evaluate
from ..evaluating.measuring import Measuring, open_measuring
from ..generating.actors import Generators, RayGenerators
from ..generating.request import GenerateRequest
from ..runs.folder import RunFolder
from .held_out import DRAWS, LOSS, OTHER_DRAWS, HeldOutSets, loss_at
from .rows import Reproduction, trial_name

logger = logging.getLogger(__name__)

DISTANCE: Final = "fid"
"""Kind of the columns whose metric decides the guidance scale of a row that draws from text."""
OTHER_SAMPLES = 1_000_000
"""Added to the seed of samples that nothing but the noise of a measure is taken from."""


@dataclass(frozen=True)
class Measured:
    """Values of the rows asked for."""

    values: dict[tuple[str, str, int], float | None] = field(default_factory=dict)
    """Row, column and seed → value."""
    first: dict[tuple[str, str, int], Pixels] = field(default_factory=dict)
    """The first samples there."""
    spaces: dict[str, str] = field(default_factory=dict)
    """Metric → its extractor and reference."""
    repeats: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Column → pairs of values of one trained model each: as measured, and with other random numbers."""


def measure_rows(reproduction: Reproduction) -> Measured:
    """Measure the finished runs of the rows asked for. Places that were measured before are not measured again.

    Raises:
        UserError: an extractor, a reference or an autoencoder does not fit.
        StoppedRun: a signal came.
    """
    runs = [one for one in reproduction.runs() if one[0] in reproduction.rows and one[2].finished]
    with RayGenerators() as generators:
        measurer = RowMeasurer(reproduction, generators)
        for number, (row, seed, run) in enumerate(runs, 1):
            if any(one.measured_now for one in measurer.measure(row, seed, run)):
                logger.info(f"measured {trial_name(row, seed)} ({number} of {len(runs)})")
        for row, seed, run in runs:
            if seed == reproduction.plan.seeds[0]:
                measurer.measure_again(row, seed, run)
    return measurer.found()


class RowMeasurer:
    """Measures the run of a row and seed, one after the other."""

    def __init__(self, reproduction: Reproduction, generators: Generators) -> None:
        """Measure runs of a table.

        Args:
            reproduction: the table.
            generators: processes that draw.
        """
        self.reproduction, self.generators = reproduction, generators
        self._found = Measured()
        self._opened: dict[tuple[str | None, Path], Measuring] = {}
        self._spaces: dict[str, dict[str, list[str]]] = {}
        """Metric → space → rows."""
        self._held_out = HeldOutSets(reproduction)

    def measure(self, row: Row, seed: int, run: RunFolder) -> list[Evaluated]:
        """Measure a finished run, and return the measured sets of samples.

        A run of text and images has measured captions at its end. Its images are drawn here if there are prompts.
        """
        experiment = self.reproduction.experiments[trial_name(row, seed)]
        self._put_losses(row, seed, run, experiment)
        if experiment.objective.text is None:
            return self._draw_classes(row, seed, run, experiment)
        self._take_over(row, seed, run)
        return [] if self.reproduction.prompts is None else self._draw_prompts(row, seed, run, experiment)

    def measure_again(self, row: Row, seed: int, run: RunFolder) -> None:
        """Measure the first sampled column and the first loss of a run with other random numbers.

        The training is the same, so that the difference is the noise of the measure.
        """
        experiment = self.reproduction.experiments[trial_name(row, seed)]
        if self.reproduction.scale == "paper" or experiment.objective.text is not None:
            return
        table, values = self.reproduction.table, self._found.values
        places = _places(experiment, _of_samples(table))
        drawn = [column for column in _of_samples(table) if column.name in places]
        for column in (*_of_losses(table, row, experiment)[:1], *drawn[:1]):
            first = values.get((row.file, column.name, seed))
            if first is None:
                continue
            if column.is_sampled:
                again = self._draw_again(row, seed, run, experiment, column, places[column.name])
            else:
                again = self._losses(run, experiment, column, seed=OTHER_DRAWS)
            self._found.repeats.setdefault(column.name, []).append((first, again))

    def _draw_again(
        self, row: Row, seed: int, run: RunFolder, experiment: Experiment, column: Column, place: PlanePoint
    ) -> float:
        request = self._request(row, OTHER_SAMPLES + seed, run, experiment)
        measuring = self._measuring(row, experiment)
        [again] = evaluate(request, [place], measuring, self.generators, keep_samples=False)
        return again.metrics[self.reproduction.plan.metrics[column.metric]]

    def found(self) -> Measured:
        """Return all values so far."""
        for name, rows in self._spaces.items():
            self._found.spaces[name] = "; ".join(
                space if len(rows) == 1 else f"{', '.join(files)}: {space}" for space, files in rows.items()
            )
        return self._found

    def _draw_classes(self, row: Row, seed: int, run: RunFolder, experiment: Experiment) -> list[Evaluated]:
        """Measure samples of all classes at the place of each column."""
        reproduction, plan, table = self.reproduction, self.reproduction.plan, self.reproduction.table
        measuring, places = self._measuring(row, experiment), _places(experiment, _of_samples(table))
        request = self._request(row, seed, run, experiment)
        cells = list(dict.fromkeys(places.values()))
        keep = reproduction.scale != "paper"
        results = evaluate(request, cells, measuring, self.generators, keep_samples=keep)
        by_cell = dict(zip(cells, results, strict=True))
        for column in _of_samples(table):
            name = plan.metrics[column.metric]
            self._note(name, _space(measuring), row)
            if column.name in places:
                self._put(row, column, seed, by_cell[places[column.name]], name)
        return results

    def _put_losses(self, row: Row, seed: int, run: RunFolder, experiment: Experiment) -> None:
        """Measure the denoising loss of each column that asks for it."""
        for column in _of_losses(self.reproduction.table, row, experiment):
            self._found.values[row.file, column.name, seed] = self._losses(run, experiment, column)
            name = self.reproduction.plan.metrics[column.metric]
            self._note(name, self._held_out.of(experiment).origin, row)

    def _losses(self, run: RunFolder, experiment: Experiment, column: Column, *, seed: int = DRAWS) -> float:
        steps = num_ar_steps(experiment.sampling) if column.ar_steps is None else column.ar_steps
        found = self._held_out.of(experiment).losses(run, experiment, steps, seed=seed)
        return loss_at(found, column, experiment.model.num_tokens)

    def _draw_prompts(self, row: Row, seed: int, run: RunFolder, experiment: Experiment) -> list[Evaluated]:
        """Measure one sample of each prompt at the run's guidance scales. The one of the lowest distance counts."""
        plan, measuring = self.reproduction.plan, self._measuring(row, experiment)
        request = self._request(row, seed, run, experiment)
        scales = dict.fromkeys([experiment.sampling.guidance_scale, *experiment.evaluation.guidance_scales])
        cells = [PlanePoint(guidance_scale=scale) for scale in scales]
        results = evaluate(request, cells, measuring, self.generators, keep_samples=False)
        distance = plan.metrics[DISTANCE]
        best = min(results, key=lambda one: one.metrics.get(distance, float("inf")))
        for column in _of_samples(self.reproduction.table):
            name = plan.metrics[column.metric]
            if name in best.metrics:
                self._put(row, column, seed, best, name)
                self._note(name, _space(measuring) + _drawn(best, scales), row)
        return results

    def _take_over(self, row: Row, seed: int, run: RunFolder) -> None:
        """Take the values of a run of text and images from its summary: its end has measured both directions."""
        plan, summary = self.reproduction.plan, run.read_summary()
        for column in _of_samples(self.reproduction.table):
            name = plan.metrics[column.metric]
            self._found.values[row.file, column.name, seed] = summary.get(name)
            self._found.spaces[name] = (
                f"of {summary.get('num_captions')} captions and {summary.get('num_samples')} drawings"
            )

    def _measuring(self, row: Row, experiment: Experiment) -> Measuring:
        """Open the extractor and the reference of a row."""
        reference, data = self.reproduction.references.of(row), experiment.data.path
        if not self._opened:
            logger.info(f"measuring {self.reproduction.plan.samples:,} samples for each value")
        if (reference, data) not in self._opened:
            self._opened[reference, data] = open_measuring(
                self.reproduction.extractor,
                Path(reference) if reference else None,
                data,
                checked=self.reproduction.job.checked.get(data),
            )
        return self._opened[reference, data]

    def _request(self, row: Row, seed: int, run: RunFolder, experiment: Experiment) -> GenerateRequest:
        text = experiment.objective.text is not None
        # By this row's own settings: the run may stand for another row that is sampled differently.
        return GenerateRequest(
            checkpoint=run.root,
            num=self.reproduction.plan.samples,
            sampling=experiment.sampling,
            seed=seed,
            prompts=self.reproduction.prompts if text else None,
            cut_prompts=text,
            vae=self.reproduction.vaes.of(row),
        )

    def _put(self, row: Row, column: Column, seed: int, one: Evaluated, name: str) -> None:
        key = row.file, column.name, seed
        self._found.values[key] = one.metrics.get(name)
        if one.first is not None:
            self._found.first[key] = one.first

    def _note(self, name: str, space: str, row: Row) -> None:
        rows = self._spaces.setdefault(name, {}).setdefault(space, [])
        rows += [row.file] if row.file not in rows else []


def _of_samples(table: PaperTable) -> list[Column]:
    """Return the columns that rows' own runs are measured for, and not their fine-tunes."""
    return [column for column in table.columns if column.is_sampled]


def _of_losses(table: PaperTable, row: Row, experiment: Experiment) -> list[Column]:
    """Return the columns of denoising losses that a row has."""
    return [
        column
        for column in table.columns
        if column.metric == LOSS and column.has(row) and _has_steps(experiment, column)
    ]


def _space(measuring: Measuring) -> str:
    origin = measuring.provenance
    return f"space {origin['space']}, weights {origin['weights_sha256'][:12]}…, reference: {origin['reference']}"


def _drawn(best: Evaluated, scales: Iterable[float]) -> str:
    """Return the prompts of a set, and its guidance scale among others."""
    prompts = best.plan.prompts
    assert prompts is not None
    return (
        f", prompts: {best.plan.num:,} of {prompts.file.name} (SHA-256 {prompts.sha256[:12]}…), {prompts.cut} cut, "
        f"guidance {best.plan.sampling.guidance_scale:g} of {', '.join(f'{scale:g}' for scale in scales)}"
    )


def _places(experiment: Experiment, columns: Sequence[Column]) -> dict[str, PlanePoint]:
    """Return the place of each column that the model has: column → place."""
    dit = experiment.model.architecture == "dit"
    return {
        column.name: PlanePoint(
            ar_steps=None if dit else column.ar_steps,
            guidance_scale=column.guidance_scale,
            patch_order=None if dit else column.patch_order,
            order_block=None if dit else column.order_block,
        )
        for column in columns
        if _has_steps(experiment, column)
    }


def _has_steps(experiment: Experiment, column: Column) -> bool:
    """Return whether a model can take the AR steps of a column. A DiT does not have any, so that S is 1."""
    return experiment.model.architecture != "dit" or column.ar_steps in (None, 1)
