"""The lock of a run on object storage: one launch at a time, and what becomes of one that was lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from tests.object_store import SERVER_ERROR, FaultyServer

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.runs.lock import UnderWay
from causalfusion_platform.launch.runs.object_lock import ObjectLock
from causalfusion_platform.storage.fence import Superseded
from causalfusion_platform.storage.object_fence import LOCK_OBJECT, Holder, ObjectFence
from causalfusion_platform.storage.objects import ObjectStore, open_store

MakeLock = Callable[..., ObjectLock]


@pytest.fixture
def store(s3_bucket: str) -> ObjectStore:
    """The objects of a run."""
    return open_store(f"{s3_bucket}/runs/one")


def lock(store: ObjectStore, expiry: float = 30.0) -> ObjectLock:
    return ObjectLock(store, beat_seconds=0.1, expiry_seconds=expiry)


def elsewhere(**changes: object) -> Holder:
    """Return a holder on another machine, which nobody here can ask."""
    return Holder.new().model_copy(update={"machine": "another", "host": "far", **changes})


def put(store: ObjectStore, holder: Holder) -> None:
    store.write(LOCK_OBJECT, holder.model_dump_json().encode())


def test_a_second_launch_is_refused_while_the_first_one_lives(store: ObjectStore) -> None:
    first, second = lock(store), lock(store)
    with first.held():
        assert second.holder() is not None
        for refused in (second.refuse_if_alive, lambda: second.held().__enter__()):
            with pytest.raises(UnderWay, match=r"run 'one' is under way: process \d+ on .*, since "):
                refused()
        first.check()
    assert second.holder() is None
    with second.held():
        second.check()


def test_a_waiting_launch_gets_the_lock_once_it_is_free(store: ObjectStore) -> None:
    first, second = lock(store), lock(store)
    with ExitStack() as stack:
        with first.held(), pytest.raises(UnderWay):
            second.held(0.3).__enter__()
        stack.enter_context(second.held(60))
        second.check()


def test_a_launch_that_gives_no_sign_of_life_is_taken_over(store: ObjectStore) -> None:
    put(store, elsewhere())
    started = time.monotonic()
    with lock(store, expiry=0.5).held():
        assert time.monotonic() - started > 0.5  # by its own clock, whatever the lost one's was


def test_a_dead_process_of_this_machine_is_not_waited_for(store: ObjectStore) -> None:
    put(store, Holder.new().model_copy(update={"started": 0.0}))  # another process had its number
    with lock(store, expiry=3600).held():
        pass


def test_a_damaged_lock_expires_like_any_other(store: ObjectStore) -> None:
    store.write(LOCK_OBJECT, b"{")
    with lock(store, expiry=0.3).held():
        pass


def test_a_launch_that_was_taken_over_may_publish_nothing(store: ObjectStore) -> None:
    """The old one was cut off for longer than its lock is good for; then it comes back."""
    old, new = lock(store), lock(store, expiry=0.3)
    with old.held():
        old.begin(1, "one")
        worker = ObjectFence(store, "one")
        worker.check()
        put(store, elsewhere(id="two", launch=2))
        with pytest.raises(Superseded, match=r"another launch has taken .*/runs/one over: process .* on far"):
            worker.check()
        until = time.monotonic() + 60
        with pytest.raises(Superseded):
            while time.monotonic() < until:
                old.check()
                time.sleep(0.05)
        with pytest.raises(Superseded):
            old.known.check()
    holder = Holder.model_validate_json(store.read(LOCK_OBJECT))
    assert (holder.id, holder.released) == ("two", False)  # its end did not free the other's lock
    with new.held():
        pass


def test_a_worker_of_a_launch_that_has_ended_publishes_nothing(store: ObjectStore) -> None:
    first = lock(store)
    with first.held():
        first.begin(1, "one")
    with pytest.raises(OSError, match="has ended"):
        ObjectFence(store, "one").check()


def test_a_store_that_ignores_conditions_is_refused(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "write_if", lambda self, key, data, etag: self.write(key, data))
    with pytest.raises(UserError, match="ignores the condition of a put"):
        lock(store).held().__enter__()


def test_lost_answers_and_errors_do_not_lose_the_lock(store: ObjectStore, s3_server: FaultyServer) -> None:
    first = lock(store)
    with first.held():
        s3_server.fail("PUT", 1, SERVER_ERROR, lose_answer=True)  # the put is repeated, and meets its own object
        s3_server.fail("PUT", 1, SERVER_ERROR)
        until = time.monotonic() + 60
        while s3_server.faults_left and time.monotonic() < until:
            time.sleep(0.05)
        first.begin(1, "one")
        ObjectFence(store, "one").check()
        first.check()


def test_a_holder_that_cannot_write_does_not_count_on_its_lock(store: ObjectStore) -> None:
    first = ObjectLock(store, beat_seconds=60, expiry_seconds=0.2)
    with first.held():
        first.check()
        time.sleep(0.3)
        with pytest.raises(OSError, match="could not be written for"):
            first.check()
        first.known.check()
