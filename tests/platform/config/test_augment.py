"""The section of augmentation: MAE's values, its ranges, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from causalfusion_platform.config.augment import AugmentConfig, RandAugmentPolicy, parse_rand_augment

MAES = "rand-m9-mstd0.5-inc1"


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        AugmentConfig(**values)
    assert caught.value.error_count() == 1
    return str(caught.value)


def test_defaults_are_maes_without_rand_augment_on_latents() -> None:
    config = AugmentConfig()
    assert (config.erasing, config.mixup, config.cutmix, config.switch) == (0.25, 0.8, 1.0, 0.5)
    assert (config.label_smoothing, config.crop_scale) == (0.1, (0.08, 1.0))
    assert (config.mode, config.policy, config.mixes) == ("latents", None, True)
    assert not AugmentConfig(mixup=0, cutmix=0).mixes


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (MAES, RandAugmentPolicy(9, 0.5, 2, 0.5)),
        ("rand-inc1", RandAugmentPolicy(10, 0.0, 2, 0.5)),
        ("rand-n3-m0-p1-inc1-mstd10", RandAugmentPolicy(0, 10.0, 3, 1.0)),
        ("rand-m5-p0.25-inc1", RandAugmentPolicy(5, 0.0, 2, 0.25)),
    ],
)
def test_names_of_policies(text: str, policy: RandAugmentPolicy) -> None:
    assert parse_rand_augment(text) == policy
    assert AugmentConfig(mode="pixels", rand_augment=text).policy == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begin with rand"),
        ("augmix-m3-inc1", "begin with rand"),
        ("rand-m9-mstd0.5", "lacks inc1"),
        ("rand-m9-inc0", "allowed for inc: 1 … 1"),
        ("rand-m11-inc1", "allowed for m: 0 … 10"),
        ("rand-m9.5-inc1", "'m9.5' of 'rand-m9.5-inc1' is unknown"),
        ("rand-mstd11-inc1", "allowed for mstd: 0 … 10"),
        ("rand-n0-inc1", "allowed for n: 1 … 100"),
        ("rand-p1.5-inc1", "allowed for p: 0 … 1"),
        ("rand-m9-m8-inc1", "given twice"),
        ("rand-tweights-inc1", "'tweights' of 'rand-tweights-inc1' is unknown"),
        ("rand-m9-inc1-", "unknown or given twice"),
        ("rand-m-1-inc1", "unknown or given twice"),
    ],
)
def test_other_names_are_refused(text: str, message: str) -> None:
    assert message in refusal(mode="pixels", rand_augment=text)


def test_rand_augment_on_latents_is_refused() -> None:
    message = refusal(mode="latents", rand_augment=MAES)
    assert f"rand_augment {MAES} distorts images, but mode latents" in message
    assert "set rand_augment to null, or mode to pixels" in message


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "images"},
        {"rand_augment_interpolation": "nearest"},
        {"erasing": 1.1},
        {"erasing": -0.1},
        {"mixup": -1},
        {"cutmix": float("inf")},
        {"switch": 2},
        {"label_smoothing": 1},
        {"crop_scale": (0, 1)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_scale": (0.9, 0.5)},
        {"flip": True},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    assert next(iter(values)) in refusal(**values)


def test_pairs_need_an_even_number_of_rows_at_once() -> None:
    with pytest.raises(ValueError, match=r"a worker takes 5 at once\n.*train\.micro_batch_size"):
        AugmentConfig().check_rows(5)
    with pytest.raises(ValueError, match="mixup 0 and cutmix 1"):
        AugmentConfig(mixup=0).check_rows(1)
    AugmentConfig().check_rows(6)
    AugmentConfig(mixup=0, cutmix=0).check_rows(5)
