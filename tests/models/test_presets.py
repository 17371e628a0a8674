"""Parameter counts and sizes of the paper's models (Tables 1, 4, 8, 9 and 10)."""

from __future__ import annotations

import pytest
import torch

from causalfusion import (
    PRESETS,
    CausalFusion,
    CausalFusionConfig,
    DiT,
    build_model,
    count_parameters,
    preset,
)


def closed_form_count(
    *,
    width: int,
    depth: int,
    head: int,
    token: int,
    per_class: int,
    classes: int = 1000,
    repeat: int = 1,
    learned_positions: int = 0,
    qk_norms: int = 2,
) -> int:
    """Count a CausalFusion's parameters by hand. A time token has none of its own.

    Args:
        width: D.
        depth: blocks.
        head: width of a head.
        token: numbers in a patch.
        per_class: class tokens with parameters of their own.
        classes: classes, without the null class.
        repeat: times that the class tokens are repeated.
        learned_positions: rows of a learned position table.
        qk_norms: layer norms of a block over the width of a head.
    """
    attention = 3 * width * width + (width + 1) * width + qk_norms * 2 * head  # qkv, projection, norms
    mlp = (width + 1) * 4 * width + (4 * width + 1) * width
    block = 2 * 2 * width + attention + mlp  # two layer norms
    patch_embedding = (token + 1) * width
    time_embedding = (256 + 1) * width + (width + 1) * width
    class_embedding = (classes + 1) * per_class * width + per_class * repeat * width
    output = 2 * width + (width + 1) * token
    positions = learned_positions * width
    return depth * block + patch_embedding + time_embedding + class_embedding + output + positions


def dit_count(*, width: int, depth: int, token: int, classes: int = 1000) -> int:
    """Count a DiT's parameters by hand: no norms' own, but six modulations a block, and a learned variance."""
    attention = 3 * (width + 1) * width + (width + 1) * width
    mlp = (width + 1) * 4 * width + (4 * width + 1) * width
    block = attention + mlp + (width + 1) * 6 * width
    embeddings = (token + 1) * width + (256 + 1) * width + (width + 1) * width + (classes + 1) * width
    return depth * block + embeddings + (width + 1) * 2 * width + (width + 1) * 2 * token


L2 = {"width": 1024, "depth": 24, "head": 64, "token": 16}
SYSTEM_L = {"width": 1024, "depth": 24, "head": 64, "token": 16, "per_class": 64}
SYSTEM_XL = {"width": 1280, "depth": 32, "head": 64, "token": 16, "per_class": 64}
SYSTEM_H = {"width": 1408, "depth": 40, "head": 64, "token": 16, "per_class": 64}
DIGITS = {"head": 32, "token": 4, "per_class": 4, "classes": 10}

# preset: closed form, millions (rounded as in the last digit given)
COUNTS: dict[str, tuple[int, str]] = {
    "tiny": (
        closed_form_count(width=32, depth=2, head=16, token=4, per_class=2, classes=10),
        "0.036",
    ),
    "digits": (closed_form_count(**DIGITS, width=96, depth=4), "0.49"),
    "digits-dit": (dit_count(width=96, depth=4, token=4, classes=10), "0.72"),
    "S/2": (closed_form_count(width=384, depth=12, head=64, token=16, per_class=4), "23.1"),
    "B/2": (closed_form_count(width=768, depth=12, head=64, token=16, per_class=4), "88.9"),
    "DiT-L/2": (dit_count(width=1024, depth=24, token=16), "457.8"),
    "in-context-1": (closed_form_count(**L2, per_class=1, qk_norms=0), "304.61"),
    "in-context-4": (closed_form_count(**L2, per_class=4, qk_norms=0), "307.69"),
    "in-context-T": (closed_form_count(**L2, per_class=4, qk_norms=0), "307.69"),
    "in-context-QK": (closed_form_count(**L2, per_class=4), "307.69"),
    "L/2": (closed_form_count(**L2, per_class=4), "307.69"),
    "L/2-16": (closed_form_count(**L2, per_class=16), "320.0"),
    "L/2-64": (closed_form_count(**L2, per_class=64), "369.26"),
    "L/2-1x64": (closed_form_count(**L2, per_class=1, repeat=64), "304.68"),
    "L/2-4x16": (closed_form_count(**L2, per_class=4, repeat=16), "307.76"),
    "L-system-256": (closed_form_count(**SYSTEM_L, learned_positions=256), "369.52"),
    "L-system-512": (closed_form_count(**SYSTEM_L, learned_positions=1024), "370.31"),
    "XL-system-256": (closed_form_count(**SYSTEM_XL, learned_positions=256), "713.99"),
    "XL-system-512": (closed_form_count(**SYSTEM_XL, learned_positions=1024), "714.97"),
    "H-system-256": (closed_form_count(**SYSTEM_H, learned_positions=256), "1045"),
    "H48-system-256": (closed_form_count(**SYSTEM_H | {"depth": 48}, learned_positions=256), "1236"),
}


