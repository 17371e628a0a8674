"""One buffer for all tensors of a step: the same values, and views of one copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from causalfusion.slab import Slab

CPU, META = torch.device("cpu"), torch.device("meta")


class Pair(NamedTuple):
    """Two tensors."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Tree:
    """Tensors at every kind of place."""

    name: str
    sizes: list[int]
    tensor: Tensor
    several: dict[str, list[Tensor | None]]
    pair: Pair
    inner: Any = None


def tree() -> Tree:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(5, 3, generator=generator)
    return Tree(
        name="x",
        sizes=[3, 4],
        tensor=torch.tensor([True, False, True]),
        several={"a": [shared, None, torch.randint(1000, (7, 2), generator=generator)[::2]], "b": []},
        pair=Pair(torch.tensor(1 / 3, dtype=torch.float64), torch.arange(4).expand(3, 4)),
        inner=Tree("y", [], shared, {}, Pair(torch.empty(0, 4), torch.randn(2, generator=generator).bfloat16())),
    )


def tensors(of: Tree) -> list[Tensor]:
    found = [of.tensor, *(t for each in of.several.values() for t in each if t is not None), *of.pair]
    return found + (tensors(of.inner) if of.inner is not None else [])


class OnHost(Slab[Tree]):
    """A slab whose copy stays on the host, so that values can be compared."""

    def __init__(self, of: Tree) -> None:
        super().__init__(of, CPU)
        self._pack()


def test_values_shapes_and_types_come_back() -> None:
    of = tree()
    back = OnHost(of).on_device()
    assert (back.name, back.sizes, back.inner.name, list(back.several)) == ("x", [3, 4], "y", ["a", "b"])
    assert back.several["a"][1] is None
    assert isinstance(back.pair, Pair)
    assert len(tensors(back)) == len(tensors(of)) == 8
    for one, other in zip(tensors(of), tensors(back), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)


def test_all_are_views_of_one_buffer() -> None:
    of = tree()
    back = tensors(OnHost(of).on_device())
    assert len({tensor.untyped_storage().data_ptr() for tensor in back if tensor.numel()}) == 1
    starts = [tensor.data_ptr() for tensor in back if tensor.numel()]
    assert all((start - min(starts)) % 64 == 0 for start in starts)
    assert back[1].data_ptr() == back[5].data_ptr()  # a tensor that occurs twice is copied once
    of.tensor.fill_(True)
    assert not back[0].all()


def test_the_cpu_copies_nothing() -> None:
    of = tree()
    assert Slab(of, CPU).on_device() is of


def test_another_device_gets_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    original = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        moved.append((self.dtype, kwargs))
        return original(self, *args, **kwargs)

    slab = Slab(tree(), META)
    monkeypatch.setattr(Tensor, "to", to)
    back = slab.on_device()
    assert moved == [(torch.uint8, {"non_blocking": True})]
    assert all(tensor.device == META for tensor in tensors(back))
