"""The cluster that RAY_ADDRESS names. Ray itself waits for minutes for one that is gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from ...config.errors import NotNow, UserError
from ...ray_private import found_address

_PROBE_SECONDS = 5.0
"""Longest wait for a connection. A head that is busy or has just been started again may miss the first try."""
_PAUSE_SECONDS = 0.5
_ADVICE = "unset RAY_ADDRESS to use a local Ray, or start a head: ray start --head"


def cluster_address(environ: Mapping[str, str], seconds: float = _PROBE_SECONDS) -> str | None:
    """Return the address of the cluster to join, at which something listens. None: a local Ray is to be started.

    RAY_ADDRESS may also be empty, `local`, or the http(s) URL at which `submit` sends jobs. None of these is a
    cluster to join.

    Args:
        environ: environment with RAY_ADDRESS.
        seconds: longest wait for a connection.

    Raises:
        UserError: the address is not one, or nothing listens there.
    """
    given = environ.get("RAY_ADDRESS", "").strip()
    if given in ("", "local") or given.startswith(("http://", "https://")):
        return None
    address = found_address() if given == "auto" else given
    if address is None:
        raise NotNow(f"RAY_ADDRESS=auto, but no Ray runs on this machine\n  {_ADVICE}")
    host, port = _host_and_port(address)
    fault = _fault_of_connecting(host, port, seconds)
    if fault is not None:
        raise NotNow(f"no Ray cluster answers at RAY_ADDRESS={given} ({host}:{port}): {fault}\n  {_ADVICE}")
    return given


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        url = urlsplit(address if "://" in address else f"ray://{address}")
        if url.scheme == "ray" and url.hostname and url.port and not url.path and not url.query:
            return url.hostname, url.port
    except ValueError:  # the port is not a number, or is out of range
        pass
    raise UserError(
        f"RAY_ADDRESS is {address!r:.200}, which is not HOST:PORT of a Ray head, such as 10.0.0.1:6379\n"
        f"  also allowed: auto, local, and nothing. {_ADVICE}"
    )


def _fault_of_connecting(host: str, port: int, seconds: float) -> str | None:
    """Return the reason for which no connection comes about, or None if one does."""
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, port), max(end - time.monotonic(), 0.1)):
                return None
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of the host name is too long
            if isinstance(error, socket.gaierror | UnicodeError) or time.monotonic() + _PAUSE_SECONDS >= end:
                return str(getattr(error, "strerror", None) or error)
        time.sleep(_PAUSE_SECONDS)
