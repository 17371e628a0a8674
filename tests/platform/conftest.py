"""What the platform tests share: a folder of their own, small data sets, and a tiny model with random weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from causalfusion import PRESETS, CausalFusion, Model, TextConfig, build_model, preset, save_weights
from causalfusion.text.tokenizer import train_bpe
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import AutoencoderId, Description, Manifest, SourceId
from causalfusion_platform.data.shards import Rows, write_shards


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


def small_rows(
    rows: int, *, labels: npt.NDArray[np.int64] | None = None, posterior: bool = False, flip: bool = False
) -> Rows:
    """Return a data set of 2×2 latents with three classes, all numbers of which are distinct."""

    def latents(first: int) -> npt.NDArray[np.float16]:
        values = np.arange(rows * 4, dtype=np.float64).reshape(rows, 1, 2, 2)
        return (first + values / 512).astype(np.float16)

    return Rows(
        row_ids=np.arange(rows, dtype=np.int64),
        labels=np.arange(rows, dtype=np.int64) * 7 % 3 if labels is None else labels,
        keys=[f"key {row}" for row in range(rows)],
        mean=latents(0),
        std=latents(1) if posterior else None,
        mean_flip=-latents(2) if flip else None,
        std_flip=latents(3) if posterior and flip else None,
    )


def description_of(rows: Rows) -> Description:
    """Return what the manifest says of such a data set."""
    return Description(
        source=SourceId(kind="folders", location="numbers in turn", items=len(rows.labels), digest="0" * 64),
        autoencoder=AutoencoderId(name="identity", scale=1.0),
        shape=rows.mean.shape[1:],
        posterior=rows.std is not None,
        flip=rows.mean_flip is not None,
        class_names=["zero", "one", "two"],
    )


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Rows]:
    """Return a function that makes a data set of 2×2 latents in memory: (rows, labels=…, posterior=…, flip=…)."""
    return small_rows


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., Manifest]:
    """Return a function that writes such a data set: (rows, folder, rows_per_shard=…, rows_per_group=…)."""

    def write(rows: Rows, folder: Path, *, rows_per_shard: int, rows_per_group: int) -> Manifest:
        return write_shards(
            rows, description_of(rows), folder, rows_per_shard=rows_per_shard, rows_per_group=rows_per_group
        )

    return write


@pytest.fixture
def write_small(tmp_path: Path, write_rows: Callable[..., Manifest]) -> Callable[..., tuple[Path, Rows, Manifest]]:
    """Return a function that makes and writes one: (rows, rows_per_shard=…, rows_per_group=…, posterior=…, …)."""

    def write(rows: int, *, rows_per_shard: int, rows_per_group: int, **kind: Any) -> tuple[Path, Rows, Manifest]:
        data, folder = small_rows(rows, **kind), tmp_path / "small"
        manifest = write_rows(data, folder, rows_per_shard=rows_per_shard, rows_per_group=rows_per_group)
        return folder, data, manifest

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
    return _random(build_model(PRESETS["tiny"]))


@pytest.fixture(scope="session")
def text_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of weights of a tiny random model of text, with its tokenizer. Texts have up to 12 tokens."""
    folder = tmp_path_factory.mktemp("text") / "weights"
    tokenizer = train_bpe(["a bold seven", "a thin three", "a bold three"] * 3, vocabulary=300)
    text = TextConfig(vocabulary=tokenizer.size, max_tokens=12)
    model = _random(build_model(preset("tiny", class_tokens=0, text=text)))
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    save_weights(folder, model.config, state, tokenizer=tokenizer)
    return folder


def _random(model: Model) -> CausalFusion:
    assert isinstance(model, CausalFusion)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.double().named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_gain else 0.2 * noise)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def own_mlflow_settings() -> Iterator[None]:
    """Remove the settings that MLflow and our client of it leave in the environment."""
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        if name.startswith("MLFLOW_"):
            del os.environ[name]


@pytest.fixture(scope="module")
def uri(empty_mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a SQLite store that the tests of one module share."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_mlflow_store, file)
    return f"sqlite:///{file}"
