"""Ray's private API stays in one module, and all of Ray that the platform names is there and public."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.tune
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler._private.util import format_readonly_node_type
from ray.core.generated.autoscaler_pb2 import (
    AutoscalingState,
    ClusterResourceState,
    GangResourceRequest,
    GetClusterStatusReply,
    NodeState,
    PendingInstance,
    PendingInstanceRequest,
    ResourceRequest,
)
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _shutdown_torch
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, NoopDecision
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.annotations import AnnotationType
from tests.conftest import run_environment

from causalfusion_platform import ray_private
from causalfusion_platform.launch.cluster.interface import use_interface_of_node

ROOT = Path(ray_private.__file__).parents[2]
OTHERS = [path for path in sorted(Path(ray_private.__file__).parent.rglob("*.py")) if path.name != "ray_private.py"]
# Methods and attributes of Ray's objects, which the names of modules do not show.
MEMBERS = {
    "iter_internal_ref_bundles",
    "execution_options",
    "target_max_block_size",
    "controller_failure_limit",
    "health_check_failure",
    "_base_exc",
    "_get_new_config",
    "_hyperparam_bounds",
    "on_trial_result",
    "_temp_dir",
    "_system_config",
    "_actor_id",
}
# Tune's public Callback has a method of the same name as its schedulers.
PUBLIC = {("launch/sweeping/progress.py", "on_trial_result")}


def names_of_ray(tree: ast.Module) -> dict[str, str]:
    """Return what names of a module stand for in Ray: `tune` → ray.tune."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "ray":
                    names[alias.asname or "ray"] = alias.name if alias.asname else "ray"
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "ray":
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return front and f"{front}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def used_of_ray(tree: ast.Module) -> Iterator[str]:
    """Yield every dotted name of Ray that a module imports or uses."""
    names = names_of_ray(tree)
    yield from names.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "ray")
        text = dotted(node) if isinstance(node, ast.Attribute) else None
        if text and text.partition(".")[0] in names:
            first, _, rest = text.partition(".")
            yield f"{names[first]}.{rest}"


def resolve(name: str) -> Any:
    """Return the object of a dotted name; parts may be modules that nobody has imported yet."""
    found: Any = ray
    for index, part in enumerate(parts := name.split("."), start=1):
        if index == 1:
            continue
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part)
    return found


def members_used(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"ray\._\w+|ray\.nodes\b|ray\.cluster_resources\b", node.value)
            yield node.value


def faults_of(text: str, path: str = "x.py") -> list[str]:
    """Return what a module's source uses of Ray's private and developer API."""
    tree = ast.parse(text)
    faults = []
    for name in sorted(set(used_of_ray(tree))):
        # Every module of Python has names such as __file__.
        if any(part.startswith("_") and not part.endswith("__") for part in name.split(".")):
            faults.append(f"{name} is private")
            continue
        try:
            found = resolve(name)
        except (AttributeError, ImportError):
            faults.append(f"{name} is not in Ray {ray.__version__}")
            continue
        # A class inherits the mark of its base: it counts where it stands on the class itself.
        mark = getattr(found, "_annotated_type", None)
        own = getattr(found, "_annotated", None) == getattr(found, "__name__", "")
        if own and mark is AnnotationType.DEVELOPER_API:
            faults.append(f"{name} is a DeveloperAPI")
    for name in sorted(set(members_used(tree))):
        of_kubernetes = name.startswith("ray.io")  # labels and kinds of KubeRay
        if (name in MEMBERS and (path, name) not in PUBLIC) or (name.startswith("ray.") and not of_kubernetes):
            faults.append(f"{name} is private")
    return faults


def test_nothing_else_uses_private_parts_of_ray() -> None:
    package = Path(ray_private.__file__).parent
    found = [
        f"{path.relative_to(package)}: {fault}"
        for path in OTHERS
        for fault in faults_of(path.read_text(), str(path.relative_to(package)))
    ]
    assert not found, "move it to ray_private.py:\n" + "\n".join(found)
    assert len(OTHERS) > 100


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nray._private.state.state.get_draining_nodes()",
        "from ray._private import state",
        "import ray._private.worker",
        "from ray.train.v2 import _internal as parts",
        "import ray as r\nr.nodes()",
        "def f():\n    import ray\n    return ray.cluster_resources()",
        "import ray.data\nray.data.DataContext.get_current()",
        "from ray.data import DataContext",
        "from ray import tune\ntune.no_such_function()",
        "import ray\nray.init(_temp_dir='x')",
        "script = 'import ray; ray.nodes()'",
        "for bundle in rows.iter_internal_ref_bundles(): pass",
        "getattr(error, '_base_exc')",
    ],
)
def test_each_way_to_touch_it_is_found(source: str) -> None:
    assert faults_of(source)


def test_public_use_is_no_fault() -> None:
    text = "import ray\nfrom ray import tune\nray.get(ray.put(1))\ntune.report({})\nray.exceptions.RayError"
    assert faults_of(text) == []


