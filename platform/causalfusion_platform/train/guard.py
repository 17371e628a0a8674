"""Skip updates that would harm the weights, and end training when skipping does not help.

The gradient norm decides. It is NaN or infinite when any rank's loss or gradient is. It is the same number on every
rank, so that all ranks decide alike without communication.

The largest norm that is allowed follows from the norms before. The host knows these even where it reads each norm
a step late. It gives the limit to the device, which compares and leaves the update out. So a late guard decides as
one that waits.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.schema import SupervisionConfig
from .loop import RunsAtOnce, StepResult, TrainLoop
from .reading import Reading

WINDOW = 100
"""Number of last steps that a norm is compared with, and in which skipped steps are counted."""
SKIPPED = -1.0
"""Value of a skipped step among the norms."""


class Diverged(Exception):
    """Skipping steps does not help. The run must go back to its last good checkpoint. All ranks raise it."""


@dataclass(frozen=True)
class _Open:
    """An update that the device decides on."""

    norm: Reading
    usual: float | None
    images: int


class Guard(RunsAtOnce):
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
        gradient_norm: Callable[[], Tensor | float],
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
        self._open: _Open | None = None

    def allow(self) -> bool:
        """Return whether the step's update may be made. Called once a step, when its gradients are complete."""
        self.asked = True
        return self._allow(float(self.gradient_norm()), self._usual(), self.images)

    def left_out(self) -> Tensor:
        """Return 1 on the device if the step's update is to be left out, else 0, a scalar in fp32, without waiting.

        It is called in place of `allow`. `settle` must have been called for the step before.
        """
        assert self._open is None, "the step before is not settled"
        self.asked = True
        norm = torch.as_tensor(self.gradient_norm())
        usual = self._usual()
        self._open = _Open(Reading(norm), usual, self.images)
        allowed = norm.isfinite() & (norm.double() <= self._limit(usual))  # in fp64, as on the host
        return allowed.logical_not().float()

    def settle(self) -> bool:
        """Return whether the newest update was skipped. It waits until the device has decided on it."""
        assert self._open is not None, "no update is open"
        done, self._open = self._open, None
        return not self._allow(done.norm.value(), done.usual, done.images)

    def observe(self, result: StepResult) -> None:
        """Count a step that DeepSpeed skipped by itself, because the norm is NaN or infinite."""
        if result.step.skipped and not self.asked and not self.overflow_is_usual:
            self._skip(self.images, "the gradient is NaN or infinite")
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

    def _allow(self, norm: float, usual: float | None, images: int) -> bool:
        if math.isfinite(norm) and norm <= self._limit(usual):
            self.norms.append(norm)
            return True
        reason = f"the gradient norm is {norm}"
        if math.isfinite(norm) and usual:
            reason = f"the gradient norm is {norm:.3g}, {norm / usual:.0f} times the median {usual:.3g}"
        self._skip(images, reason)
        return False

    def _skip(self, images: int, reason: str) -> None:
        self.norms.append(SKIPPED)
        self.skipped(images, reason)

    def _usual(self) -> float | None:
        """Return the median of the last norms, or None while too few are known."""
        usual = [value for value in self.norms if value != SKIPPED]
        # Until half of the window is filled, the usual norm is not known, and nothing counts as a spike.
        return statistics.median(usual) if self.limits.spike_factor and len(usual) >= WINDOW // 2 else None

    def _limit(self, usual: float | None) -> float:
        """Return the largest norm that is allowed."""
        return self.limits.spike_factor * usual if usual else math.inf
