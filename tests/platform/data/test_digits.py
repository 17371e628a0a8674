"""The embedded data set, and what is known of it without scikit-learn."""

from __future__ import annotations

from causalfusion_platform.data.digits import NUM_ROWS, SHAPE, digits


def test_its_size_is_the_one_that_is_stated() -> None:
    rows = digits()
    assert rows.mean.shape == (NUM_ROWS, *SHAPE)
    assert len(rows.labels) == len(rows.keys) == NUM_ROWS
