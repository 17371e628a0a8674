"""Tiny models of text and images in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.models.random_models import SIZES, randomised

from causalfusion import CausalFusion, CausalFusionConfig, TextConfig, build_model

TextModelMaker = Callable[..., CausalFusion]


def text_config(**changes: Any) -> CausalFusionConfig:
    """Return the configuration of a tiny model: 16 image tokens, 7 text tokens of a vocabulary of 11."""
    text = {"vocabulary": 11, "max_tokens": 7, **changes.pop("text", {})}
    return CausalFusionConfig(**(SIZES | {"class_tokens": 0, "text": TextConfig(**text)} | changes))


@pytest.fixture
def make_text_model() -> TextModelMaker:
    """Return a function that makes a tiny model, every parameter of which is random."""
    return lambda **changes: randomised(build_model(text_config(**changes)))  # type: ignore[return-value]
