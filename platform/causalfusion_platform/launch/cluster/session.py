"""A Ray to run on: the cluster that this process belongs to, or a local one that is started and ended here."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

from ...config.errors import UserError
from ...loopback import bypass_proxy
from ...ray_private import local_options
from ...storage.home import ray_token_file
from .leftovers import ray_folder

logger = logging.getLogger(__name__)


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
    """
    import ray

    bypass_proxy()  # before a local Ray starts, whose processes inherit the environment
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local" and not address.startswith("http"):  # http: where `submit` sends jobs, not a cluster
        logger.info(f"connecting to Ray at {address}")
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: {error}\n"
                f"  unset RAY_ADDRESS to use a local Ray, or start a head: ray start --head"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    # The dashboard's address must be known before Ray starts: with another Ray on this machine, the cleaner of
    # placement groups would otherwise ask that one, and remove the groups of a live run.
    logger.info("starting Ray on this machine")
    port = free_port()
    _protect_token()
    with (
        dashboard_address(f"http://127.0.0.1:{port}"),
        ray_folder() as folder,
    ):
        ray.init(object_store_memory=object_store_bytes, **local_options(folder, port), **quiet)
        _protect_token()
        try:
            yield
        finally:
            ray.shutdown()


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
