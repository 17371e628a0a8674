"""The end of a run: judge the final samples, draw the grid, write the summary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..assemble import FINAL_SAMPLES_FILE
from ..config.schema import Experiment
from ..data.manifest import Manifest, write_atomically
from ..data.read import read_all
from ..evaluation.evaluate import Scores, Yardstick
from ..sampling.grid import sample_grid
from ..tracking.tracker import Tracker
from .run_folder import SUMMARY_FILE

_NOT_MEASURED = dict.fromkeys(field.name for field in dataclasses.fields(Scores))


def judge_and_draw(experiment: Experiment, manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
    """Judge the run's final samples and draw their grid.

    Returns:
        The scores (null where latents are not pixels: their images need the autoencoder's decoder), `num_samples`
        and `grid_path`.
    """
    samples = load_file(experiment.run_dir / FINAL_SAMPLES_FILE)
    latents, labels = samples["latents"], samples["labels"]
    scores: dict[str, Any] = _NOT_MEASURED
    if manifest.autoencoder.name == "identity":
        real = read_all(experiment.data.path, manifest)
        yardstick = Yardstick(
            real.latents,
            real.labels,
            num_classes=len(manifest.class_names),
            epochs=experiment.evaluation.classifier_epochs,
            seed=experiment.seed,
        )
        scores = dataclasses.asdict(yardstick.score(latents, labels))
    grid = sample_grid(latents, labels, manifest.class_names)
    path = experiment.run_dir / "samples" / "final.png"
    grid.save(path)
    images = experiment.train.total_images
    tracker.image("final", grid, images)
    tracker.artifact(path, "samples")
    tracker.metrics({f"eval/{key}": value for key, value in scores.items() if value is not None}, images)
    return {**scores, "num_samples": len(labels), "grid_path": str(path)}


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """Write summary.json into the run's folder, atomically."""
    path = folder / SUMMARY_FILE
    write_atomically(path, (json.dumps(summary, indent=2) + "\n").encode())
    return path


def read_summary(folder: Path) -> dict[str, Any]:
    """Read what `write_summary` wrote."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    return summary
