"""Which nodes see a run's folder and its shards. Each node is a folder of this host, and no Ray is started."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster import shared_folders as module
from causalfusion_platform.launch.cluster.shared_folders import check_shared_folders, look
from causalfusion_platform.ray_private import ClusterNode

MakeExperiment = Callable[..., Experiment]


def id_of(name: str) -> str:
    """An id of Ray's form, 28 bytes in hexadecimal."""
    return name.encode().hex().ljust(56, "0")


def name_of(identity: str) -> str:
    return bytes.fromhex(identity).rstrip(b"\0").decode()


class Nodes:
    """Nodes with file systems of their own: `root` of the driver is another folder there, or the same one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here = ClusterNode(id_of("driver"), "10.0.0.1", 1, {"CPU": 8.0}, "head")
        self.alive = [self.here]
        self.sees: dict[str, Path | Exception] = {}
        self.asked: dict[str, list[str]] = {}

    def add(self, name: str, sees: Path | Exception, **resources: float) -> None:
        address, has = f"10.0.0.{len(self.alive) + 1}", resources or {"CPU": 2.0}
        self.alive.append(ClusterNode(id_of(name), address, 1, has, f"host-{name}"))
        self.sees[name] = sees

    def remote(self, *, num_cpus: int, max_retries: int, scheduling_strategy: Any) -> Any:
        """Ray's decorator of a task, which runs at once on the node that it is pinned to."""
        assert isinstance(scheduling_strategy, NodeAffinitySchedulingStrategy)
        assert (num_cpus, max_retries, scheduling_strategy.soft) == (0, 0, False)
        node = name_of(scheduling_strategy.node_id)

        def call(files: list[tuple[str, str]]) -> Any:
            self.asked[node] = [path for path, _ in files]
            root = self.sees[node]
            if isinstance(root, Exception):
                return root
            there = [(path.replace(str(self.root), str(root)), sha256) for path, sha256 in files]
            return look(there, seconds=0)

        return lambda function: SimpleNamespace(remote=lambda files: Call(call(files)))


class Call:
    """Reference to the result of a task."""

    def __init__(self, result: Any) -> None:
        self.result = result


def get(call: Call) -> Any:
    if isinstance(call.result, Exception):
        raise call.result
    return call.result


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    root = tmp_path / "driver"
    (root / "runs" / "first").mkdir(parents=True)
    made = Nodes(root)

    def wait(calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        assert num_returns == len(calls)
        late = [call for call in calls if isinstance(call.result, TimeoutError)]
        return [call for call in calls if call not in late], late

    monkeypatch.setattr(ray, "remote", made.remote)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda _, force: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: id_of("driver")))
    monkeypatch.setattr(module, "alive_nodes", lambda: made.alive)
    return made


@pytest.fixture
def experiment(nodes: Nodes, make_experiment: MakeExperiment) -> Experiment:
    """Workers of one CPU, tasks that read of half a CPU, and a manifest of their shards."""
    shards = nodes.root / "shards"
    shards.mkdir()
    (shards / "_manifest.json").write_text('{"rows": 7}')
    return make_experiment(train={"cpus_per_worker": 1}, data={"path": str(shards), "cpus_per_task": 0.5})


def run_dir(nodes: Nodes) -> Path:
    return nodes.root / "runs" / "first"


def left_over(nodes: Nodes) -> list[Path]:
    return list(run_dir(nodes).iterdir())


def test_a_ray_of_one_node_is_not_asked(nodes: Nodes, experiment: Experiment) -> None:
    check_shared_folders(experiment, run_dir(nodes))
    assert nodes.asked == {}


def test_nodes_that_see_all(nodes: Nodes, experiment: Experiment) -> None:
    """Each looks for the run's mark and the manifest. A node for reading alone needs the shards alone."""
    nodes.add("a", nodes.root)
    nodes.add("b", nodes.root)
    nodes.add("reads", nodes.root, CPU=0.5)
    nodes.add("nothing", nodes.root, CPU=0.25)
    check_shared_folders(experiment, run_dir(nodes))
    manifest = str(nodes.root / "shards" / "_manifest.json")
    assert [paths[1:] for paths in (nodes.asked["a"], nodes.asked["b"])] == [[manifest]] * 2
    [mark] = {nodes.asked[name][0] for name in ("a", "b")}
    assert Path(mark).parent == run_dir(nodes)
    assert nodes.asked["reads"] == [manifest]
    assert "nothing" not in nodes.asked
    assert left_over(nodes) == []


