"""Sample grids during training, with the same seeds and labels every time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from causalfusion import Model

from ..sampling.generate import Request, generate_together
from ..tracking.tracker import Tracker
from .control import Control
from .loop import Hook, TrainLoop
from .metrics import Spent

Measure = Callable[[Tensor, int], None]
"""Measures samples (B, …) after a number of images, and records the scores."""


@dataclass
class SampleGridHook(Hook):
    """Draw a grid of samples from the EMA weights, and have them measured."""

    every_images: int
    model: Model
    request: Request
    draw: Callable[[Tensor], Image]
    """Makes a picture of samples (B, …)."""
    folder: Path
    tracker: Tracker
    control: Control
    spent: Spent
    measure: Measure | None = None
    at_end = False

    def run(self, loop: TrainLoop) -> None:
        """Generate on all ranks. The first draws and records the grid."""
        started, images = time.perf_counter(), loop.state.images_seen
        self.control.mark("sample grid", images)
        self.model.load_state_dict(loop.averages.full_state())
        latents = generate_together(self.model, self.request)
        order = f"-order-{loop.state.order}" if loop.state.order else ""
        path = self.folder / f"images-{images:012d}{order}.png"
        # An existing grid was recorded before a fault.
        if torch.distributed.get_rank() == 0 and not path.is_file():
            grid = self.draw(latents)
            self.tracker.image("samples/grid", grid, images)
            if self.measure is not None:
                self.measure(latents, images)
            self.folder.mkdir(parents=True, exist_ok=True)
            grid.save(path)
        self.spent.grids += time.perf_counter() - started
