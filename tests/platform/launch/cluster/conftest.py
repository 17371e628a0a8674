"""A stand-in for a Ray head."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.platform.launch.cluster.fake_head import FakeHead, fake_head


@pytest.fixture
def ray_head() -> Iterator[FakeHead]:
    """Return a stand-in for a Ray head with token authentication."""
    with fake_head() as head:
        yield head
