"""Parameter counts and sizes of the paper's models (Tables 1, 4, 8, 9 and 10)."""

from __future__ import annotations

import pytest
import torch

from causalfusion import PRESETS, CausalFusion, CausalFusionConfig, preset


def closed_form_count(
    *,
    width: int,
    depth: int,
    head: int,
    token: int,
    per_class: int,
    repeat: int = 1,
    learned_positions: int = 0,
) -> int:
    """Count an ImageNet model's parameters by hand.

    Args:
        width: D.
        depth: blocks.
        head: width of a head.
        token: numbers in a patch.
        per_class: class tokens with parameters of their own.
        repeat: times that they are repeated.
        learned_positions: rows of a learned position table.
    """
    attention = 3 * width * width + (width + 1) * width + 2 * 2 * head  # qkv, projection, two QK norms
    mlp = (width + 1) * 4 * width + (4 * width + 1) * width
    block = 2 * 2 * width + attention + mlp  # two layer norms
    patch_embedding = (token + 1) * width
    time_embedding = (256 + 1) * width + (width + 1) * width
    class_embedding = 1001 * per_class * width + per_class * repeat * width  # the 1001st row is the null class
    output = 2 * width + (width + 1) * token
    positions = learned_positions * width
    return depth * block + patch_embedding + time_embedding + class_embedding + output + positions


L2 = {"width": 1024, "depth": 24, "head": 64, "token": 16}
SYSTEM = {"token": 16, "per_class": 64}

# preset, changes, closed form, millions (rounded as in the last digit given)
COUNTS: list[tuple[str, dict[str, object], int, str]] = [
    ("L/2", {}, closed_form_count(**L2, per_class=4), "307.69"),
    ("L/2", {"class_tokens": 16}, closed_form_count(**L2, per_class=16), "320.0"),
    ("L/2", {"class_tokens": 64}, closed_form_count(**L2, per_class=64), "369.26"),
    (
        "L/2",
        {"class_tokens": 1, "class_token_repeat": 64},
        closed_form_count(**L2, per_class=1, repeat=64),
        "304.68",
    ),
    (
        "L/2",
        {"class_tokens": 4, "class_token_repeat": 16},
        closed_form_count(**L2, per_class=4, repeat=16),
        "307.76",
    ),
    (
        "L-system-256",
        {},
        closed_form_count(**SYSTEM, width=1024, depth=24, head=64, learned_positions=256),
        "369.52",
    ),
    (
        "L-system-512",
        {},
        closed_form_count(**SYSTEM, width=1024, depth=24, head=64, learned_positions=1024),
        "370.31",
    ),
    (
        "XL-system-256",
        {},
        closed_form_count(**SYSTEM, width=1280, depth=32, head=64, learned_positions=256),
        "713.99",
    ),
    (
        "XL-system-512",
        {},
        closed_form_count(**SYSTEM, width=1280, depth=32, head=64, learned_positions=1024),
        "714.97",
    ),
    (
        "H-system-256",
        {},
        closed_form_count(**SYSTEM, width=1408, depth=40, head=64, learned_positions=256),
        "1045",
    ),
    (
        "H48-system-256",
        {},
        closed_form_count(**SYSTEM, width=1408, depth=48, head=64, learned_positions=256),
        "1236",
    ),
]


def count(config: CausalFusionConfig) -> int:
    """Count the parameters of a model that has shapes only."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CausalFusion(config).parameters())


@pytest.mark.parametrize(("name", "changes", "expected", "millions"), COUNTS)
def test_parameter_counts(name: str, changes: dict[str, object], expected: int, millions: str) -> None:
    """Module, closed form and millions agree to the last digit.

    Printed numbers that no reading matches: 368M for 64 class tokens (Table 8) and for system L (Table 4),
    which are 369.26M and 369.52M; 676M for system XL (Table 4), which is 713.99M with Table 10's sizes.
    """
    assert count(preset(name, **changes)) == expected
    digits = len(millions.partition(".")[2])
    assert f"{expected / 1e6:.{digits}f}" == millions


def test_the_ablation_model_has_exactly_this_many_parameters() -> None:
    """Table 1 prints 308M."""
    assert count(PRESETS["L/2"]) == closed_form_count(**L2, per_class=4) == 307_694_608


@pytest.mark.parametrize(
    ("tokens", "repeat", "total", "added"),
    [
        (4, 1, 308, "3.9"),
        (16, 1, 320, "15.6"),
        (64, 1, None, "62.5"),
        (1, 64, 305, "1.0"),
        (4, 16, 308, "3.9"),
    ],
)
def test_class_token_parameters(tokens: int, repeat: int, total: int | None, added: str) -> None:
    """Table 8: totals in millions; what class tokens add, in units of 2^20 and without the null class."""
    config = preset("L/2", class_tokens=tokens, class_token_repeat=repeat)
    with torch.device("meta"):
        model = CausalFusion(config)
    assert f"{model.class_tokens.table.weight[:-1].numel() / 2**20:.1f}" == added
    if total is not None:
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == total


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
    config = PRESETS[name]
    assert (config.hidden_size, config.num_heads, config.depth) == (width, heads, layers)
    assert (config.num_tokens, config.in_channels, config.patch_size) == (tokens, 16, 1)
    assert (config.class_tokens, config.position_embedding) == (64, "learnable")


def test_ablation_model() -> None:
    """Table 9: width 1024, 16 heads, 24 layers, 4 class tokens, patch 2, sinusoidal positions, f8c4 VAE."""
    config = PRESETS["L/2"]
    assert (config.hidden_size, config.num_heads, config.depth) == (1024, 16, 24)
    assert (config.input_size, config.in_channels, config.patch_size) == (256 // 8, 4, 2)
    assert (config.class_tokens, config.position_embedding) == (4, "sinusoidal")


def test_digits_models_fit_eight_by_eight_images() -> None:
    for name in ("tiny", "digits"):
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
