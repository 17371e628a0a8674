"""Compiled blocks: every length is compiled before the first step, as whole graphs, and none after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from causalfusion import (
    CausalFusionConfig,
    DiffusionConfig,
    DiTConfig,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    build_model,
    draw,
)
from causalfusion.lengths import lengths
from causalfusion.representation import Classifier, ClassifierConfig
from causalfusion_platform.train.blocks import Recompilations, set_up_blocks
from causalfusion_platform.train.warm_up import warm_up

SIZES: dict[str, Any] = {
    "input_size": 8,
    "in_channels": 1,
    "patch_size": 2,
    "hidden_size": 8,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}
CAUSAL, ROWS, CPU = CausalFusionConfig(**SIZES, class_tokens=2), 3, torch.device("cpu")
CASES: list[tuple[ModelConfig, dict[str, Any]]] = [
    (CAUSAL, {"sequence_multiple": 16}),
    (CAUSAL, {"sequence_multiple": 16, "time_copies": 4}),
    (DiTConfig(**SIZES), {"num_ar_steps": 1}),
]


@pytest.fixture(autouse=True)
def compiled_in_python(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and guard as ever, but run the graphs as they are: to generate code takes a minute a block."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=8):
        yield
    torch._dynamo.reset()


def both(model: ModelConfig, lengths: int | None) -> tuple[nn.Module, nn.Module]:
    """Return a model with random weights, and another with the same weights and compiled blocks."""
    torch.manual_seed(0)
    plain, compiled = build_model(model), build_model(model)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    compiled.load_state_dict(plain.state_dict())
    set_up_blocks(compiled, compiled=True, recomputed=False, lengths=lengths)
    return plain, compiled


def check_steps(model: ModelConfig, options: dict[str, Any], number: int, lengths: int | None) -> int:
    """Train after the warm-up as without compiling, and return the graphs that the warm-up made."""
    config = (
        ObjectiveConfig(ar_decay=1.0, **options)
        if isinstance(model, CausalFusionConfig)
        else ObjectiveConfig(**options)
    )
    plain, compiled = both(model, lengths)
    assert warm_up(compiled, compiled, model, config, ROWS, CPU) > 0
    recompilations = Recompilations()
    recompilations.begin()
    made, drawn_lengths = int(counters["stats"]["unique_graphs"]), set()
    for step in range(number):
        drawn = draw(model, config, DiffusionConfig(), seed=1, step=step, samples=range(ROWS))
        latents = torch.randn(
            ROWS, 1, model.input_size, model.input_size, generator=torch.Generator().manual_seed(step)
        )
        found = []
        for each in (plain, compiled):
            loss = Objective(each, config, DiffusionConfig())(each, latents, torch.tensor([0, 1, 2]), drawn)  # type: ignore[arg-type]
            found.append([loss.weighted, *torch.autograd.grad(loss.weighted, list(each.parameters()))])
        for expected, own in zip(*found, strict=True):
            torch.testing.assert_close(own, expected)
        drawn_lengths.add(drawn.sizes[-1])
    assert recompilations.count() == 0
    assert not counters["graph_break"]
    assert len(drawn_lengths) > 2 or isinstance(model, DiTConfig)
    return made


@pytest.mark.parametrize(("model", "options"), CASES, ids=["one copy", "four copies", "dit"])
def test_no_step_compiles_after_the_warm_up(model: ModelConfig, options: dict[str, Any]) -> None:
    """Each length has two graphs: the last block is read in part. The results are those of plain blocks."""
    config = ObjectiveConfig(**options)
    count = len(lengths(model, config, "cpu"))
    made = check_steps(model, options, 8, count)
    assert made == (2 * count if isinstance(model, CausalFusionConfig) else count)


def test_many_lengths_share_their_graphs() -> None:
    """Three of 25 lengths are run beforehand, with and without a mask, for inner blocks and the last one."""
    model = dataclasses.replace(CAUSAL, input_size=10)
    count = len(lengths(model, ObjectiveConfig(), "cpu"))
    assert count == 25
    assert check_steps(model, {}, 8, count) <= 6


def test_block_masks_of_flex_attention_need_no_graph_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has new blocks and a new function of indices. Their code is that of the step before."""
    monkeypatch.setattr("causalfusion.attention.dense.attention_form", lambda *_: "flex")
    count = len(lengths(CAUSAL, ObjectiveConfig(sequence_multiple=16), "cpu"))
    check_steps(CAUSAL, {"sequence_multiple": 16}, 8, count)


@pytest.mark.parametrize("backbone", [CAUSAL, CASES[2][0]], ids=["causalfusion", "dit"])
def test_blocks_of_a_fine_tuned_model_are_whole_graphs(backbone: ModelConfig) -> None:
    """Branches are dropped by numbers that are drawn outside. The results are those of plain blocks."""
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Classifier(ClassifierConfig(backbone=backbone, num_classes=4, drop_path=0.5))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        set_up_blocks(model, compiled=compiled, recomputed=False)
        latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        losses.append(model(latents, model.draw(0, [0, 1])).square().mean())
    torch.testing.assert_close(losses[1], losses[0])
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


def test_compilations_after_the_beginning_are_counted_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """`begin` is called at every step, and counts once."""
    compiled = torch.compile(lambda x: x + 1, dynamic=False)
    compiled(torch.zeros(2))
    recompilations = Recompilations()
    recompilations.begin()
    assert recompilations.count() == 0
    compiled(torch.zeros(2))
    for length in (3, 4):
        recompilations.begin()
        compiled(torch.zeros(length))
    assert (recompilations.count(), recompilations.count()) == (2, 2)
    [record] = [record for record in caplog.records if record.name.startswith("causalfusion_platform")]
    assert "torch.compile made 2 more graphs after the first step" in record.message
