"""The tree that most tests of configurations start from."""

from __future__ import annotations

from typing import Any

import pytest

from causalfusion_platform.config.compose import compose_experiment


@pytest.fixture(scope="session")
def quickstart() -> dict[str, Any]:
    """Return the resolved tree of quickstart."""
    return compose_experiment("quickstart").unresolved