def test_it_was_checked_on_the_tested_version() -> None:
    """Upgrade Ray only after reading ray_private.py against the new version."""
    assert f"ray=={ray_private.CHECKED_ON}\n" in (ROOT / "constraints.txt").read_text()


# --- each part, as it is used -----------------------------------------------------------------------------


def test_the_state_of_nodes() -> None:
    assert callable(ray._private.state.state.get_draining_nodes)
    assert callable(ray.nodes)


def reply_of(kinds: list[str], **state: Any) -> GetClusterStatusReply:
    nodes = [NodeState(ray_node_type_name=kind) for kind in kinds]
    return GetClusterStatusReply(
        cluster_resource_state=ClusterResourceState(node_states=nodes), autoscaling_state=AutoscalingState(**state)
    )


def group_of(*bundles: dict[str, float]) -> GangResourceRequest:
    """A placement group, as the second version of the autoscaler names it."""
    requests = [ResourceRequest(resources_bundle=bundle) for bundle in bundles]
    return GangResourceRequest(bundle_selectors=[{"resource_requests": requests}])


def test_the_second_autoscaler() -> None:
    """By the messages that it sends. Without a configuration it names no kind of node."""
    view = ray_private._view_of_second_version
    refused = [group_of({"CPU": 2.0}), group_of({"CPU": 0.5, "GPU": 1.0})]
    assert view(reply_of(["", ""], infeasible_gang_resource_requests=refused)) is None
    assert view(GetClusterStatusReply()) is None
    assert view(reply_of(["headgroup"])) == ray_private.AutoscalerView(False, [])
    found = view(reply_of(["headgroup", "gpu"], infeasible_gang_resource_requests=refused))
    assert found == ray_private.AutoscalerView(False, [{"CPU": 2.0}, {"CPU": 0.5, "GPU": 1.0}])
    asked = [PendingInstanceRequest(ray_node_type_name="gpu", count=1)]
    starting = [PendingInstance(ray_node_type_name="gpu")]
    assert view(reply_of(["headgroup"], pending_instance_requests=asked)) == ray_private.AutoscalerView(True, [])
    assert view(reply_of(["headgroup"], pending_instances=starting)) == ray_private.AutoscalerView(True, [])


def test_the_first_autoscaler() -> None:
    """By what it writes. Without a configuration it names the kinds of nodes after the nodes."""
    view = ray_private._view_of_first_version

    def status(**report: Any) -> bytes:
        return json.dumps({"time": 1.0, "autoscaler_report": report}).encode()

    mirrored = format_readonly_node_type("ab" * 28)
    assert view(None) is None
    assert view(b'{"time": 1.0}') is None
    assert view(status(node_type_mapping={"ab" * 28: mirrored}, pending_launches={})) is None
    head = {"10.0.0.1": "ray.head.default"}
    assert view(status(node_type_mapping=head)) == ray_private.AutoscalerView(False, [])
    assert view(status(node_type_mapping=head, pending_launches={"gpu": 2})) == ray_private.AutoscalerView(True, [])
    pending = [["10.0.0.2", "gpu", "setting-up"]]
    assert view(status(node_type_mapping=head, pending_nodes=pending)) == ray_private.AutoscalerView(True, [])
    assert DEBUG_AUTOSCALING_STATUS == "__autoscaling_status"


def test_options_of_a_local_ray(tmp_path: Path) -> None:
    """`ray.init` takes private options by any name that begins with a dash; these are the ones that it knows."""
    source = inspect.getsource(ray.init)
    options = ray_private.local_options(tmp_path, 1)
    assert all(f'"{name}"' in source or name in inspect.signature(ray.init).parameters for name in options)


def test_inner_errors() -> None:
    fault = ValueError("x")
    assert ray_private.inner_errors(UserExceptionWithTraceback(fault, "Traceback …")) == [fault]
    assert ray_private.inner_errors(WorkerHealthCheckFailedError("y", failure=fault)) == [fault]
    assert ray_private.inner_errors(ray.train.WorkerGroupError("z", {1: fault})) == [fault]
    assert ray_private.inner_errors(ray.train.ControllerError(fault)) == [fault]
    assert ray_private.inner_errors(fault) == []


def test_a_single_attempt() -> None:
    config = ray_private.single_attempt()
    assert (config.max_failures, config.controller_failure_limit, config.max_preemption_failures) == (0, 0, 0)


