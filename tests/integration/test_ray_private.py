"""Ray's private API on a running Ray."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
from pathlib import Path

import psutil
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


class Listener:
    def address(self) -> str:
        return str(ray.util.get_node_ip_address())


def test_a_local_ray_listens_on_loopback_alone(ray_cluster: None) -> None:
    """Every port of every process, those of actors and of this driver too."""
    actor = ray.remote(Listener).options(num_cpus=0.1).remote()
    assert ray.get(actor.address.remote()) == "127.0.0.1"
    driver = psutil.Process()
    listening = []
    for process in [driver, *driver.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            ports = [one.laddr for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
            listening += [(process.name(), place.ip, place.port) for place in ports]
    assert len(listening) > 6
    assert [one for one in listening if not ipaddress.ip_address(one[1].removeprefix("::ffff:")).is_loopback] == []
    assert not {44217, 44227} & {port for _, _, port in listening}  # Ray's ports of metrics


def test_nobody_else_can_reach_the_sockets_of_a_local_ray(ray_cluster: None) -> None:
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    sockets = [path for path in session.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert len(sockets) > 1
    closed = next(folder for folder in session.parents if stat.S_IMODE(folder.stat().st_mode) == 0o700)
    assert (closed.parent, closed.stat().st_uid) == (Path("/tmp"), os.geteuid())
