"""What all tests share: the digits as shards, and one local Ray for the whole run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled digits as latent shards; not to be changed."""
    from causalfusion_platform.data.digits import write_digits

    folder = tmp_path_factory.mktemp("shards") / "digits"
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for every test that needs one, started and ended as the platform does it."""
    from causalfusion_platform.launch.session import ray_session

    with ray_session():
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that relative paths of configurations count from."""
    monkeypatch.setenv("CAUSALFUSION_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def run_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a subprocess: this one with changes, and no address of another Ray."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, **changes}
