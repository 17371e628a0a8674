"""Uses of Ray's private and DeveloperAPI names, which may change without notice.

Other modules do not use such names. Each function says why it is needed, and which public call comes closest.
Before Ray is upgraded, read this file against the new version, run its tests, and set `CHECKED_ON`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKED_ON = "2.60.0"
"""Ray's version when this file was last read against it."""

JOB_CLIENT_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of the client that submits jobs. It has no public switch for the steps that it prints."""

# Attributes under which Ray's errors keep the error that they came from. `cause` alone is public.
_ERROR_LINKS = ("cause", "_base_exc", "health_check_failure", "controller_failure")

# Ray ends an idle process after a second if there are more processes than CPUs, and actors count. On few cores each
# window of rows would then be read by a new process, whose imports take seconds.
_IDLE_MS = 60_000

_METRICS_PORTS = ("DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT")
_NO_PORT = "65536"  # Ray takes whole numbers, and logs that it cannot listen there


@dataclass(frozen=True)
class ClusterNode:
    """A node that Ray counts as alive."""

    id: str
    address: str
    """IP address of its raylet."""
    port: int
    resources: dict[str, float]
    """All resources, used or not: {"CPU": …, "GPU": …, …}."""
    host: str = ""
    """Name of its host, as the host itself gives it."""


def alive_nodes() -> list[ClusterNode]:
    """Return the nodes that Ray counts as alive.

    DeveloperAPI: `ray.nodes`. The public `ray.util.state.list_nodes` asks the dashboard, which may be absent, and
    names no port.
    """
    import ray

    return [
        ClusterNode(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["NodeManagerPort"],
            node["Resources"],
            node["NodeManagerHostname"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def draining_nodes() -> set[str]:
    """Return the ids of nodes that are being taken back.

    Private: `ray._private.state`. The public `ray.train.get_preemption_info` is a collective of all workers, and
    the driver is not one of them.
    """
    import ray

    return set(ray._private.state.state.get_draining_nodes())


@dataclass(frozen=True)
class AutoscalerView:
    """State of a cluster's autoscaler, as it last told it."""

    nodes_under_way: bool
    """True if nodes are being asked for, or are starting."""
    infeasible: list[dict[str, float]]
    """Bundles of placement groups for which it has no node to add: {"CPU": …, "GPU": …}."""


def autoscaler_view() -> AutoscalerView | None:
    """Return the state of the autoscaler that may add nodes to this cluster. None: there is none.

    Every head runs a monitor. Without a configuration it only mirrors the nodes that are there. The first version
    of the autoscaler then names their kinds `node_ID`, and the second one does not name them.

    Private: `is_autoscaler_v2`, `autoscaler_pb2`, the client of the GCS, and the key of the first version's state.
    The text of `ray status` is for people, and no public call tells if a cluster can grow.
    """
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    gcs = ray._private.worker.global_worker.gcs_client
    if is_autoscaler_v2():
        reply = GetClusterStatusReply()
        reply.ParseFromString(gcs.get_cluster_status(timeout_s=_GCS_SECONDS))
        return _view_of_second_version(reply)
    return _view_of_first_version(gcs.internal_kv_get(b"__autoscaling_status", None, timeout=_GCS_SECONDS))


def _view_of_second_version(reply: Any) -> AutoscalerView | None:
    state = reply.autoscaling_state
    if not any(node.ray_node_type_name for node in reply.cluster_resource_state.node_states):
        return None
    infeasible = [
        dict(request.resources_bundle)
        for group in state.infeasible_gang_resource_requests
        for selector in group.bundle_selectors
        for request in selector.resource_requests
    ]
    return AutoscalerView(bool(state.pending_instances or state.pending_instance_requests), infeasible)


def _view_of_first_version(status: bytes | None) -> AutoscalerView | None:
    report = json.loads(status or b"{}").get("autoscaler_report") or {}
    kinds = report.get("node_type_mapping", {}).values()
    if all(kind.startswith("node_") for kind in kinds):
        return None
    return AutoscalerView(bool(report.get("pending_nodes") or report.get("pending_launches")), [])


_GCS_SECONDS = 10


