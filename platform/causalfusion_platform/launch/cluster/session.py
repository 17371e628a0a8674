"""A Ray to run on: the cluster that this process belongs to, or a local one that is started and ended here."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...config.errors import MachineError, NotNow
from ...loopback import bypass_proxy
from ...ray_private import impatient, local_options, on_loopback
from ...storage.home import ray_token_file
from .address import cluster_address
from .failures import first_line
from .leftovers import ray_folder
from .processes import end_processes

logger = logging.getLogger(__name__)

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
_TRIES = 3
"""Times to start a local Ray. Ray itself gives up after about half a minute."""


def free_port() -> int:
    """Return a TCP port that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on this port of localhost."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError):  # in use, or not a port number
            return False
        return True


@contextlib.contextmanager
def ray_session(*, object_store_bytes: int | None = None) -> Iterator[None]:
    """Connect to the cluster named by RAY_ADDRESS (Ray sets it in a submitted job), or start a local Ray.

    A local Ray is ended on the way out. A cluster, or a Ray that was already initialised here, is left as it is.

    Args:
        object_store_bytes: size of a local Ray's object store. Default: Ray's own choice.

    Raises:
        UserError: no cluster answers at RAY_ADDRESS.
        MachineError: a local Ray does not start, tried several times.
    """
    import ray

    bypass_proxy()  # before a local Ray starts, whose processes inherit the environment
    if ray.is_initialized():
        yield
        return
    address = cluster_address(os.environ)
    with contextlib.ExitStack() as stack:
        if address is not None:
            _join(address)
        else:
            stack.enter_context(_local_ray(object_store_bytes))
        stack.callback(ray.shutdown)
        yield


def _join(address: str) -> None:
    import ray

    logger.info(f"connecting to Ray at {address}")
    try:
        with impatient(), on_loopback():  # else Ray takes a network's address for 127.0.0.1
            ray.init(address=address, **_QUIET)
    except Exception as error:
        raise NotNow(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {first_line(error)}\n"
            f"  unset RAY_ADDRESS to use a local Ray, or start a head: ray start --head"
        ) from error


@contextlib.contextmanager
def _local_ray(object_store_bytes: int | None) -> Iterator[None]:
    """Start a local Ray. On a busy machine its processes may wait too long for each other: then start another."""
    logger.info("starting Ray on this machine")
    for number in range(1, _TRIES + 1):
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(ray_folder())  # of mode 0700. Ray opens the folder inside it for everybody
            # The dashboard's address must be known before Ray starts: with another Ray on this machine, the cleaner
            # of placement groups would otherwise ask that one, and remove the groups of a live run.
            port = free_port()
            stack.enter_context(dashboard_address(f"http://127.0.0.1:{port}"))
            try:
                _start(folder, port, object_store_bytes)
            except Exception as error:
                end_processes(folder)
                reason = first_line(error)
                if number == _TRIES:
                    raise MachineError(
                        f"Ray did not start on this machine, tried {_TRIES} times: {reason}\n"
                        f"  the machine may be busy: give the same command again, or look at it with "
                        f"causalfusion doctor; without Ray: train --local with train.num_workers=1"
                    ) from error
                logger.warning(f"Ray did not start ({reason}); starting it again")
                continue
            yield
            return


def _start(folder: Path, port: int, object_store_bytes: int | None) -> None:
    import ray

    _protect_token()
    try:
        with on_loopback():
            ray.init(object_store_memory=object_store_bytes, **local_options(folder, port), **_QUIET)
    except BaseException:
        ray.shutdown()
        raise
    finally:
        _protect_token()


@contextlib.contextmanager
def dashboard_address(address: str) -> Iterator[None]:
    """Make Ray ask the dashboard at `address`. This variable of the environment wins over its arguments."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _protect_token() -> None:
    # Ray writes its token readable for everyone; it opens the whole cluster to whoever has it.
    with contextlib.suppress(OSError):
        ray_token_file().chmod(0o600)
