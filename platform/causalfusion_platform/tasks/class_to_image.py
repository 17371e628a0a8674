"""How a run is judged: which samples are generated, and what measures them, on the way and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from causalfusion import Model

from ..config.schema import Experiment
from ..data.manifest import Manifest
from ..data.read import read_all
from ..evaluation.evaluate import SampleScorer
from ..sampling.generate import Request, generate_together, labels_in_turn
from ..tracking.journal import Journal, Measured
from ..tracking.tracker import Tracker
from ..train.grids import Measure


def sample_request(experiment: Experiment, count: int, bf16: bool) -> Request:
    """Return a request for `count` samples with labels in turn, from the experiment's own seed."""
    return Request(
        labels=labels_in_turn(count, experiment.model.num_classes),
        sampling=experiment.sampling,
        diffusion=experiment.diffusion,
        seed=experiment.seed,
        bf16=bf16,
        batch_size=experiment.evaluation.batch_size,
    )


def final_samples(
    experiment: Experiment, sampler: Model, bf16: bool, alive: Callable[[], None]
) -> dict[str, Tensor]:
    """Generate the samples that the run is judged by; ranks do it together.

    Returns:
        `labels` (B,), `latents` (B, channels, h, w), as many `latents_s<S>` for each S of `evaluation.ar_steps`.
    """
    alive()
    request = sample_request(experiment, experiment.evaluation.num_samples, bf16)
    samples = {"labels": request.labels, "latents": generate_together(sampler, request, alive)}
    for ar_steps in experiment.evaluation.ar_steps:
        other = dataclasses.replace(request.sampling, num_ar_steps=ar_steps)
        again = dataclasses.replace(request, sampling=other)
        samples[f"latents_s{ar_steps}"] = generate_together(sampler, again, alive)
    return samples


def build_measure(
    experiment: Experiment, manifest: Manifest, tracker: Tracker, journal: Journal, attempt: int
) -> Measure | None:
    """Build what measures the samples of grids, if the experiment wants that. Its judge is trained at first use."""
    if not experiment.evaluation.while_training:
        return None
    scorer: list[SampleScorer] = []

    def measure(latents: Tensor, labels: Tensor, images: int) -> None:
        if not scorer:
            scorer.append(build_scorer(experiment, manifest))
        values = dataclasses.asdict(scorer[0].score(latents, labels))
        # A Fréchet distance depends on how many samples it is of: these are no points of the final scores' curves.
        curves = {f"eval/{key}_n{len(labels)}": value for key, value in values.items() if key != "judge_accuracy"}
        tracker.metrics(curves, images)
        journal.add(Measured(attempt=attempt, images=images, values=values))

    return measure


def build_scorer(experiment: Experiment, manifest: Manifest) -> SampleScorer:
    """Train the judge of samples on the experiment's real images. Latents must be pixels."""
    real = read_all(experiment.data.path, manifest)
    return SampleScorer(
        real.latents,
        real.labels,
        num_classes=len(manifest.class_names),
        epochs=experiment.evaluation.classifier_epochs,
        seed=experiment.seed,
    )
