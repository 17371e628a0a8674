"""FLOPs, against torch's own counter on real models, the mask, and enumeration of all AR splits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from causalfusion import (
    CausalFusion,
    CausalFusionConfig,
    DiT,
    DiTConfig,
    ObjectiveConfig,
    TextConfig,
    TextObjectiveConfig,
    build_model,
    preset,
)
from causalfusion.attention.mask import attention_mask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.baselines.transfusion import lay_out_described
from causalfusion.factorization.sequence import lay_out
from causalfusion.flops import dit_flops, forward_flops, training_flops

Counts = tuple[Literal["dense", "split", "visible"], bool]
COUNTS: list[Counts] = list(itertools.product(("dense", "split", "visible"), (False, True)))

BASE = CausalFusionConfig(
    input_size=6, in_channels=3, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=2, class_tokens=2
)
VARIANTS = [
    BASE,
    dataclasses.replace(BASE, mlp_ratio=2.3, class_token_repeat=2),  # MLP of 18: the ratio is rounded down
    dataclasses.replace(BASE, time_conditioning="token", depth=1),
]
SPLITS = [[9], [2, 3, 4], [4, 4, 1], [1] * 9]


@pytest.fixture
def products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute attention by plain products: torch's counter knows no fused kernel of CPUs."""
    monkeypatch.setattr("causalfusion.attention.dense.attention_form", lambda *_: "matmul")


def counted_flops(config: CausalFusionConfig, sizes: list[int], copies: int = 1) -> int:
    """Count the FLOPs of one training sequence, forward, by running it."""
    time_token = config.time_conditioning == "token"
    layout = lay_out(sizes, class_tokens=config.num_class_tokens, copies=copies, time_token=time_token)
    tokens = config.num_tokens
    noised, clean = (torch.zeros(1, n, config.token_dim) for n in (copies * tokens, tokens - sizes[-1]))
    t = torch.zeros(1, copies * tokens) if copies > 1 else torch.zeros(1)
    model, positions, labels = CausalFusion(config), torch.arange(tokens)[None], torch.zeros(1).long()
    with FlopCounterMode(display=False) as counter:
        model(noised, clean, positions, t, labels, AttentionPlan.of(layout))
    return int(counter.get_total_flops())


@pytest.mark.usefixtures("products_only")
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("config", VARIANTS)
def test_what_the_model_computes(config: CausalFusionConfig, sizes: list[int]) -> None:
    found = forward_flops(config, sizes, attention="split", skip_unread=True)
    assert isinstance(found, int)
    assert found == counted_flops(config, sizes)


