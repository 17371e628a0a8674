"""The end of a run: judge the final samples, draw the grid, write the summary."""

from __future__ import annotations

import dataclasses
from typing import Any

from safetensors.torch import load_file

from ...config.schema import Experiment
from ...data.manifest import Manifest
from ...evaluation.evaluate import Scores
from ...sampling.grid import sample_grid
from ...storage.run_layout import SAMPLES_FOLDER, RunPaths
from ...tasks.class_to_image import build_scorer
from ...tracking.tracker import AS_BARS, Tracker

SCORED_FOR_AR_STEPS = ("class_accuracy", "fd_digits_cnn")
"""What is also measured with each S of `evaluation.ar_steps`: `<name>_s<S>`."""
_NOT_MEASURED = dict.fromkeys(field.name for field in dataclasses.fields(Scores))


def evaluate_final_samples(experiment: Experiment, manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
    """Evaluate the run's final samples and draw their grid.

    Returns:
        The scores (null where latents are not pixels: their images need the autoencoder's decoder), those of other
        numbers of AR steps with names that end with them, `num_samples` and `grid_path`.
    """
    paths = RunPaths(experiment.run_dir)
    samples = load_file(paths.final_samples)
    latents, labels = samples["latents"], samples["labels"]
    scores: dict[str, Any] = dict(_NOT_MEASURED)
    if manifest.autoencoder.name == "identity":
        scorer = build_scorer(experiment, manifest)
        scores = dataclasses.asdict(scorer.score(latents, labels))
        for ar_steps in experiment.evaluation.ar_steps:
            others = scorer.score(samples[f"latents_s{ar_steps}"], labels)
            scores |= {f"{name}_s{ar_steps}": getattr(others, name) for name in SCORED_FOR_AR_STEPS}
    grid = sample_grid(latents, labels, manifest.class_names)
    path = paths.samples / "final.png"
    grid.save(path)
    tracker.image("samples/final", grid, experiment.train.total_images)
    tracker.artifact(path, SAMPLES_FOLDER)
    tracker.metrics({f"eval/{key}": value for key, value in scores.items() if value is not None}, AS_BARS)
    return {**scores, "num_samples": len(labels), "grid_path": str(path)}
