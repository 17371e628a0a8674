"""Probes while training: what the layers of the EMA weights know of the classes, after so many images."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from causalfusion import Model, ModelConfig

from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.check_validation import check_validation
from ..data.chosen_rows import choose_rows
from ..data.manifest import Manifest
from ..data.validate import CheckedShards
from ..evaluation.probe.features import NotFinite
from ..evaluation.probe.probe import ProbeData, probe_layers, untrained
from ..tracking.journal import Probed, recorded_images
from ..train.loop import Hook, TrainLoop
from .task import TaskContext

logger = logging.getLogger(__name__)

MOST_ROWS = 2_048
"""Training rows, and validation rows, of the probes of a run. Other ranks wait for them."""


def check_probes(experiment: Experiment, shards: CheckedShards) -> None:
    """Check that a run can be probed while it trains, if it asks for that.

    Raises:
        UserError: the shards lack labels, or validation rows that fit are missing.
    """
    if experiment.evaluation.probe_every_images is None:
        return
    if len(shards.manifest.class_names) < 2:
        raise UserError(
            f"evaluation.probe_every_images needs labels, which the shards in {shards.folder} have not\n"
            f"  leave it out, and probe afterwards on other shards: causalfusion probe RUN --data FOLDER"
        )
    check_validation(experiment, shards)


@dataclass
class ProbeHook(Hook):
    """Probe every layer of the EMA weights on the first rank: linear, on clean features.

    The first time the model at random initialization is probed too, as the curve's point at 0 images.
    """

    every_images: int
    experiment: Experiment
    model: Model
    """Takes the EMA weights."""
    context: TaskContext
    at_end = True
    _recorded: int = 0
    _begun: bool = False
    _data: ProbeData | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.context.journal is not None:
            events = self.context.journal.events()
            self._recorded = recorded_images(events, Probed)
            self._begun = any(isinstance(event, Probed) and event.images == 0 for event in events)

    def run(self, loop: TrainLoop) -> None:
        """Probe the EMA weights. Ranks gather them together."""
        started, images = time.perf_counter(), loop.state.images_seen
        self.context.control.mark("probe", images)
        state = loop.averages.full_state()
        if self.context.journal is not None and images > self._recorded:
            if not self._begun:
                config: ModelConfig = self.experiment.model
                self._probe(untrained(config, self.experiment.seed).to(self.context.device), 0)
                self._begun = True
            self.model.load_state_dict(state)
            self._probe(self.model, images)
            self._recorded = images
        self.context.spent.grids += time.perf_counter() - started

    def _probe(self, model: Model, images: int) -> None:
        context, data = self.context, self._rows()
        layers = range(model.config.depth + 1)
        digits, values = len(str(layers[-1])), {}
        try:
            for _, layer, accuracy in probe_layers(
                model, data, layers, ("linear",), t=0, diffusion=self.experiment.diffusion, alive=self._alive
            ):
                values[f"linear_layer{layer:0{digits}d}"] = accuracy.value
                self._alive()
        except NotFinite as error:
            logger.warning(f"no probe at {images:,} images: {error}")
            return
        assert context.journal is not None
        context.journal.add(
            Probed(
                attempt=context.attempt,
                images=images,
                values=values,
                rows=len(data.train),
                validation_rows=len(data.validation),
            )
        )

    def _alive(self) -> None:
        self.context.control.mark("probe", self.context.control.images)

    def _rows(self) -> ProbeData:
        if self._data is None:
            data = self.experiment.data
            assert data.validation is not None
            self._data = ProbeData(
                choose_rows(data.path, self.context.manifest, MOST_ROWS),
                choose_rows(data.validation, Manifest.read(data.validation), MOST_ROWS),
                seed=0,
            )
        return self._data