def causalfusion_preset(name: str) -> CausalFusionConfig:
    """Return a preset that is no DiT."""
    config = PRESETS[name]
    assert isinstance(config, CausalFusionConfig)
    return config


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name: str) -> None:
    """Module, closed form and millions agree to the last digit.

    Printed numbers that no reading matches: 368M for 64 class tokens (Table 8) and for system L (Table 4),
    which are 369.26M and 369.52M; 676M for system XL (Table 4), which is 713.99M with Table 10's sizes.
    """
    expected, millions = COUNTS[name]
    assert count_parameters(PRESETS[name]) == expected
    digits = len(millions.partition(".")[2])
    assert f"{expected / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize(
    ("name", "exact", "printed"),
    [
        ("in-context-1", 304_610_320, 305),  # rows 2 and 3
        ("in-context-4", 307_688_464, 308),
        ("in-context-T", 307_688_464, 308),  # "+ T embedding"
        ("in-context-QK", 307_694_608, 308),
        ("L/2", 307_694_608, 308),
        ("DiT-L/2", 457_840_672, 458),
    ],
)
def test_models_of_table_1_have_exactly_these_parameters(name: str, exact: int, printed: int) -> None:
    assert count_parameters(PRESETS[name]) == exact
    assert round(exact / 1e6) == printed


def test_counting_takes_no_memory_and_counts_what_is_trained() -> None:
    """The frozen sinusoids are not counted; a built model has as many numbers in its parameters."""
    config = PRESETS["tiny"]
    model = build_model(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(preset("tiny", position_embedding="learnable")) == count_parameters(config) + 16 * 32


def test_models_are_of_their_configurations_kind() -> None:
    for name, kind in (("tiny", CausalFusion), ("digits-dit", DiT)):
        model = build_model(PRESETS[name])
        assert type(model) is kind
        assert model.config == PRESETS[name]


@pytest.mark.parametrize(
    ("name", "class_tokens", "time", "qk_norm"),
    [
        ("in-context-1", 1, "token", False),
        ("in-context-4", 4, "token", False),
        ("in-context-T", 4, "embedding", False),
        ("in-context-QK", 4, "token", True),
        ("L/2", 4, "embedding", True),
    ],
)
def test_rows_of_table_1(name: str, class_tokens: int, time: str, qk_norm: bool) -> None:
    """The rows differ in what they are named after, and in nothing else."""
    config = causalfusion_preset(name)
    assert (config.class_tokens, config.time_conditioning, config.qk_norm) == (class_tokens, time, qk_norm)
    options = {"class_tokens": 4, "time_conditioning": "embedding", "qk_norm": True}
    assert preset(name, **options) == PRESETS["L/2"]


@pytest.mark.parametrize(
    ("name", "tokens", "repeat", "total", "added"),
    [
        ("L/2", 4, 1, 308, "3.9"),
        ("L/2-16", 16, 1, 320, "15.6"),
        ("L/2-64", 64, 1, None, "62.5"),
        ("L/2-1x64", 1, 64, 305, "1.0"),
        ("L/2-4x16", 4, 16, 308, "3.9"),
    ],
)
def test_class_tokens_of_table_8(name: str, tokens: int, repeat: int, total: int | None, added: str) -> None:
    """Table 8: totals in millions; what class tokens add, in units of 2^20 and without the null class."""
    config = causalfusion_preset(name)
    assert (config.class_tokens, config.class_token_repeat) == (tokens, repeat)
    with torch.device("meta"):
        model = CausalFusion(config)
    assert f"{model.class_tokens.table.weight[:-1].numel() / 2**20:.1f}" == added
    assert len(model.class_tokens.positions) == tokens * repeat
    if total is not None:
        assert round(count_parameters(config) / 1e6) == total


@pytest.mark.parametrize(
    ("name", "width", "heads", "layers", "tokens"),
    [
        ("L-system-256", 1024, 16, 24, 256),
        ("L-system-512", 1024, 16, 24, 1024),
        ("XL-system-256", 1280, 20, 32, 256),
        ("XL-system-512", 1280, 20, 32, 1024),
        ("H-system-256", 1408, 22, 40, 256),
        ("H48-system-256", 1408, 22, 48, 256),
    ],
)
def test_system_models(name: str, width: int, heads: int, layers: int, tokens: int) -> None:
    """Table 10: 64 class tokens, learnable positions, a 16× VAE of 16 channels."""
    config = causalfusion_preset(name)
    assert (config.hidden_size, config.num_heads, config.depth) == (width, heads, layers)
    assert (config.num_tokens, config.in_channels, config.patch_size) == (tokens, 16, 1)
    assert (config.class_tokens, config.position_embedding) == (64, "learnable")


def test_ablation_model() -> None:
    """Table 9: width 1024, 16 heads, 24 layers, 4 class tokens, patch 2, sinusoidal positions, f8c4 VAE."""
    config = causalfusion_preset("L/2")
    assert (config.hidden_size, config.num_heads, config.depth) == (1024, 16, 24)
    assert (config.input_size, config.in_channels, config.patch_size) == (256 // 8, 4, 2)
    assert (config.class_tokens, config.position_embedding) == (4, "sinusoidal")


def test_digits_models_fit_eight_by_eight_images() -> None:
    for name in ("tiny", "digits", "digits-dit"):
        config = PRESETS[name]
        assert (config.input_size, config.in_channels, config.num_classes) == (8, 1, 10)


def test_changes_leave_the_preset_alone() -> None:
    assert preset("L/2", depth=1).depth == 1
    assert preset("L/2") == PRESETS["L/2"]
    assert PRESETS["L/2"].depth == 24


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(KeyError, match="no model preset 'L/3'") as error:
        preset("L/3")
    assert all(name in str(error.value) for name in PRESETS)


def test_a_change_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1"):
        preset("tiny", depth=0)
