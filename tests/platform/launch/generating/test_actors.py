"""The actor that generates parts, without Ray; Ray's restarts are tested in tests/integration."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.platform.launch.generating.asked import interrupted, request_of

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.resources import Resources
from causalfusion_platform.launch.generating import actors as module
from causalfusion_platform.launch.generating.actors import RayGenerators, SamplingActor
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


@pytest.mark.parametrize(
    ("wanted", "before", "after", "asked", "expected"),
    [
        (None, (0, 0), (0, 0), [], (1, 0)),  # it waits for a CPU by itself
        (3, (0, 0), (2, 0), [Resources.of(0.5)] * 3, (3, 0)),
        (2, (8, 1), (8, 2), [Resources.of(0.5, 1)] * 2, (2, 1)),
        (0, (8, 0), (8, 0), [], None),
    ],
)
def test_actors_that_do_not_fit_are_asked_room_for(
    monkeypatch: pytest.MonkeyPatch,
    wanted: int | None,
    before: tuple[int, int],
    after: tuple[int, int],
    asked: list[Resources],
    expected: tuple[int, int] | None,
) -> None:
    seen: list[Any] = []

    def wait_for_room(fit: Any, demand: list[Resources], seconds: float) -> Any:
        seen.append(demand)
        return fit(Resources.of(*after))

    monkeypatch.setattr(module, "ray_session", nullcontext)
    monkeypatch.setattr(module, "cluster_resources", lambda: Resources.of(*before))
    monkeypatch.setattr(module, "wait_for_room", wait_for_room)
    generators = RayGenerators(wanted)
    if expected is None:
        with pytest.raises(UserError, match="allowed: 1 to 16"):
            generators.start()
    else:
        generators.start()
        assert (generators.count, generators.gpus) == expected
    assert seen == [asked]
