"""What the platform tests share: a folder of their own, small data sets, and a tiny model with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from causalfusion import PRESETS, CausalFusion, build_model
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Latents, write_shards


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty working directory, with no CAUSALFUSION_HOME."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAUSALFUSION_HOME", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def digit_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's digits, straight from it: images (1797, 1, 8, 8) in [−1, 1] and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images[:, None] / 8 - 1).float()
    return images, torch.from_numpy(bunch.target).long()


def small_latents(rows: int, *, labels: npt.NDArray[np.int64] | None = None) -> Latents:
    """Return a data set of 2×2 latents with three classes, all numbers of which are distinct."""
    values = np.arange(rows * 4, dtype=np.float64).reshape(rows, 1, 2, 2)
    return Latents(
        source="numbers in turn",
        autoencoder="identity",
        scale=1.0,
        class_names=["zero", "one", "two"],
        latents=(values / 512).astype(np.float16),
        labels=np.arange(rows, dtype=np.int64) * 7 % 3 if labels is None else labels,
    )


@pytest.fixture(scope="session")
def make_latents() -> Callable[..., Latents]:
    """Return a function that makes a data set of 2×2 latents in memory: (rows, labels=…)."""
    return small_latents


@pytest.fixture
def write_small(tmp_path: Path) -> Callable[..., tuple[Path, Latents, Manifest]]:
    """Return a function that writes such a data set as shards: (rows, rows_per_shard=…, rows_per_group=…)."""

    def write(
        rows: int, *, rows_per_shard: int, rows_per_group: int, labels: npt.NDArray[np.int64] | None = None
    ) -> tuple[Path, Latents, Manifest]:
        data, folder = small_latents(rows, labels=labels), tmp_path / "small"
        return (
            folder,
            data,
            write_shards(data, folder, rows_per_shard=rows_per_shard, rows_per_group=rows_per_group),
        )

    return write


@pytest.fixture
def make_experiment(tmp_path: Path) -> Callable[..., Experiment]:
    """Return a function that makes an experiment with the tiny model: (section={key: value}, …)."""

    def make(**changes: object) -> Experiment:
        return Experiment.model_validate(
            {"name": "test", "runs": tmp_path / "runs", "model": {"preset": "tiny"}, **changes}
        )

    return make


@pytest.fixture(scope="session")
def random_model() -> CausalFusion:
    """Return a tiny float64 model, every parameter of which is random: a new one predicts zero for everything."""
    model = build_model(PRESETS["tiny"]).double()
    assert isinstance(model, CausalFusion)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_gain else 0.2 * noise)
    return model.eval()
