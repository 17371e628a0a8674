"""MLflow's client with short timeouts, the address of its store, and its experiments."""

from __future__ import annotations

import os
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ..config.errors import NotNow, UserError
from ..config.secrets import remember_address
from ..library_warnings import leave_out
from ..loopback import bypass_proxy
from ..storage.sqlite import is_sqlite, sqlite_file
from .local_store import renew_addresses

# With MLflow's defaults one call waits for 247 s when the server is down.
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # printed at the end of each run, into the progress display
}
ANSWER_SECONDS = 5.0
"""Longest wait for a server's answer."""
_PARAMETERS_PER_CALL = 100  # MLflow's limits
_LONGEST_PARAMETER = 6000  # characters
_ADVICE = "tracking.uri takes http(s)://HOST:PORT of an MLflow server, or sqlite:///FILE"


def client(uri: str) -> Any:
    """Return an MLflow client that gives up in seconds, not minutes.

    Raises:
        OSError: a file-based store cannot be read.
    """
    bypass_proxy()
    for name, value in _IMPATIENT.items():
        os.environ.setdefault(name, value)
    leave_out()
    from mlflow import MlflowClient

    if is_sqlite(uri) and (database := sqlite_file(uri)).is_file():
        renew_addresses(database)
    return MlflowClient(tracking_uri=uri)


def check_address(uri: str) -> None:
    """Check the form of a tracking store's address. Create the folder of a file-based store.

    Raises:
        UserError: it is not an address, its scheme is not supported, or its folder cannot be created.
    """
    remember_address(uri)
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"tracking.uri {uri} is not an address: {error}\n  {_ADVICE}") from error
    if parts.scheme == "sqlite":
        folder = sqlite_file(uri).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotNow(f"the folder of tracking.uri {uri} cannot be made: {error}\n  {_ADVICE}") from error
    elif parts.scheme not in ("http", "https"):
        raise UserError(f"tracking.uri {uri!r} is not supported\n  {_ADVICE}")
    elif not parts.hostname:
        raise UserError(f"tracking.uri {uri} names no host\n  {_ADVICE}")


def answers(uri: str) -> str | None:
    """Return the reason for which the tracking server does not answer, or None. A file-based store always answers.

    Takes `ANSWER_SECONDS` at most, as long as names resolve.
    """
    if is_sqlite(uri):
        return None
    bypass_proxy()
    try:
        with urllib.request.urlopen(_health(uri), timeout=ANSWER_SECONDS) as answer:
            answer.read()
    except (OSError, ValueError, HTTPException) as error:
        return str(getattr(error, "reason", error))
    return None


def has_run(uri: str, run_id: str) -> bool:
    """Say whether a file-based store has a run."""
    from mlflow.exceptions import MlflowException

    if not sqlite_file(uri).is_file():
        return False
    try:
        client(uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _health(uri: str) -> urllib.request.Request:
    """Return the request for a server's health. urllib takes no user and password from an address."""
    parts = urlsplit(uri)
    user, _, host = parts.netloc.rpartition("@")
    headers = {"Authorization": f"Basic {b64encode(unquote(user).encode()).decode()}"} if user else {}
    path = f"{parts.path.rstrip('/')}/health"
    return urllib.request.Request(urlunsplit((parts.scheme, host, path, parts.query, "")), headers=headers)


def check_reachable(uri: str) -> None:
    """Check the form of a tracking store's address, and that its server answers now.

    Raises:
        UserError: the address is wrong, or the server does not answer.
    """
    check_address(uri)
    reason = answers(uri)
    if reason is not None:
        raise NotNow(
            f"no MLflow server answers at tracking.uri {uri}: {reason}\n  {_ADVICE}\n"
            f"  start one: mlflow server --host 127.0.0.1 --port {urlsplit(uri).port or 5000}"
        )


def open_experiment(api: Any, uri: str, name: str, artifacts: Path) -> str:
    """Return the id of an MLflow experiment, which is created if need be.

    Args:
        api: client of the store.
        uri: tracking URI.
        name: the experiment's name.
        artifacts: folder of artifacts for a store without a server (SQLite).
    """
    from mlflow.exceptions import MlflowException

    found = api.get_experiment_by_name(name)
    if found is None:
        location = artifacts.absolute().as_uri() if is_sqlite(uri) else None
        try:
            return str(api.create_experiment(name, artifact_location=location))
        except MlflowException:  # another run created it at the same moment
            found = api.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def parentage(parent: str | None) -> dict[str, str]:
    """Return the tags of a run that is a child of `parent`."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    return {MLFLOW_PARENT_RUN_ID: parent} if parent else {}


def batches(parameters: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Yield the parameters as text, as long and as many at a time as MLflow takes."""
    items = [(key, str(value)[:_LONGEST_PARAMETER]) for key, value in parameters.items()]
    for start in range(0, len(items), _PARAMETERS_PER_CALL):
        yield dict(items[start : start + _PARAMETERS_PER_CALL])
