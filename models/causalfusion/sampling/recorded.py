"""Forward passes of sampling that are recorded once and repeated, as CUDA graphs.

A forward pass of L/2 is about 530 kernels. Where each is short, as with few images or many AR steps, the host
cannot start them as fast as a GPU runs them. A CUDA graph starts them all at once.

Shapes: B samples, N tokens of one AR step, P numbers in a patch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..attention.cache import Place
from ..model import Model
from ..text.prompts import Prompts
from .fixed import FixedContext, fixed_context
from .noise import to_device
from .predictor import Prediction, guide, with_null

# Slots of the cache are read in multiples of this number, so that a few recordings serve all lengths.
_KEYS_MULTIPLE = 64
# Larger forward passes (rows · tokens) keep a GPU busy without graphs (predicted, not yet measured).
_MOST_TOKENS = 8_192


@dataclass(frozen=True)
class Recording:
    """Work on a device that was recorded."""

    replay: Callable[[], None]
    """Repeats the work, on what its tensors hold now."""
    output: Tensor
    """Result of the latest replay. The next one overwrites it."""


class Recorder(Protocol):
    """Records work on a device."""

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Record work that always reads and writes the same tensors. It may run several times meanwhile."""


class CudaGraphs:
    """Recorder of CUDA graphs. They share one pool of memory, because no two of them run at once."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Capture work as a CUDA graph, after two runs that choose kernels and allocate their workspaces.

        Raises:
            ValueError: autocast keeps casts of weights, which a graph must not read.
        """
        if torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled():
            raise ValueError("a CUDA graph cannot read weights that autocast casts: give a model of that type")
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(2):
                work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on, such as one that pins the next batch of a training.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()
        return Recording(graph.replay, output)


class Recordings:
    """Recorded forward passes of sampling with one model, kept from batch to batch.

    There is one for each number of rows, size of an AR step, use of guidance, and multiple of 64 keys. Those of the
    latest shape of batches are kept, with their cache.
    """

    def __init__(
        self, recorder: Recorder, *, keys_multiple: int = _KEYS_MULTIPLE, most_tokens: int = _MOST_TOKENS
    ) -> None:
        """Start without recordings.

        Args:
            recorder: records a forward pass, `CudaGraphs()` on a GPU.
            keys_multiple: slots of the cache are read in multiples of this number, and a mask hides those not
                written. 1 needs no mask, but a recording for each length.
            most_tokens: tokens of a forward pass, over all rows, from which on none is recorded.
        """
        self.recorder, self.keys_multiple, self.most_tokens = recorder, keys_multiple, most_tokens
        self.made = 0
        """Recordings made until now."""
        self._latest: tuple[Hashable, RecordedPredictor] | None = None

    def serve(self, rows: int, sizes: Sequence[int]) -> bool:
        """Return whether AR steps of these sizes are recorded, given the rows of a forward pass."""
        return rows * max(sizes) <= self.most_tokens

    def predictor(
        self, model: Model, condition: Tensor | Prompts, num_tokens: int, guided: bool
    ) -> RecordedPredictor:
        """Return the predictor of a batch. It takes the memory and the recordings of a batch of the same shape."""
        if guided:
            condition = with_null(condition, model.config.null_class)
        classes = isinstance(condition, Tensor) or condition.labels is not None
        # A model that was moved has the same identity, but its weights lie elsewhere.
        weights = (id(model), model.dtype, model.device, model.patch_embed.weight.data_ptr())
        shape = (weights, len(condition), classes, num_tokens, guided)
        if self._latest is not None and self._latest[0] == shape:
            predictor = self._latest[1]
            predictor.context.restart(condition)
            return predictor
        self._latest = None  # frees its memory first
        context = fixed_context(model, condition, num_tokens, self.keys_multiple)
        predictor = RecordedPredictor(model, context, len(condition), guided, self._record)
        self._latest = shape, predictor
        return predictor

    def _record(self, work: Callable[[], Tensor]) -> Recording:
        try:
            recording = self.recorder.record(work)
        except RuntimeError as error:  # samples are the same without it
            warnings.warn(f"sampling goes on slower, without a CUDA graph: {error}", stacklevel=2)
            output = work()
            return Recording(lambda: _refresh(output, work), output)
        self.made += 1
        return recording


