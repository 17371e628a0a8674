"""What each prediction depends on, by Jacobians in float64: exactly zero where hidden, not zero where shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from causalfusion import CausalFusion
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out

ModelMaker = Callable[..., CausalFusion]
SIZES = [2, 3, 1, 3]
LENGTH = 9


class Influence(NamedTuple):
    """How much each of M predictions changes with each input, as the largest entry of a random vjp."""

    noised: Tensor
    """(M, M): noised patches."""
    clean: Tensor
    """(M, K): clean patches."""
    sequence: Tensor
    """(M, N): embedded tokens, class, time and padding tokens included."""
    time: Tensor
    """(M, times): embedded diffusion times."""


def influence(model: CausalFusion, sizes: list[int], times: int, *, copies: int, multiple: int) -> Influence:
    """Differentiate every prediction of one sample, whose diffusion times are `times` random ones."""
    config = model.config
    generator = torch.Generator().manual_seed(5)
    count, width = copies * LENGTH, config.token_dim
    noised = torch.randn(1, count, width, generator=generator, dtype=torch.float64).requires_grad_()
    clean = torch.randn(1, LENGTH - sizes[-1], width, generator=generator, dtype=torch.float64).requires_grad_()
    positions = torch.randperm(LENGTH, generator=generator)[None]
    t = torch.randint(1000, (1,) if times == 1 else (1, times), generator=generator)
    layout = lay_out(
        sizes,
        class_tokens=config.num_class_tokens,
        copies=copies,
        time_token=config.time_conditioning == "token",
        multiple=multiple,
    )
    inside: list[Tensor] = []

    def keep_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        inside.append(inputs[0])

    def keep_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        inside.append(output)

    hooks = [
        model.time_embed.register_forward_hook(keep_output),
        model.blocks[0].register_forward_pre_hook(keep_input),
    ]
    found = model(noised, clean, positions, t, torch.tensor([1]), AttentionPlan.of(layout))
    for hook in hooks:
        hook.remove()
    time, sequence = inside
    assert sequence.shape[1] == len(layout)
    rows = []
    for token in range(count):
        cotangent = torch.randn(width, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad(
            found[0, token], (noised, clean, sequence, time), cotangent, retain_graph=True
        )
        rows.append([x.view(-1, x.shape[-1]).abs().amax(dim=-1) for x in gradients])
    return Influence(*(torch.stack(column) for column in zip(*rows, strict=True)))


def check(found: Tensor, shown: list[list[bool]]) -> None:
    """See that `found` is exactly zero where nothing is shown, and clearly not zero where something is."""
    expected = torch.tensor(shown, dtype=torch.bool).view(found.shape)
    assert torch.equal(found[~expected], torch.zeros_like(found[~expected]))
    if expected.any():
        assert float(found[expected].min()) > 1e-6


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("conditioning", ["embedding", "token"])
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("sizes", [SIZES, [LENGTH], [1] * LENGTH])
def test_one_copy(make_model: ModelMaker, sizes: list[int], multiple: int, conditioning: str) -> None:
    """Eq. 5: a noised token of step s depends on class, time, clean tokens of steps < s, noised ones of step s."""
    model = make_model(input_size=6, time_conditioning=conditioning)
    step = [s for s, size in enumerate(sizes) for _ in range(size)]
    kept = step[: LENGTH - sizes[-1]]
    found = influence(model, sizes, 1, copies=1, multiple=multiple)
    noised = [[key == query for key in step] for query in step]
    clean = [[key < query for key in kept] for query in step]
    check(found.noised, noised)
    check(found.clean, clean)
    check(found.time, [[True]] * LENGTH)
    time = [True] * (conditioning == "token")
    padding = [False] * (-(2 + len(kept) + len(time) + LENGTH) % multiple if len(sizes) > 1 else 0)
    rows = zip(clean, noised, strict=True)
    check(found.sequence, [[True] * 2 + before + time + padding + own for before, own in rows])


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("per_step", [False, True])
def test_two_copies(make_model: ModelMaker, per_step: bool, multiple: int) -> None:
    """Table 7: a copy depends on nothing of the other, and a step on no other step's diffusion time."""
    model = make_model(input_size=6)
    step = [s for s, size in enumerate(SIZES) for _ in range(size)]
    kept = step[: LENGTH - SIZES[-1]]
    tokens = [(copy, s) for copy in range(2) for s in step]
    found = influence(model, SIZES, len(tokens) if per_step else 2, copies=2, multiple=multiple)
    noised = [[key == query for key in tokens] for query in tokens]
    clean = [[key < s for key in kept] for _, s in tokens]
    check(found.noised, noised)
    check(found.clean, clean)
    check(found.time, noised if per_step else [[copy == 0, copy == 1] for copy, _ in tokens])
    padding = [False] * (-(2 + len(kept) + len(tokens)) % multiple)
    rows = zip(clean, noised, strict=True)
    check(found.sequence, [[True] * 2 + before + padding + own for before, own in rows])
