"""What the tests of the evaluation share: random Inception weights, in memory and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.platform.evaluation.released_inception import random_weights
from torch import Tensor


@pytest.fixture(scope="session")
def inception_weights() -> dict[str, Tensor]:
    """Return random weights in the released layout; not to be changed."""
    return random_weights()


@pytest.fixture(scope="session")
def inception_file(inception_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return them in a file that bears the name of the released one; not to be changed."""
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(inception_weights, path, _use_new_zipfile_serialization=False)  # the format of the released file
    return path