def _refresh(output: Tensor, work: Callable[[], Tensor]) -> None:
    output.copy_(work())


@dataclass(frozen=True)
class _Inputs:
    """Tensors that the recordings of one size of AR steps read."""

    x: Tensor
    """(rows, N, P)"""
    positions: Tensor
    """(rows, N) int64"""
    t: Tensor
    """(1,) int64"""


class RecordedPredictor:
    """Predictor that repeats recorded forward passes. The rows are all samples, under guidance of both branches."""

    def __init__(
        self,
        model: Model,
        context: FixedContext,
        rows: int,
        guided: bool,
        record: Callable[[Callable[[], Tensor]], Recording],
    ) -> None:
        self.model, self.context, self.rows, self.guided = model, context, rows, guided
        self._record = record
        self._inputs: dict[int, _Inputs] = {}
        self._slots: dict[tuple[str, int], Tensor] = {}
        self._recordings: dict[Hashable, Recording] = {}

    def at(self, positions_BN: Tensor) -> Prediction:
        """Return the prediction of the tokens of one AR step, given their raster positions."""
        size = positions_BN.shape[1]
        inputs, place = self._inputs_of(size), self.context.noised_place(size)
        self._fill(inputs.positions, positions_BN)
        return partial(self._predict, inputs, place, self._slots_at("noised", place))

    def _predict(
        self, inputs: _Inputs, place: Place, slots: Tensor, x_BNP: Tensor, t: Tensor, scale: float | None
    ) -> Tensor:
        rows = self.rows if scale is not None else len(x_BNP)
        self._fill(inputs.x, x_BNP)
        inputs.t.copy_(t)
        output = self._repeat(
            ("noised", inputs.x.shape[1], place.keys, place.masked, rows),
            lambda: self.context.predict(place, slots, inputs.x[:rows], inputs.positions[:rows], inputs.t),
        ).to(x_BNP.dtype, copy=True)  # the next replay overwrites it, and a solver keeps it
        return output if scale is None else guide(output, scale)

    def append(self, x_BNP: Tensor, positions_BN: Tensor) -> None:
        """Add the finished tokens of an AR step to both branches, as clean tokens."""
        size = positions_BN.shape[1]
        inputs, place = self._inputs_of(size), self.context.clean_place(size)
        slots = self._slots_at("clean", place)
        self._fill(inputs.x, x_BNP)
        self._fill(inputs.positions, positions_BN)
        self._repeat(
            ("clean", size, place.keys, place.masked, self.rows),
            lambda: self.context.append(place, slots, inputs.x, inputs.positions),
        )
        self.context.grow(size)

    def _repeat(self, key: Hashable, work: Callable[[], Tensor]) -> Tensor:
        if key not in self._recordings:
            self._recordings[key] = self._record(work)
        recording = self._recordings[key]
        recording.replay()
        return recording.output

    def _inputs_of(self, size: int) -> _Inputs:
        if size not in self._inputs:
            device, model = self.model.device, self.model
            self._inputs[size] = _Inputs(
                torch.zeros(self.rows, size, model.config.token_dim, device=device, dtype=model.dtype),
                torch.zeros(self.rows, size, device=device, dtype=torch.int64),
                torch.zeros(1, device=device, dtype=torch.int64),
            )
        return self._inputs[size]

    def _slots_at(self, kind: str, place: Place) -> Tensor:
        """Return the tensor of slots of new tokens, which names those of a place from now on."""
        device = self.model.device
        slots = self._slots.setdefault(
            (kind, place.count), torch.empty(place.count, dtype=torch.int64, device=device)
        )
        slots.copy_(to_device(torch.arange(place.start, place.start + place.count), device))
        return slots

    def _fill(self, rows: Tensor, values: Tensor) -> None:
        """Write the values of all samples into the rows of all branches."""
        rows.view(-1, len(values), *rows.shape[1:]).copy_(values)
