"""Probes of a trained model: the accuracy of each layer, beside the same model at random initialization."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from causalfusion import Model, load_weights

from ...config.errors import MachineError
from ...evaluation.probe.features import NotFinite
from ...evaluation.probe.probe import Accuracy, Kind, probe_layers, untrained
from ...evaluation.probe.scores import ProbeScore
from ...storage.atomic import write_atomically
from .probe_request import ProbePlan

RESULTS_FILE = "probe.json"
FIGURE_FILE = "probe.png"


def run_probe(
    plan: ProbePlan, show: Callable[[int, int], None] = lambda *_: None, *, device: str | None = None
) -> list[ProbeScore]:
    """Measure what an earlier call has not measured, and return the scores that the plan asks for.

    They are written into the run's folder after each diffusion time, so that the same call goes on.

    Args:
        plan: the checked request.
        show: called with the number of parts done, and of all.
        device: where the model runs. Default: a GPU if there is one.

    Raises:
        MachineError: some features are not finite.
        UserError: a shard is damaged.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = [
        (kind, t, layer, random)
        for kind, random, t, layer in itertools.product(plan.kinds, (False, True), plan.times, plan.layers)
    ]
    scores = {score.place: score for score in read_scores(plan)}
    passes = [
        (random, t)
        for random in (False, True)
        for t in plan.times
        if any(place not in scores for place in wanted if place[1] == t and place[3] == random)
    ]
    total = len(passes) * len(plan.layers) * len(plan.kinds)
    done = itertools.count(1)
    models: dict[bool, Model] = {}
    for random, t in passes:
        if random not in models:
            made = untrained(plan.model, plan.experiment.seed) if random else load_weights(plan.weights.folder)
            models = {random: made.to(device).eval()}
        for score in _probe_once(plan, models[random], random, t):
            scores.setdefault(score.place, score)
            show(next(done), total)
        write_scores(plan, list(scores.values()))
    return [scores[place] for place in wanted]


def _probe_once(plan: ProbePlan, model: Model, random: bool, t: int) -> Iterator[ProbeScore]:
    diffusion = plan.experiment.diffusion
    try:
        for kind, layer, accuracy in probe_layers(
            model, plan.data, plan.layers, plan.kinds, t=t, condition=plan.condition, diffusion=diffusion
        ):
            yield _score(kind, t, layer, random, accuracy)
    except NotFinite as error:
        which = "at random initialization" if random else f"in {plan.weights.folder}"
        raise MachineError(
            f"{error}, of the model {which}\n  probe an earlier checkpoint of {plan.run.checkpoints}"
        ) from error


def _score(kind: Kind, t: int, layer: int, random: bool, accuracy: Accuracy) -> ProbeScore:
    low, high = accuracy.interval
    return ProbeScore(
        kind=kind,
        t=t,
        layer=layer,
        random=random,
        correct=accuracy.correct,
        total=accuracy.total,
        accuracy=accuracy.value,
        low=low,
        high=high,
    )


def read_scores(plan: ProbePlan) -> list[ProbeScore]:
    """Return the scores of earlier calls with the same weights, data and settings."""
    try:
        tree = json.loads((plan.folder / RESULTS_FILE).read_bytes())
        same = tree["provenance"] == plan.provenance
        return [ProbeScore.model_validate(score) for score in tree["scores"]] if same else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_scores(plan: ProbePlan, scores: Sequence[ProbeScore]) -> Path:
    """Write scores with their provenance, and return their file."""
    path = plan.folder / RESULTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [score.model_dump() for score in sorted(scores, key=lambda score: score.place)]
    tree = {"provenance": plan.provenance, "scores": rows}
    write_atomically(path, (json.dumps(tree, indent=2) + "\n").encode())
    return path
