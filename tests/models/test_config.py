"""Model configuration: derived sizes and refused ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.models.random_models import dit_config

from causalfusion import CausalFusionConfig


def test_derived_sizes_of_the_ablation_model() -> None:
    """Section 4: 32×32×4 latents and patch 2 give L = 256 tokens of 16 numbers."""
    config = CausalFusionConfig()
    assert (config.grid_size, config.num_tokens, config.token_dim) == (16, 256, 16)
    assert (config.num_class_tokens, config.head_dim, config.null_class) == (4, 64, 1000)
    assert (config.mlp_size, config.time_conditioning, config.qk_norm) == (4096, "embedding", True)


def test_repeats_count_as_class_tokens() -> None:
    """Table 8: 4 tokens repeated 16 times are 64 tokens in the sequence."""
    assert CausalFusionConfig(class_tokens=4, class_token_repeat=16).num_class_tokens == 64


NAMES = ["input_size", "in_channels", "patch_size", "hidden_size", "depth", "num_heads", "num_classes", "mlp_ratio"]


@pytest.mark.parametrize("name", [*NAMES, "class_tokens", "class_token_repeat"])
def test_sizes_must_be_positive(make_config: Callable[..., CausalFusionConfig], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be.*got 0"):
        make_config(**{name: 0})
    if name in NAMES:
        with pytest.raises(ValueError, match=f"{name} must be.*got 0"):
            dit_config(**{name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 9}, "input_size 9 is not a multiple of patch_size 2"),
        ({"hidden_size": 20, "num_heads": 3}, "hidden_size 20 is not a multiple of num_heads 3"),
        ({"hidden_size": 18}, "hidden_size 18 is not a multiple of 4"),
    ],
)
def test_sizes_must_divide(
    make_config: Callable[..., CausalFusionConfig], changes: dict[str, object], message: str
) -> None:
    for make in (make_config, dit_config):
        with pytest.raises(ValueError, match=message):
            make(**changes)


def test_an_mlp_has_the_nearest_whole_width(make_config: Callable[..., CausalFusionConfig]) -> None:
    """2.3 · 8 = 18.4, and 1.1 · 20 = 22 although the product of the floats lies beside it."""
    assert make_config(hidden_size=8, mlp_ratio=2.3).mlp_size == 18
    assert make_config(hidden_size=20, mlp_ratio=1.1).mlp_size == 22
    assert make_config(hidden_size=100, mlp_ratio=1.15).mlp_size == 115
