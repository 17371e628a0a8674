"""Skip updates that would harm the weights, and say when skipping does not help.

The verdict falls on the gradient norm, which is NaN or infinite when any rank's loss or gradient is, and which is
the same number on every rank: all ranks decide alike, without a message between them.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence

from ..config.schema import SupervisionConfig
from .loop import StepResult, TrainLoop

WINDOW = 100
"""Steps that a norm is compared with, and over which skipped ones are counted."""
SKIPPED = -1.0
"""Stands for a skipped step among the norms."""


class Diverged(Exception):
    """Skipping steps does not help: the run must go back to its last good checkpoint. Raised on all ranks alike."""


class Guard:
    """Decide on each update before it is made; a hook that ends training when too many were skipped.

    Args:
        limits: what counts as a spike, and how many steps may be skipped.
        gradient_norm: returns the global gradient norm of the step under way, before clipping.
        skipped: called on a skipped step with (images seen before it, reason).
        norms: the norms of the last steps, from a checkpoint.
        overflow_is_usual: fp16 overflows whenever its loss scale grows too far; such steps do not count.
    """

    every_images = 1
    at_end = False

    def __init__(
        self,
        limits: SupervisionConfig,
        gradient_norm: Callable[[], float],
        skipped: Callable[[int, str], None] = lambda *_: None,
        norms: Sequence[float] = (),
        *,
        overflow_is_usual: bool = False,
    ) -> None:
        self.overflow_is_usual = overflow_is_usual
        self.limits, self.gradient_norm, self.skipped = limits, gradient_norm, skipped
        self.norms: deque[float] = deque(norms, maxlen=WINDOW)
        self.images = 0
        self.asked = False

    def allow(self) -> bool:
        """Say whether the step's update may be made; called once a step, when its gradients are complete."""
        self.asked = True
        norm = self.gradient_norm()
        reason = self._fault(norm)
        if reason is not None:
            self._skip(reason)
            return False
        self.norms.append(norm)
        return True

    def observe(self, result: StepResult) -> None:
        """Count a step that DeepSpeed skipped by itself: it does not ask where the norm is NaN or infinite."""
        if result.step.skipped and not self.asked and not self.overflow_is_usual:
            self._skip("the gradient is NaN or infinite")
        self.asked = False

    def run(self, loop: TrainLoop) -> None:
        """After each step, see whether training still gets anywhere.

        Raises:
            Diverged: more of the last steps were skipped than is allowed.
        """
        self.images = loop.state.images_seen
        skipped = sum(norm == SKIPPED for norm in self.norms)
        if skipped > self.limits.max_skipped_steps:
            raise Diverged(
                f"{skipped} of the last {len(self.norms)} updates were skipped (NaN, infinite or spiking gradients)"
            )

    def _skip(self, reason: str) -> None:
        self.norms.append(SKIPPED)
        self.skipped(self.images, reason)

    def _fault(self, norm: float) -> str | None:
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        usual = [value for value in self.norms if value != SKIPPED]
        # A young run has no usual norm yet: until half of the window is filled, nothing is a spike.
        if not self.limits.spike_factor or len(usual) < WINDOW // 2:
            return None
        median = statistics.median(usual)
        if median and norm > self.limits.spike_factor * median:
            return f"the gradient norm is {norm:.3g}, {norm / median:.0f} times the median {median:.3g}"
        return None
