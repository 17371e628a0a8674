"""Find a Ray head: its address, its token, and whether it runs on this machine."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ...config.errors import UserError
from ...loopback import bypass_proxy
from ...storage.home import expanded, ray_token_file

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CLUSTER_HOME = "/mnt/causalfusion"
"""Path at which a cluster's nodes are expected to mount the folder that outlives jobs."""

_PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Head:
    """A Ray head that has answered, and how to speak to it."""

    address: str
    """URL of its dashboard."""
    token: str | None = field(repr=False)
    """Bearer token that it accepts, or None if it asks for none."""
    on_this_host: bool
    """True if the head runs on the submitting machine, and not behind a forwarded port."""


def resolve_address(option: str | None, environ: Mapping[str, str]) -> str:
    """Return the URL of the dashboard.

    The option, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else DEFAULT_ADDRESS.

    Raises:
        UserError: the first of these that is set is not an http(s) URL.
    """
    sources = {
        "--address": option,
        "RAY_API_SERVER_ADDRESS": environ.get("RAY_API_SERVER_ADDRESS"),
        "RAY_ADDRESS": environ.get("RAY_ADDRESS"),
    }
    source, address = next(((s, a) for s, a in sources.items() if a), ("default", DEFAULT_ADDRESS))
    if source == "RAY_ADDRESS" and address in ("auto", "local"):
        return DEFAULT_ADDRESS
    try:
        url = urlsplit(address)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port is not a number, or is out of range
        valid = False
    if not valid:
        raise UserError(
            f"{source} is {address!r}, which is not the URL of a Ray dashboard such as {DEFAULT_ADDRESS}\n"
            "  give it: --address http://HOST:8265"
        )
    return address.rstrip("/")


def find_head(address: str, environ: Mapping[str, str]) -> Head:
    """Ask the dashboard at `address` for its version and whether it takes our token.

    It answers or fails in seconds.

    Raises:
        UserError: nothing answers, a server other than Ray answers, or Ray refuses the token.
    """
    bypass_proxy()
    status, body = ask(address, "/api/authentication_mode", None)
    needs_token = status == 200 and as_object(body).get("authentication_mode", "disabled") != "disabled"
    token, source = _token(address, environ) if needs_token else (None, "")
    status, body = ask(address, "/api/version", token)
    if token and status in (401, 403):
        raise UserError(
            f"the Ray head at {address} refuses the token from {source} (HTTP {status})\n"
            "  put the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH"
        )
    if status != 200 or "ray_version" not in as_object(body):
        raise UserError(
            f"what answers at {address} is not a Ray dashboard (HTTP {status} for /api/version)\n"
            "  give the URL of its dashboard: --address http://HOST:8265"
        )
    return Head(address, token, on_this_host=_is_loopback(address) and _names_this_host(address, token))


def ask(
    address: str, path: str, token: str | None, *, method: str = "GET", seconds: float | None = None
) -> tuple[int, bytes]:
    """Send a request to the dashboard at `address`. Return the HTTP status and the body of the answer.

    Args:
        address: URL of the dashboard.
        path: path and query, such as `/api/version`.
        token: bearer token, or None.
        method: HTTP method.
        seconds: longest wait. None: that for a probe.

    Raises:
        UserError: nothing answers.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = Request(address + path, headers=headers, method=method)
    try:
        with urlopen(request, timeout=_PROBE_TIMEOUT_S if seconds is None else seconds) as response:
            return int(response.status), bytes(response.read())
    except HTTPError as error:
        return error.code, error.read()
    except (OSError, HTTPException) as error:
        raise UserError(
            f"no Ray head answers at {address} ({getattr(error, 'reason', error)})\n"
            "  start one here: ray get-auth-token --generate > /dev/null\n"
            "                  RAY_AUTH_MODE=token ray start --head\n"
            "  or name another: --address http://HOST:8265"
        ) from error


def as_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer, or an empty one."""
    try:
        tree = json.loads(body)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _token(address: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the token and where it comes from, looking where Ray looks and in the same order."""
    file = expanded(environ.get("RAY_AUTH_TOKEN_PATH") or ray_token_file())
    token, source = environ.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token and file.is_file():
        try:
            token, source = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the Ray token in {file} cannot be read: {error}") from error
    if not token:
        raise UserError(
            f"the Ray head at {address} asks for a token, and there is none in RAY_AUTH_TOKEN or {file}\n"
            "  put the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH"
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"the Ray token from {source} holds spaces or other characters no token has")
    return token, source


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_this_host(address: str, token: str | None) -> bool:
    """Return True if the cluster counts this machine among its nodes, or does not say."""
    _, body = ask(address, "/nodes?view=hostNameList", token)
    data = as_object(body).get("data")
    names = data.get("hostNameList") if isinstance(data, dict) else None
    return not names or socket.gethostname() in names