@pytest.mark.usefixtures("products_only")
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("config", VARIANTS)
def test_usual_convention(config: CausalFusionConfig, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model, made to take every token through its last block, and to compute all pairs."""
    run_blocks = CausalFusion.run_blocks

    def run_all(model: CausalFusion, x: Tensor, mask: object, *, read: int) -> Tensor:
        return run_blocks(model, x, None)[:, -read:]

    monkeypatch.setattr(CausalFusion, "run_blocks", run_all)
    assert forward_flops(config, sizes) == counted_flops(config, sizes)


TEXT = dataclasses.replace(BASE, class_tokens=0, text=TextConfig(vocabulary=13, max_tokens=6))
TEXT_VARIANTS = [
    TEXT,
    dataclasses.replace(TEXT, time_conditioning="token", class_tokens=2),
    dataclasses.replace(TEXT, architecture="transfusion"),
]


@pytest.mark.usefixtures("products_only")
@pytest.mark.parametrize("text", [(5, 0), (0, 5)], ids=str)
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("config", TEXT_VARIANTS)
def test_text_before_and_after_an_image(
    config: CausalFusionConfig, sizes: list[int], text: tuple[int, int]
) -> None:
    """What the model computes, and the pairs that its mask shows."""
    before, after = text
    transfusion = config.architecture == "transfusion"
    if transfusion and len(sizes) > 1:
        return  # a Transfusion has one AR step
    time_token = config.time_conditioning == "token"
    layout = (
        lay_out_described(9, class_tokens=0, text_after=after)
        if transfusion and after
        else lay_out(
            sizes,
            class_tokens=config.num_class_tokens,
            text_before=before,
            text_after=after,
            time_token=time_token,
        )
    )
    clean = torch.zeros(1, 9 if after else 9 - sizes[-1], config.token_dim)
    labels = torch.zeros(1).long() if config.num_class_tokens else None
    texts = [torch.ones(1, count).long() if count else None for count in text]
    plan = AttentionPlan.of(layout)
    with FlopCounterMode(display=False) as counter:
        build_model(config)(
            torch.zeros(1, 9, 12), clean, torch.arange(9)[None], torch.zeros(1), labels, plan, *texts
        )
    arguments = {"text_before": before, "text_after": after}
    count = "dense" if transfusion and after else "split"
    found = forward_flops(config, sizes, attention=count, skip_unread=True, **arguments)  # type: ignore[arg-type]
    assert found == int(counter.get_total_flops())
    hidden = int((~attention_mask(layout)).sum())
    saved = forward_flops(config, sizes, **arguments) - forward_flops(  # type: ignore[arg-type]
        config,
        sizes,
        attention="visible",
        **arguments,  # type: ignore[arg-type]
    )
    assert saved == 4 * config.hidden_size * config.depth * hidden


def test_expected_flops_mix_both_kinds_of_samples() -> None:
    objective = ObjectiveConfig(num_ar_steps=3, text=TextObjectiveConfig(share=0.25))
    parts = [forward_flops(TEXT, [3, 3, 3], text_before=6), forward_flops(TEXT, [3, 3, 3], text_after=6)]
    assert training_flops(TEXT, objective) == pytest.approx(3 * (0.75 * parts[0] + 0.25 * parts[1]), rel=1e-12)


@pytest.mark.usefixtures("products_only")
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("copies", [2, 3])
def test_noised_copies(sizes: list[int], copies: int) -> None:
    """The model embeds a time for each noised token; what counts is one for each copy."""
    time = 2 * (256 * 8 + 8 * 8)
    repeated = (copies * 9 - copies) * time
    found = forward_flops(BASE, sizes, time_copies=copies, attention="split", skip_unread=True)
    assert found == counted_flops(BASE, sizes, copies) - repeated


@given(
    sizes=st.sampled_from(SPLITS) | st.permutations([1, 1, 2, 5]),
    config=st.sampled_from(VARIANTS),
    copies=st.integers(1, 3),
)
def test_visible_pairs_against_the_mask(sizes: list[int], config: CausalFusionConfig, copies: int) -> None:
    """Each pair that is hidden saves 4 D FLOPs a block; in the last one, only noised queries count."""
    time_token = config.time_conditioning == "token"
    layout = lay_out(sizes, class_tokens=config.num_class_tokens, copies=copies, time_token=time_token)
    hidden = ~attention_mask(layout)
    pair, in_all, in_noised = 4 * config.hidden_size, int(hidden.sum()), int(hidden[layout.noised].sum())

    def saved(skip_unread: bool) -> int:
        count = {"time_copies": copies, "skip_unread": skip_unread}
        dense = forward_flops(config, sizes, attention="dense", **count)  # type: ignore[arg-type]
        return dense - forward_flops(config, sizes, attention="visible", **count)  # type: ignore[arg-type]

    assert saved(skip_unread=False) == pair * config.depth * in_all
    assert saved(skip_unread=True) == pair * ((config.depth - 1) * in_all + in_noised)


def test_visible_pairs_of_figure_6() -> None:
    """Figure 6's mask, with sizes 2, 2, 3 (and 2 more tokens) and one class token, counted by hand."""
    config = dataclasses.replace(BASE, class_tokens=1)
    sizes = [2, 2, 3, 2]
    clean = 2 * (1 + 2) + 2 * (1 + 4) + 3 * (1 + 7)
    noised = 2 * (1 + 2) + 2 * (1 + 2 + 2) + 3 * (1 + 4 + 3) + 2 * (1 + 7 + 2)
    assert int(attention_mask(lay_out(sizes, class_tokens=1)).sum()) == 1 + clean + noised
    length = 1 + 7 + 9
    saved = forward_flops(config, sizes) - forward_flops(config, sizes, attention="visible")
    assert saved == 4 * 8 * 3 * (length**2 - (1 + clean + noised))


@pytest.mark.parametrize("count", COUNTS, ids=str)
@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("decay", [Fraction(0), Fraction(1, 2), Fraction(9, 10), Fraction(1)])
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_expectation_against_enumeration(grid: int, decay: Fraction, copies: int, count: Counts) -> None:
    """Over all 2^(L−1) compositions of L: S has weight γ^(S−1), shared by the compositions into S sizes."""
    attention, skip = count
    config = dataclasses.replace(BASE, input_size=2 * grid)
    tokens = grid**2
    total, expected = sum((decay**i for i in range(tokens)), Fraction(0)), Fraction(0)
    for cuts in itertools.product((False, True), repeat=tokens - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), tokens]
        sizes = [end - start for start, end in itertools.pairwise(edges)]
        probability = decay ** sum(cuts) / total / math.comb(tokens - 1, sum(cuts))
        forward = forward_flops(config, sizes, time_copies=copies, attention=attention, skip_unread=skip)
        expected += probability * 3 * forward
    objective = ObjectiveConfig(ar_decay=float(decay), time_copies=copies)
    found = training_flops(config, objective, attention=attention, skip_unread=skip)
    assert found == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize("count", COUNTS, ids=str)