def local_options(folder: Path, dashboard_port: int) -> dict[str, Any]:
    """Return the options of `ray.init` for a local Ray with its files in a folder below `folder`.

    Ray makes its folder writable for everybody. `folder` itself keeps its permissions, and nobody else can pass it.
    Ports that show metrics are closed. Processes start when they are needed, not one for each CPU at once.

    Private: `_temp_dir` and `_system_config`. The environment variables that set the same are not public either,
    and every process of the driver would inherit them.
    """
    return {
        "address": "local",
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": dashboard_port,
        "_temp_dir": str(folder / "ray"),
        "_system_config": {
            "idle_worker_killing_time_threshold_ms": _IDLE_MS,
            "prestart_worker_first_driver": False,
            "enable_metrics_collection": False,
        },
    }


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Let a Ray that starts inside take 127.0.0.1 as its node's address. Its ports then listen there alone.

    A driver that joins such a Ray inside finds it at 127.0.0.1.

    Two more ports would show metrics of the dashboard and of the autoscaler. They are closed.

    Private: `ray_constants.ENABLE_RAY_CLUSTER`, which is false on systems where Ray has no clusters. `ray.init`
    replaces 127.0.0.1 as `_node_ip_address` by the address of a network interface. The variables of the two ports
    are not documented.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER, {name: os.environ.get(name) for name in _METRICS_PORTS}
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(dict.fromkeys(_METRICS_PORTS, _NO_PORT))
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, variables = before
        for name, value in variables.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def found_address() -> str | None:
    """Return HOST:PORT of the Ray that `auto` stands for on this machine, or None.

    Private: `services.canonicalize_bootstrap_address`. The public `ray.init` waits for minutes if the Ray is gone.
    """
    from ray._private import services

    with on_loopback():
        try:
            address: str | None = services.canonicalize_bootstrap_address("auto")
        except ConnectionError:
            return None
    return address


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Let `ray.init` try once, for about 40 s, to join a cluster. It would otherwise try twenty times.

    Not documented: the variable of the environment.
    """
    name = "RAY_gcs_server_port_wait_time_s"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


def inner_errors(error: BaseException) -> list[BaseException]:
    """Return the errors that an error of Ray or Python wraps.

    Private: `_base_exc` of Ray Train's UserExceptionWithTraceback and `health_check_failure` of its
    WorkerHealthCheckFailedError. Public errors carry these, and their messages alone do not tell faults apart.
    """
    inner = [getattr(error, name, None) for name in (*_ERROR_LINKS, "__cause__", "__context__")]
    inner += list(getattr(error, "worker_failures", {}).values())
    return [one for one in inner if isinstance(one, BaseException)]


def single_attempt() -> Any:
    """Return Ray Train's `FailureConfig` that tries nothing again.

    DeveloperAPI: `controller_failure_limit`. Its default of −1 retries an unschedulable group of workers for ever.
    """
    from ray.train import FailureConfig

    return FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)


def small_trainer(start_seconds: float) -> Any:
    """Return Ray Train's `TorchTrainer` that starts none of three actors for each attempt.

    - One asks which nodes are being taken back. The driver asks `draining_nodes` itself.
    - One distributes data sets that are given to the trainer. Workers here read theirs themselves.
    - One asks an autoscaler for nodes. A run starts when the cluster holds its workers, whose placement group keeps
      their nodes.

    The process of each takes two seconds of CPU to start.

    Private: `_create_default_callbacks`, `_initialize_and_run_controller`, `FixedScalingPolicy` and its methods.
    Not documented: the first environment variable. `RunConfig`, `FailureConfig` and `TorchTrainer` have no such
    options.

    Args:
        start_seconds: longest wait until Ray has room for all workers. It is 60 by default.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_seconds)
    # The controller asks this often whether the workers have ended. By default a run ends up to two seconds late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")

    class AsksForNothing(FixedScalingPolicy):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class SmallTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            policy = AsksForNothing(self.scaling_config)
            return super()._initialize_and_run_controller(**arguments | {"scaling_policy": policy})

    return SmallTrainer


class StartTooSlow(Exception):
    """Workers have not made their process group in time."""