def test_a_trainer_starts_three_actors_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENABLE_PREEMPTION_WATCHER_ENV_VAR, raising=False)
    monkeypatch.setenv(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, "60")
    trainer = ray_private.small_trainer(1234.5)
    assert get_env_vars_to_propagate()[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] == "1234.5"
    assert "1234.5 seconds" in str(WorkerGroupStartupTimeoutError(2))
    assert get_env_vars_to_propagate()[ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "0"
    usual, ours = (
        [type(callback) for callback in made(lambda: None)._create_default_callbacks()]
        for made in (TorchTrainer, trainer)
    )
    assert [kind for kind in usual if kind not in ours] == [DatasetsCallback]
    assert [kind for kind in usual if kind is not DatasetsCallback] == ours
    started: list[Any] = []
    monkeypatch.setattr(
        DataParallelTrainer, "_initialize_and_run_controller", lambda _, **arguments: started.append(arguments)
    )
    trainer(lambda: None, scaling_config=ScalingConfig(num_workers=3))._initialize_and_run_controller(
        scaling_policy=None, callbacks=[]
    )
    [arguments] = started
    policy = ray.cloudpickle.loads(ray.cloudpickle.dumps(arguments["scaling_policy"]))
    assert isinstance(policy, FixedScalingPolicy)
    policy.after_controller_start(None)
    # Neither needs the actor, or Ray.
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision.num_workers == 3
    assert isinstance(policy.make_decision_for_running_worker_group(None, None), NoopDecision)
    policy.before_controller_abort()


def test_the_controller_of_a_training_needs_no_torch(tmp_path: Path) -> None:
    """A process that unpickles the configuration of the backend, as Ray Train's controller does."""
    file = tmp_path / "config.pickle"
    file.write_bytes(ray.cloudpickle.dumps(ray_private.torch_config("gloo", 60, use_interface_of_node)))
    code = (
        "import sys, ray, ray.train.v2._internal.execution.controller.controller as _\n"
        "config = ray.cloudpickle.loads(open(sys.argv[1], 'rb').read())\n"
        "assert config.backend_cls().share_cuda_visible_devices\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=300, env=run_environment())


def test_workers_are_asked_for_their_place_in_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own group of workers. Each worker is called in this process, and what it is asked to do is noted."""

    class Worker:
        def execute_async(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            if function.__name__ == "get_address_and_port":
                return ("10.0.0.1", 4321)
            return (function, *inspect.signature(function).bind(*arguments, **named).args)

    group = ReplicaGroup([Worker(), Worker()], {}, [])
    asked: list[Any] = []
    limits: list[float] = []

    def get(found: Any, timeout: float) -> Any:
        asked.append(found)
        limits.append(timeout)
        return found

    monkeypatch.setattr(ray, "get", get)
    config = ray_private.torch_config("gloo", 90, use_interface_of_node)
    backend = config.backend_cls()
    backend.on_start(group, config)
    join = ray_private._join_process_group
    assert asked[-1] == [(join, "gloo", "10.0.0.1", 4321, rank, 2, use_interface_of_node) for rank in range(2)]
    assert len(limits) == 2
    assert 0 < limits[1] <= limits[0] <= 90  # one limit for both calls
    backend.on_shutdown(group, config)
    assert asked[-1] == [(ray_private._leave_process_group,)] * 2


def test_workers_that_find_no_group_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is told apart from others, on its way between processes too."""

    class Worker:
        def execute_async(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any: ...

    def get(_: Any, timeout: float) -> Any:
        raise ray.exceptions.GetTimeoutError(f"{timeout}")

    monkeypatch.setattr(ray, "get", get)
    config = ray_private.torch_config("gloo", 90, use_interface_of_node)
    with pytest.raises(ray_private.StartTooSlow, match="within 90 s") as caught:
        config.backend_cls().on_start(ReplicaGroup([Worker()], {}, []), config)
    assert ray_private.started_too_slowly(ray.cloudpickle.loads(ray.cloudpickle.dumps(caught.value)))
    assert ray_private.started_too_slowly(WorkerGroupStartupTimeoutError(2))
    assert not ray_private.started_too_slowly(ray.exceptions.GetTimeoutError())


def test_a_backend_has_the_settings_of_rays_own() -> None:
    """And the functions of Ray that workers call have the parameters that they get."""
    ours, theirs = ray_private.torch_config("gloo", 60, use_interface_of_node), TorchConfig(backend="gloo")
    assert ours.train_func_context is theirs.train_func_context
    assert ours.backend_cls.share_cuda_visible_devices == theirs.backend_cls.share_cuda_visible_devices
    parameters = ["backend", "world_rank", "world_size", "init_method", "timeout_s"]
    assert list(inspect.signature(_setup_torch_process_group).parameters) == parameters
    assert not inspect.signature(_set_torch_distributed_env_vars).parameters
    assert list(inspect.signature(_shutdown_torch).parameters) == ["destroy_process_group"]


def test_schedulers_have_the_methods_that_ours_override() -> None:
    """What the overrides do is tested in launch/sweeping/test_schedulers.py."""
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.schedulers.pb2 import PB2

    assert list(inspect.signature(PB2._get_new_config).parameters) == ["self", "trial", "trial_to_clone"]
    made = PB2(metric="score", mode="min", hyperparam_bounds={"rate": [0.0, 1.0]})
    assert made._hyperparam_bounds == {"rate": [0.0, 1.0]}
    assert {"CONTINUE", "PAUSE", "on_trial_result"} <= {*dir(PopulationBasedTraining)}


def test_the_loggers_of_the_client_that_submits_jobs() -> None:
    for name in ray_private.JOB_CLIENT_LOGGERS:
        assert "logging.getLogger(__name__)" in Path(importlib.import_module(name).__file__ or "").read_text()
