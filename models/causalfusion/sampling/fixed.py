"""Context of sampling whose forward passes have fixed shapes and addresses, so that they can be recorded.

Shapes: B samples, N tokens of one AR step, P numbers in a patch, C tokens of the condition.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.cache import FixedKVCache, Place
from ..baselines.dit import DiT
from ..baselines.transfusion import Transfusion
from ..model import Model
from ..text.prompts import Prompts
from ..transformer import CausalFusion


class FixedContext(Protocol):
    """Condition and finished tokens of a batch, in memory that stays where it is."""

    def restart(self, condition: Tensor | Prompts) -> None:
        """Begin another batch, of as many samples."""

    def noised_place(self, tokens: int) -> Place:
        """Return the place of the noised tokens of the next AR step."""

    def clean_place(self, tokens: int) -> Place:
        """Return the place of its clean tokens."""

    def predict(self, place: Place, index: Tensor, noised: Tensor, positions: Tensor, t: Tensor) -> Tensor:
        """Predict ε, x_0 or v: (B, N, P). Of the place, only its sizes are read.

        Args:
            place: of the noised tokens.
            index: (place.count,) int64 slots of the new tokens.
            noised: (B, N, P) patches of the first B samples.
            positions: (B, N) raster positions.
            t: (1,) diffusion time.
        """

    def append(self, place: Place, index: Tensor, clean: Tensor, positions: Tensor) -> Tensor:
        """Write clean tokens into the cache. The arguments are those of `predict`. The result holds nothing."""

    def grow(self, tokens: int) -> None:
        """Keep clean tokens that were written."""


def fixed_context(model: Model, condition: Tensor | Prompts, num_tokens: int, keys_multiple: int) -> FixedContext:
    """Return the context of a batch.

    Args:
        model: the network.
        condition: of all branches, on the model's device.
        num_tokens: image tokens that the context can hold.
        keys_multiple: slots of the cache are read in multiples of this number, and a mask hides those not written.
            1: exactly those that are visible.
    """
    if isinstance(model, DiT):
        assert isinstance(condition, Tensor)
        return _WholeImage(model, condition)
    return _Cached(model, condition, num_tokens, keys_multiple)


class _Cached:
    """Context of a CausalFusion, over its KV cache. Prompts are padded to the longest that the model takes."""

    def __init__(self, model: CausalFusion, condition: Tensor | Prompts, num_tokens: int, multiple: int) -> None:
        self.model, self.multiple = model, multiple
        condition = self._padded(condition)
        self.context = model.context(condition, num_tokens)
        self.present = self._present(condition)

    def restart(self, condition: Tensor | Prompts) -> None:
        condition = self._padded(condition)
        self.context.begin(condition)
        if self.present is not None:
            present = self._present(condition)
            assert present is not None
            self.present.copy_(present)

    def noised_place(self, tokens: int) -> Place:
        return Place.of(self.context.cache, self.context.time_tokens + tokens, self.multiple)

    def clean_place(self, tokens: int) -> Place:
        return Place.of(self.context.cache, tokens, self.multiple)

    def predict(self, place: Place, index: Tensor, noised: Tensor, positions: Tensor, t: Tensor) -> Tensor:
        model, time = self.model, self.context.time_tokens
        x = model.embed_noised(noised, positions, t)
        mask = self._mask(place, index, len(x), time_token=bool(time))
        read = place.count - time if time else None
        return model.predict(model.run_blocks(x, mask, self._cache(place, index), read=read))

    def append(self, place: Place, index: Tensor, clean: Tensor, positions: Tensor) -> Tensor:
        if isinstance(self.model, Transfusion):
            self.context.append(clean, positions)  # which refuses it
        x = self.model.embed_image(clean, positions)
        mask = self._mask(place, index, len(x), time_token=False)
        return self.model.run_blocks(x, mask, self._cache(place, index), read=0)

    def grow(self, tokens: int) -> None:
        self.context.cache.length += tokens

    def _cache(self, place: Place, index: Tensor) -> FixedKVCache:
        return FixedKVCache(self.context.cache, index, place.keys)

    def _mask(self, place: Place, index: Tensor, rows: int, *, time_token: bool) -> Tensor | None:
        """Return the mask of new tokens: they see the slots up to the last of them, but no padding.

        A time token, which is the first of them, sees the condition and itself.
        """
        slots = torch.arange(place.keys, device=index.device)
        mask: Tensor | None = None
        if place.masked:
            mask = (slots <= index[-1:])[None]
        if time_token:
            own = (slots < self.context.num_condition) | (slots == index[:1])
            others = torch.ones_like(own)[None] if mask is None else mask
            mask = torch.cat([own[None], others.expand(place.count - 1, -1)])
        if self.present is None:
            return mask
        later = place.keys - self.context.num_condition
        present = functional.pad(self.present[:rows], (0, later), value=True)[:, None, None, :]
        return present if mask is None else mask & present

    def _padded(self, condition: Tensor | Prompts) -> Tensor | Prompts:
        """Return prompts with the number of tokens that all batches have."""
        text = self.model.config.text
        if not isinstance(condition, Prompts) or text is None:
            return condition
        more = text.max_tokens - condition.tokens.shape[1]
        return Prompts(functional.pad(condition.tokens, (0, more)), condition.lengths, condition.labels)

    def _present(self, condition: Tensor | Prompts) -> Tensor | None:
        """Return which tokens of the condition are not padding, (B, C) bool. None: a condition without text."""
        if not isinstance(condition, Prompts):
            return None
        places = torch.arange(condition.tokens.shape[1], device=condition.device)
        return functional.pad(
            places < condition.lengths[:, None], (self.model.config.num_class_tokens, 0), value=True
        )


class _WholeImage:
    """Context of a DiT, which generates all tokens in one AR step and caches none."""

    def __init__(self, model: DiT, labels: Tensor) -> None:
        self.model, self.context = model, model.context(labels)

    def restart(self, condition: Tensor | Prompts) -> None:
        assert isinstance(condition, Tensor)
        self.context.classes_BD.copy_(self.model.class_embed(condition))

    def noised_place(self, tokens: int) -> Place:
        return Place(0, tokens, tokens, masked=False)

    clean_place = noised_place

    def predict(self, place: Place, index: Tensor, noised: Tensor, positions: Tensor, t: Tensor) -> Tensor:
        del place, index
        return self.context.predict(noised, positions, t)

    def append(self, place: Place, index: Tensor, clean: Tensor, positions: Tensor) -> Tensor:
        del place, index
        self.context.append(clean, positions)  # which refuses it
        return clean

    def grow(self, tokens: int) -> None:
        del tokens