def started_too_slowly(error: BaseException) -> bool:
    """Say whether a group of workers was not there in time.

    Private: `WorkerGroupStartupTimeoutError`. The public `ControllerError` around it is the same for any fault.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(error, StartTooSlow | WorkerGroupStartupTimeoutError)


def torch_config(backend: str, start_seconds: float, before_joining: Callable[[], None]) -> Any:
    """Return Ray Train's `TorchConfig` whose controller imports no torch, which takes two seconds before it starts.

    Workers make their process group by the functions of `TorchConfig`.

    DeveloperAPI: `Backend` and `BackendConfig`. Private: `get_address_and_port`. `TorchConfig` has no such option.

    Args:
        backend: `gloo` or `nccl`.
        start_seconds: longest wait until all workers have made their process group.
        before_joining: called in each worker before that. Its module is imported by the controller.
    """
    import ray
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig

    class WorkersAlone(Backend):  # type: ignore[misc]
        share_cuda_visible_devices = True  # as `TorchConfig`

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            end = time.monotonic() + backend_config.start_seconds

            def result_of(calls: Any) -> Any:
                try:
                    return ray.get(calls, timeout=max(end - time.monotonic(), 0.0))
                except ray.exceptions.GetTimeoutError as error:
                    raise StartTooSlow(
                        f"workers made no process group within {backend_config.start_seconds:g} s"
                    ) from error

            address, port = result_of(worker_group.execute_single_async(0, get_address_and_port))
            place, world = (backend_config.backend, address, port), len(worker_group)
            result_of(
                [
                    worker_group.execute_single_async(
                        rank, _join_process_group, *place, rank, world, backend_config.before_joining
                    )
                    for rank in range(world)
                ]
            )

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            del backend_config
            ends = worker_group.execute_async(_leave_process_group)
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                ray.get(ends, timeout=_LEAVE_SECONDS)

    class LightTorchConfig(BackendConfig):  # type: ignore[misc]
        def __init__(self) -> None:
            self.backend, self.start_seconds, self.before_joining = backend, start_seconds, before_joining

        @property
        def backend_cls(self) -> Any:
            return WorkersAlone

        @property
        def train_func_context(self) -> Any:
            from ray.train.torch.config import TorchConfigContextManager

            return TorchConfigContextManager

    return LightTorchConfig()


_GROUP_SECONDS = 1800
_LEAVE_SECONDS = 30
"""Limits of the operations of a process group, and of its end: those of `TorchConfig`."""


def _join_process_group(
    backend: str, address: str, port: int, rank: int, world: int, before_joining: Callable[[], None]
) -> None:
    """Make this worker a rank of a process group.

    Private: two functions of `ray.train.torch.config`, which `TorchConfig` calls in workers too.
    """
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    before_joining()
    os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, world, "env://", _GROUP_SECONDS)


def _leave_process_group() -> None:
    """End this worker's process group. Private: a function of `ray.train.torch.config`, as above."""
    import torch
    from ray.train.torch.config import _shutdown_torch

    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    _shutdown_torch(destroy_process_group=several)


def set_up_ray_data(*, whole_blocks: bool = False) -> None:
    """Keep the order of rows in this process's Ray Data, without progress bars and without its usage statistics.

    An actor would collect the statistics. Its process takes three seconds of CPU to start.

    DeveloperAPI: `DataContext`. No public call sets these options. Not documented: the environment variable.

    Args:
        whole_blocks: do not split blocks of any size, so that a block stays one batch.
    """
    import ray.data

    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    if whole_blocks:
        context.target_max_block_size = None


def stream_blocks(dataset: Any) -> Iterator[tuple[Any, int]]:
    """Execute a Ray Data set. Yield (reference, rows) of each block as soon as it is ready.

    DeveloperAPI: `Dataset.iter_internal_ref_bundles`. Of the public calls `to_arrow_refs` returns once all blocks
    are made, `iter_batches` moves the rows through this process, and `streaming_split` gives no fixed order.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield block.ref, block.metadata.num_rows


def exploring_pb2() -> type:
    """Return Ray Tune's PB2 with random values in place of exact copies.

    The Gaussian process learns from changes of the score. A member that was measured once has none, and its copy
    would train with the same values again.

    Private: `PB2._get_new_config` and `_hyperparam_bounds`. The public `custom_explore_fn` gets the new values
    without those of the member they were copied from.
    """
    from ray.tune.schedulers.pb2 import PB2

    class ExploringPB2(PB2):  # type: ignore[misc]
        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the Gaussian process warns about few points
                config, operations = super()._get_new_config(trial, trial_to_clone)
            if all(config[key] == trial_to_clone.config[key] for key in self._hyperparam_bounds):
                config |= {key: random.uniform(*bounds) for key, bounds in self._hyperparam_bounds.items()}
            return config, operations

    return ExploringPB2


def never_pausing(scheduler: type) -> type:
    """Return a scheduler of populations that does not pause members for one another.

    While an exploited member starts anew, Tune's schedulers pause every other one that reports. That is right where
    members take turns. Where all run at once, it restarts the best ones for nothing.

    DeveloperAPI: `TrialScheduler.on_trial_result` and its decisions. No public option turns the pauses off.
    """

    class NeverPausing(scheduler):  # type: ignore[misc]
        def on_trial_result(self, *arguments: Any, **named: Any) -> str:
            decision: str = super().on_trial_result(*arguments, **named)
            return self.CONTINUE if decision == self.PAUSE else decision

    return NeverPausing