def test_nodes_without_a_gpu_get_no_worker(nodes: Nodes, experiment: Experiment) -> None:
    gpus = experiment.train.model_copy(update={"gpus_per_worker": 1})
    nodes.add("gpu", nodes.root, CPU=8.0, GPU=1.0)
    nodes.add("cpu", nodes.root, CPU=8.0)
    check_shared_folders(experiment.model_copy(update={"train": gpus}), run_dir(nodes))
    assert (len(nodes.asked["gpu"]), len(nodes.asked["cpu"])) == (2, 1)


def test_folders_that_are_not_shared_are_named_with_their_nodes(
    nodes: Nodes, experiment: Experiment, tmp_path: Path
) -> None:
    """One has no such folder at all, the other a folder of its own with the same name."""
    other = tmp_path / "other"
    shutil.copytree(nodes.root, other)
    nodes.add("good", nodes.root)
    nodes.add("none", tmp_path / "nowhere")
    nodes.add("own", other)
    with pytest.raises(UserError) as caught:
        check_shared_folders(experiment, run_dir(nodes))
    first, none, own, advice = str(caught.value).splitlines()
    assert first == f"2 nodes do not see the folder of the run: {run_dir(nodes)}"
    assert none == "  host-none (10.0.0.3): the folder is not there"
    assert own.startswith("  host-own (10.0.0.4): .seen-")
    assert own.endswith(": No such file or directory")
    assert (
        "CAUSALFUSION_HOME or runs=… to a folder that every node mounts, or use runs=s3://BUCKET/PREFIX" in advice
    )
    assert "then give the same command" in advice
    assert left_over(nodes) == []


def test_shards_that_differ(nodes: Nodes, experiment: Experiment, tmp_path: Path) -> None:
    """The run's folder is a link to the driver's, but the shards are a copy of other ones."""
    other = tmp_path / "other"
    (other / "shards").mkdir(parents=True)
    (other / "runs").symlink_to(nodes.root / "runs")
    (other / "shards" / "_manifest.json").write_text('{"rows": 8}')
    nodes.add("copy", other)
    with pytest.raises(UserError) as caught:
        check_shared_folders(experiment, run_dir(nodes))
    first, copy, advice = str(caught.value).splitlines()
    assert first == f"1 node does not see the shards of data.path: {nodes.root / 'shards'}"
    assert copy == "  host-copy (10.0.0.2): _manifest.json is another file there"
    assert "copy the shards to the same path on every node" in advice
    (other / "shards" / "_manifest.json").write_text('{"rows": 7}')
    check_shared_folders(experiment, run_dir(nodes))


def test_many_nodes_are_counted(nodes: Nodes, experiment: Experiment, tmp_path: Path) -> None:
    for number in range(11):
        nodes.add(str(number), tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^11 nodes do not see") as caught:
        check_shared_folders(experiment, run_dir(nodes))
    assert len(str(caught.value).splitlines()) == 1 + 8 + 1 + 1
    assert "and 3 more nodes" in str(caught.value)


def test_a_node_that_is_lost_or_late_stops_nothing(
    nodes: Nodes, experiment: Experiment, log_lines: list[str]
) -> None:
    nodes.add("lost", ray.exceptions.NodeDiedError("gone"))
    nodes.add("late", TimeoutError())
    check_shared_folders(experiment, run_dir(nodes))
    assert "host-lost (10.0.0.2) was not asked" in log_lines[0]
    assert "host-late (10.0.0.3) does not answer within 60 s" in log_lines[1]


def test_a_node_without_the_program(nodes: Nodes, experiment: Experiment) -> None:
    missing = ModuleNotFoundError("No module named 'causalfusion_platform'")
    error = ray.exceptions.RayTaskError("look", "Traceback …", missing, "ray::look", 1, "10.0.0.2")
    nodes.add("bare", error)
    with pytest.raises(UserError, match=r"host-bare \(10.0.0.2\) cannot run this program: ModuleNotFoundError: No"):
        check_shared_folders(experiment, run_dir(nodes))
    assert left_over(nodes) == []


def test_a_file_that_appears_late(tmp_path: Path) -> None:
    file = tmp_path / "mark"
    sha256 = hashlib.sha256(b"x").hexdigest()
    threading.Timer(0.1, lambda: file.write_bytes(b"x")).start()
    assert look([(str(file), sha256)], seconds=60) == [None]