def test_fixed_number_of_steps(count: Counts) -> None:
    """Table 2: equal sizes; 9 tokens in 4 steps are 3 + 2 + 2 + 2."""
    attention, skip = count
    objective = ObjectiveConfig(num_ar_steps=4, time_copies=2)
    expected = 3 * forward_flops(BASE, [3, 2, 2, 2], time_copies=2, attention=attention, skip_unread=skip)
    assert training_flops(BASE, objective, attention=attention, skip_unread=skip) == expected


@pytest.mark.parametrize(
    ("name", "dense", "visible"),
    [
        ("L-system-256", "1.004", "0.956"),
        ("XL-system-256", "2.058", "1.978"),
        ("H-system-256", "3.095", "2.985"),
        ("L/2", "0.878", "0.838"),
    ],
)
def test_paper_sizes(name: str, dense: str, visible: str) -> None:
    """TFLOP per trained image at γ = .9, by arithmetic of its own: moments of S and |κ_S| summed term by term."""
    config, length = preset(name), 256
    context, width, depth = config.num_class_tokens + length, config.hidden_size, config.depth
    assert (config.num_tokens, config.mlp_ratio) == (length, 4)
    law = [0.9**i * 0.1 / (1 - 0.9**length) for i in range(length)]
    found = {"dense": 0.0, "visible": 0.0}
    for steps, probability in enumerate(law, start=1):
        for last in range(1, length - steps + 2) if steps > 1 else [length]:
            ways = math.comb(length - last - 1, steps - 2) if steps > 1 else 1
            share = probability * ways / math.comb(length - 1, steps - 1)
            tokens, clean = context + length - last, length - last
            # Given the last size, the others are a composition of the clean tokens into S − 1.
            squares = 2 * clean * (clean + 1) / steps - clean if steps > 1 else 0
            classes = config.num_class_tokens
            pairs = classes**2 + clean * classes + (clean**2 + squares) / 2
            pairs += length * classes + (length**2 + squares + last**2) / 2
            rest = depth * 12 * width**2 * tokens + config.token_dim * width * (clean + 2 * length)
            rest += width * (256 + width)
            found["dense"] += share * 6 * (rest + depth * 2 * width * tokens**2)
            found["visible"] += share * 6 * (rest + depth * 2 * width * pairs)
    assert training_flops(config, ObjectiveConfig()) == pytest.approx(found["dense"], rel=1e-12)
    assert training_flops(config, ObjectiveConfig(), attention="visible") == pytest.approx(
        found["visible"], rel=1e-12
    )
    assert (f"{found['dense'] / 1e12:.3f}", f"{found['visible'] / 1e12:.3f}") == (dense, visible)


@pytest.mark.usefixtures("products_only")
@pytest.mark.parametrize("changes", [{}, {"learn_sigma": False, "mlp_ratio": 2.3}])
def test_dit_against_the_counter(changes: dict[str, object]) -> None:
    sizes: dict[str, object] = {"input_size": 6, "in_channels": 3, "hidden_size": 8, "depth": 3, "num_heads": 2}
    config = DiTConfig(**(sizes | changes))  # type: ignore[arg-type]
    model, noised = DiT(config), torch.zeros(1, 9, config.token_dim)
    with FlopCounterMode(display=False) as counter:
        model(noised, noised[:, :0], torch.arange(9)[None], torch.zeros(1), torch.zeros(1).long(), None)
    assert dit_flops(config) == counter.get_total_flops()
    assert training_flops(config, ObjectiveConfig(num_ar_steps=1)) == 3 * dit_flops(config)
    assert training_flops(config, ObjectiveConfig(ar_decay=0.0)) == 3 * dit_flops(config)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "giga"), [(768, 12, 12, "23.0"), (1024, 24, 16, "80.7"), (1152, 28, 16, "118.6")]
)
def test_dit_paper(width: int, depth: int, heads: int, giga: str) -> None:
    """DiT's paper counts multiply-adds: "118.6 Gflops" for XL/2, and 80.7 and 23.0 for L/2 and B/2."""
    config = DiTConfig(hidden_size=width, depth=depth, num_heads=heads)
    assert f"{dit_flops(config) / 2e9:.1f}" == giga


@pytest.mark.parametrize("sizes", [[], [9, 0], [10], [4, 4], [10, -1]])
def test_sizes_must_be_a_split(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="positive with sum 9"):
        forward_flops(BASE, sizes)


def test_impossible_trainings_are_refused() -> None:
    with pytest.raises(ValueError, match="time_copies must be at least 1, got 0"):
        forward_flops(BASE, [9], time_copies=0)
    with pytest.raises(ValueError, match=r"must lie in \[1, 9\], got 10"):
        training_flops(BASE, ObjectiveConfig(num_ar_steps=10))
    with pytest.raises(ValueError, match="DiT has no AR steps"):
        training_flops(DiTConfig(), ObjectiveConfig())
