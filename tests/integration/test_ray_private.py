"""Ray's private API on a running Ray."""

from __future__ import annotations

import pytest
import ray
import ray.data
from ray.data._internal.usage.collector import usage_collection_disabled

from causalfusion_platform import ray_private

pytestmark = pytest.mark.ray


def test_the_nodes_of_a_cluster(ray_cluster: None) -> None:
    [node] = ray_private.alive_nodes()
    assert node.id == ray.get_runtime_context().get_node_id()
    assert node.resources["CPU"] == ray.cluster_resources()["CPU"]
    assert node.port > 0
    assert ray_private.draining_nodes() == set()


def test_blocks_are_streamed_in_order(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_DATA_USAGE_DISABLED", raising=False)
    assert not usage_collection_disabled()
    context = ray.data.DataContext.get_current()
    before = context.copy()
    try:
        ray_private.set_up_ray_data(whole_blocks=True)
        assert usage_collection_disabled()
        assert context.execution_options.preserve_order is True
        assert (context.enable_progress_bars, context.target_max_block_size) == (False, None)
        blocks = list(ray_private.stream_blocks(ray.data.from_items([*range(6)], override_num_blocks=3)))
    finally:
        ray.data.DataContext._set_current(before)
    assert [rows for _, rows in blocks] == [2, 2, 2]
    assert [ray.get(block).column(0).to_pylist() for block, _ in blocks] == [[0, 1], [2, 3], [4, 5]]
