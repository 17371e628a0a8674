"""Skip updates that would harm the weights, and end training when skipping does not help.

The gradient norm decides. It is NaN or infinite when any rank's loss or gradient is. It is the same number on every
rank, so that all ranks decide alike without communication.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence

from ..config.schema import SupervisionConfig
from .loop import StepResult, TrainLoop

WINDOW = 100
"""Number of last steps that a norm is compared with, and in which skipped steps are counted."""
SKIPPED = -1.0
"""Value of a skipped step among the norms."""


class Diverged(Exception):
    """Skipping steps does not help. The run must go back to its last good checkpoint. All ranks raise it."""


class Guard:
    """Allow or skip each update. As a hook, end training when too many were skipped.

    Args:
        limits: size of a spike, and number of steps that may be skipped.
        gradient_norm: returns the global gradient norm of the step under way, before clipping.
        skipped: called on a skipped step with (images seen before it, reason).
        norms: the norms of the last steps, from a checkpoint.
        overflow_is_usual: leave overflows out of the count. fp16 has one whenever its loss scale grows too far.
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
        """Return whether the step's update may be made. Called once a step, when its gradients are complete."""
        self.asked = True
        norm = self.gradient_norm()
        reason = self._fault(norm)
        if reason is not None:
            self._skip(reason)
            return False
        self.norms.append(norm)
        return True

    def observe(self, result: StepResult) -> None:
        """Count a step that DeepSpeed skipped by itself, because the norm is NaN or infinite."""
        if result.step.skipped and not self.asked and not self.overflow_is_usual:
            self._skip("the gradient is NaN or infinite")
        self.asked = False

    def run(self, loop: TrainLoop) -> None:
        """Check after each step that not too many updates were skipped.

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
        # Until half of the window is filled, the usual norm is not known, and nothing counts as a spike.
        if not self.limits.spike_factor or len(usual) < WINDOW // 2:
            return None
        median = statistics.median(usual)
        if median and norm > self.limits.spike_factor * median:
            return f"the gradient norm is {norm:.3g}, {norm / median:.0f} times the median {median:.3g}"
        return None
