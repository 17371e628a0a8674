"""Weights, and a set that nothing interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.launch.generating.asked import request_of

from causalfusion import CausalFusion, DiffusionConfig, save_weights
from causalfusion_platform.launch.generating.actors import LocalGenerator
from causalfusion_platform.launch.generating.generate import GeneratedSet, run_generate


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, random_model: CausalFusion) -> Path:
    """The tiny random model in float32."""
    folder = tmp_path_factory.mktemp("generate") / "weights"
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(folder, random_model.config, state, DiffusionConfig(num_train_steps=100))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> GeneratedSet:
    """A set that nothing interrupted: five parts, both kinds of files."""
    return run_generate(request_of(weights, tmp_path_factory.mktemp("whole") / "out", png=True), LocalGenerator())
