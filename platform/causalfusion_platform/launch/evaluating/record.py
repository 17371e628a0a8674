"""Results of an evaluation: its table, pictures of its samples, and both on the run's page in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...checkpoint.find import find_weights
from ...report.sample_plane import sample_plane
from ...report.tables import markdown_table
from ...sampling.pixels import Pixels
from ...storage.atomic import write_atomically
from ...storage.run_layout import EVALUATION_FOLDER
from ..runs.folder import RunFolder
from ..runs.lock import UnderWay
from ..runs.sync import sync_run
from .evaluate import Evaluated
from .measuring import Measuring


def evaluation_table(results: Sequence[Evaluated]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows: the place, then every metric."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [[*_shown(result.place), *(result.metrics.get(name) for name in names)] for result in results]
    return ["S", "T", "cfg", *names], rows


def _shown(place: dict[str, Any]) -> list[Any]:
    return ["+".join(map(str, value)) if isinstance(value, list | tuple) else value for value in place.values()]


def sample_planes(results: Sequence[Evaluated]) -> dict[str, Image.Image]:
    """Draw the first samples of every place, S down and T across. Return a picture per guidance scale, by name."""
    places: dict[str, dict[tuple[str, str], Pixels]] = {}
    for result in results:
        steps, times, guidance = map(str, _shown(result.place))
        if result.first is not None:
            places.setdefault(f"plane-cfg{guidance}", {})[f"S = {steps}", f"T = {times}"] = result.first
    return {
        name: sample_plane(
            samples,
            list(dict.fromkeys(row for row, _ in samples)),
            list(dict.fromkeys(column for _, column in samples)),
        )
        for name, samples in places.items()
    }


def charts(result: Evaluated) -> dict[str, float]:
    """Return the metrics of a place as MLflow shows them: a group of charts per metric, with a chart per place."""
    values = zip(("S", "T", "cfg"), _shown(result.place), strict=True)
    where = "-".join(f"{key}{value}" for key, value in values).replace("+", "_")  # MLflow allows no +
    return {f"eval/{name}/{where}": value for name, value in result.metrics.items()}


def record_evaluation(checkpoint: Path, results: Sequence[Evaluated], measuring: Measuring) -> Path | None:
    """Write the table and the samples of an evaluation beside its files, and into the run's page in MLflow.

    Returns:
        The table's path, or None if the weights do not belong to a run.

    Raises:
        UserError: MLflow does not take it. The table is written all the same.
    """
    found = find_weights(checkpoint)
    if found.run is None or (run := RunFolder(found.run)).state is None:
        return None
    columns, rows = evaluation_table(results)
    path = run.evaluation / "table.md"
    origin = measuring.provenance
    about = (
        f"{results[0].plan.num:,} samples each; space {origin['space']}, weights {origin['weights_sha256'][:12]}…"
    )
    write_atomically(path, f"{about}; {origin['reference']}\n\n{markdown_table(columns, rows)}".encode())
    pictures = sample_planes(results)
    for name, picture in pictures.items():
        picture.save(path.with_name(f"{name}.png"))
    try:
        with run.lock():
            _record(run, results, pictures, path, origin, found.images)
    except UnderWay:  # its own process delivers, and the table waits in the folder
        return path
    sync_run(run, seconds=60)
    return path


def _record(
    run: RunFolder,
    results: Sequence[Evaluated],
    pictures: Mapping[str, Image.Image],
    table: Path,
    origin: Mapping[str, str],
    images: int,
) -> None:
    outbox = run.outbox
    outbox.reopen()
    new = [result for result in results if result.measured_now]
    for result in new:
        outbox.metrics(charts(result), images)
    for name, picture in pictures.items() if new else ():
        outbox.image(f"samples/{name}", picture, images)
    outbox.tags({"evaluation.space": origin["space"], "evaluation.weights_sha256": origin["weights_sha256"]})
    outbox.artifact(table, EVALUATION_FOLDER)
    outbox.finish("FINISHED" if run.finished else "KILLED")
