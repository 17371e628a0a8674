"""The actor that generates parts, without Ray; Ray's restarts are tested in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.launch.generating.asked import interrupted, request_of

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.generating.actors import SamplingActor
from causalfusion_platform.launch.generating.request import plan_set
from causalfusion_platform.sampling.parts import finished_parts


def test_an_actor_that_was_started_again_writes_the_same_file(weights: Path, tmp_path: Path) -> None:
    """The restarted one gets the part without having been told to load the model."""
    request = request_of(weights, tmp_path / "out")
    interrupted(request, 2)
    plan, folder = plan_set(request)
    made = finished_parts(folder)
    path = made[1].path
    content = path.read_bytes()
    path.unlink()
    assert SamplingActor("cpu").make(plan, folder, 1) == made[1]
    assert path.read_bytes() == content
    assert finished_parts(folder) == made


def test_an_actor_without_the_folder_writes_nothing(weights: Path, tmp_path: Path) -> None:
    plan, folder = plan_set(request_of(weights, tmp_path / "out"))
    folder.mkdir()
    with pytest.raises(UserError, match="storage that all nodes share"):
        SamplingActor("cpu").make(plan, folder, 0)
    assert list(folder.iterdir()) == []
