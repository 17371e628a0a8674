"""What ended an attempt, from the errors that Ray hands to its driver: its own classes, made here by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayTaskError
from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.preemption import PreemptionInfo

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.failures import Hang, Lost, cause_of, user_error_in
from causalfusion_platform.ray_private import StartTooSlow

PEER = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:4711")
DEAD = ActorDiedError()
LOST_WORKER = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: …", failure=DEAD)


def group(*failures: Exception) -> WorkerGroupError:
    """What Ray Train raises when workers fail: a message with every traceback, and the errors by rank."""
    message = "\n".join(f"[Rank {rank} Error Snippet]:\n{error}" for rank, error in enumerate(failures))
    return WorkerGroupError(message, dict(enumerate(failures)))


def task_error(cause: Exception) -> Exception:
    """What `ray.get` raises for an error of a task: both a RayTaskError and of the error's own class."""
    wrapped = RayTaskError(
        "read", f"Traceback:\n{type(cause).__name__}: {cause}", cause, "ray::read", 1, "127.0.0.1"
    )
    both: Exception = wrapped.as_instanceof_cause()
    return both


def raised_from(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def preemption() -> PreemptionError:
    return PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1]}))


CASES = {
    "a worker was killed": (group(LOST_WORKER), "worker", "ActorDiedError: The actor died unexpectedly"),
    "and its peer noticed first": (group(PEER, LOST_WORKER), "worker", "ActorDiedError: The actor died"),
    "only the peer's word": (group(PEER), "worker", "RuntimeError: [pair.cc:534] Connection closed by peer"),
    "a store that is gone": (group(RuntimeError("TCPStore: timed out")), "worker", "RuntimeError: TCPStore"),
    "NCCL": (group(RuntimeError("NCCL error: remote process exited")), "worker", "RuntimeError: NCCL"),
    "cannot be reached": (group(ActorUnavailableError("gone", b"0" * 16)), "worker", "ActorUnavailableError: "),
    "its node died": (group(PEER, NodeDiedError("node 7 is gone")), "node", "NodeDiedError: node 7"),
    "by the message": (
        group(LOST_WORKER, RuntimeError("The actor died because its node has died.")),
        "node",
        "RuntimeError: The actor died because its node has died.",
    ),
    "the node's memory": (group(PEER, OutOfMemoryError("killed")), "memory", "OutOfMemoryError: killed"),
    "a GPU's memory": (
        group(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), PEER),
        "memory",
        "RuntimeError: CUDA out of memory.",
    ),
    "memory before all else": (
        group(LOST_WORKER, NodeDiedError("gone"), OutOfMemoryError("killed")),
        "memory",
        "OutOfMemoryError: killed",
    ),
    "the node was taken back": (preemption(), "preempted", "PreemptionError: Training was interrupted by node"),
    "no room in time": (
        ControllerError(WorkerGroupStartupTimeoutError(2)),
        "start",
        "WorkerGroupStartupTimeoutError: The worker group startup timed out after",
    ),
    "no process group in time": (
        ControllerError(StartTooSlow("workers made no process group within 9 s")),
        "start",
        "StartTooSlow: workers made no process group within 9 s",
    ),
    "the controller died": (DEAD, "controller", "ActorDiedError: The actor died unexpectedly"),
    "the controller failed": (
        ControllerError(ValueError("no such file")),
        "controller",
        "ValueError: no such file",
    ),
    "the code": (group(ValueError("a bug")), "error", "ValueError: a bug"),
    "the code, and its peer noticed": (group(PEER, ValueError("a bug")), "error", "ValueError: a bug"),
    "the code, told first": (group(ValueError("a bug"), PEER), "error", "ValueError: a bug"),
    "not a store": (group(RuntimeError("cannot restore the state")), "error", "RuntimeError: cannot restore"),
    "in a task of a worker": (group(task_error(KeyError("row"))), "error", "KeyError: 'row'"),
    "without Ray": (ValueError("\n\n  a bug\nand more"), "error", "ValueError: a bug"),
    "without a message": (ValueError(), "error", "ValueError: no message"),
}


@pytest.mark.parametrize(("error", "cause", "detail"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("travelled", [False, True])
def test_what_ended_an_attempt(error: Exception, cause: str, detail: str, lost: bool, travelled: bool) -> None:
    """The same inside what the attempt raises, and after a journey between processes."""
    error = cloudpickle.loads(cloudpickle.dumps(error)) if travelled else error
    found, said = cause_of(Lost(error, None, 64) if lost else error)
    assert found == cause
    assert said.startswith(detail)
    assert "\n" not in said


def test_what_an_error_was_raised_from_says_more() -> None:
    error = raised_from(RuntimeError("cannot read"), task_error(ValueError("a bad row")))
    assert cause_of(group(error)) == ("error", "ValueError: a bad row")


def test_a_hang_says_more_than_the_errors_of_what_was_ended(tmp_path: Path) -> None:
    hang = Hang("no progress for 600 s; rank 1", tmp_path)
    for error in (None, group(LOST_WORKER), OutOfMemoryError("killed")):
        assert cause_of(Lost(error, hang, 0)) == ("hang", "no progress for 600 s; rank 1")


def test_workers_that_end_without_a_word() -> None:
    assert cause_of(Lost(None, None, 0)) == ("worker", "the workers ended without a word")


# Faults that the user can mend

FAULT = UserError("no such shard\n  look there")
WRAPPED = {
    "plain": FAULT,
    "of a worker": group(PEER, FAULT),
    "with its traceback": group(UserExceptionWithTraceback(FAULT, "Traceback …")),
    "of a task": task_error(FAULT),
    "of a task of a task of a worker": group(task_error(task_error(FAULT))),
    "the reason for another": raised_from(RuntimeError("cannot read"), FAULT),
    "of the controller": ControllerError(FAULT),
    "with Ray Data's advice": task_error(UserError(f"{FAULT}\nFailed to apply UDF transform to data\nmore")),
}


@pytest.mark.parametrize("error", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_fault_to_mend_is_found(error: Exception) -> None:
    found = user_error_in(error)
    assert type(found) is UserError
    assert str(found) == str(FAULT)


@pytest.mark.parametrize("error", [case[0] for case in CASES.values()], ids=CASES.keys())
def test_other_faults_are_not_the_users(error: Exception) -> None:
    assert user_error_in(error) is None


def test_errors_that_name_each_other_are_gone_through_once() -> None:
    one, other = ValueError("one"), RuntimeError("other")
    one.__context__, other.__context__ = other, one
    assert user_error_in(one) is None
    assert cause_of(one) == ("error", "ValueError: one")
