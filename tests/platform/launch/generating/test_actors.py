"""How many workers there are to be; the pool itself is tested with Ray, in tests/integration."""

from __future__ import annotations

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.generating.actors import count_workers


@pytest.mark.parametrize(
    ("wanted", "resources", "expected"),
    [
        (None, {"CPU": 2.0}, (2, 0)),
        (None, {"CPU": 0.5}, (1, 0)),
        (None, {"CPU": 16.0, "GPU": 4.0}, (4, 4)),
        (None, {"CPU": 1.0, "GPU": 8.0}, (8, 8)),
        (3, {"CPU": 2.0}, (3, 0)),  # each computes on one thread and reserves half a CPU
        (4, {"CPU": 2.0, "GPU": 0.0}, (4, 0)),
        (1, {"CPU": 16.0, "GPU": 4.0}, (1, 4)),
    ],
)
def test_workers(wanted: int | None, resources: dict[str, float], expected: tuple[int, int]) -> None:
    assert count_workers(wanted, resources) == expected


@pytest.mark.parametrize(
    ("wanted", "resources", "allowed"),
    [
        (5, {"CPU": 2.0}, "allowed: 1 to 4, 0.5 CPUs each"),
        (0, {"CPU": 2.0}, "allowed: 1 to 4"),
        (5, {"CPU": 64.0, "GPU": 4.0}, "allowed: 1 to 4, one a GPU"),
    ],
)
def test_more_workers_than_fit(wanted: int, resources: dict[str, float], allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        count_workers(wanted, resources)
    assert f"--workers {wanted}, but the cluster has {resources['CPU']:g} CPUs" in str(caught.value)
    assert allowed in str(caught.value)
