"""Fixtures of the tests of data: a tiny autoencoder and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.platform.data.tiny_vaes import new_kl, random_images


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("kl")
    new_kl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    """Return a few random images."""
    return random_images()
