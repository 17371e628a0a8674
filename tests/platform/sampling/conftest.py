"""A sampler with the tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, save_weights
from causalfusion_platform.sampling.interactive import InteractiveSampler


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, random_model: CausalFusion) -> Path:
    """A folder with the tiny random model in float32, trained with 100 diffusion steps."""
    folder = tmp_path_factory.mktemp("weights")
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(folder, random_model.config, state, DiffusionConfig(num_train_steps=100))
    return folder


@pytest.fixture
def sampler(weights: Path) -> InteractiveSampler:
    """The model with few steps of sampling."""
    return InteractiveSampler.open(
        weights, SamplingConfig(num_inference_steps=3, num_ar_steps=2, guidance_scale=1.5), [], None
    )
