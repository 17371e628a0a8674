"""The tensors of a run's end reach the driver, or it is told why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.tasks.final import read_final, write_final


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples" / "final.safetensors"


def test_what_is_written_is_read(path: Path) -> None:
    final = {"bias": torch.tensor([1.0, 2.0])}
    attempt = write_final(path, final, 3)
    assert torch.equal(read_final(path, attempt)["bias"], final["bias"])
    assert torch.equal(load_file(path)["bias"], final["bias"])


def test_a_file_of_an_earlier_attempt_does_not_stay(path: Path) -> None:
    write_final(path, {"bias": torch.zeros(1)}, 1)
    attempt = write_final(path, {}, 2)
    assert not path.exists()
    assert read_final(path, attempt) == {}


def test_another_file_is_refused(path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(UserError, match=re.escape(str(path))) as caught:
            read_final(path, 2)
        return str(caught.value)

    assert "it is missing" in refusal()
    write_final(path, {"bias": torch.zeros(1)}, 1)
    assert "it is of attempt 1" in refusal()
    path.write_bytes(path.read_bytes()[:20])
    assert "it cannot be read" in refusal()
    save_file({"bias": torch.zeros(1)}, path)
    assert "it is of attempt unknown" in refusal()
    assert "runs=FOLDER" in refusal()
