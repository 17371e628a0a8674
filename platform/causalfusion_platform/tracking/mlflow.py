"""MLflow: runs are opened by id, so that a restarted process continues the same run."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ..config.errors import UserError

# MLflow's own defaults keep one call waiting for 247 s when the server is down.
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
_PARAMETERS_PER_CALL = 100  # MLflow's limit for one batch


def client(uri: str) -> Any:
    """Return an MLflow client that gives up in seconds, not minutes."""
    for name, value in _IMPATIENT.items():
        os.environ.setdefault(name, value)
    # MLflow announces each database migration; the user asked for a training run.
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def check_reachable(uri: str) -> None:
    """Check that the tracking store answers; for a file-based one, that its folder can be made.

    Raises:
        UserError: it does not, or the scheme is not one that is supported.
    """
    advice = "tracking.uri takes http(s)://HOST:PORT of an MLflow server, or sqlite:///FILE"
    try:
        parts = urlsplit(uri)
        port = parts.port or 5000
    except ValueError as error:
        raise UserError(f"tracking.uri {uri} is not an address: {error}\n  {advice}") from error
    if parts.scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder of tracking.uri {uri} cannot be made: {error}\n  {advice}") from error
        return
    if parts.scheme not in ("http", "https"):
        raise UserError(f"tracking.uri {uri!r} is not supported\n  {advice}")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5) as answer:
            answer.read()
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"no MLflow server answers at tracking.uri {uri}: {reason}\n  {advice}\n"
            f"  start one: mlflow server --host 127.0.0.1 --port {port}"
        ) from error


def start_run(
    uri: str,
    experiment: str,
    name: str,
    *,
    artifacts: Path,
    parameters: Mapping[str, object],
    tags: Mapping[str, str],
    parent: str | None = None,
) -> str:
    """Create a run and return its id.

    Args:
        uri: tracking URI.
        experiment: MLflow experiment, made if need be.
        name: the run's name.
        artifacts: folder of artifacts for a store that has no server of its own (SQLite).
        parameters: flattened configuration.
        tags: lineage.
        parent: id of the run that this one is a child of.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    api = client(uri)
    found = api.get_experiment_by_name(experiment)
    if found is None:
        location = artifacts.absolute().as_uri() if uri.startswith("sqlite") else None
        try:
            experiment_id = api.create_experiment(experiment, artifact_location=location)
        except MlflowException:  # another run made it at the same moment
            experiment_id = api.get_experiment_by_name(experiment).experiment_id
    else:
        experiment_id = found.experiment_id
    parentage = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    run = api.create_run(experiment_id, run_name=name, tags={**tags, **parentage})
    items = [Param(key, str(value)[:6000]) for key, value in parameters.items()]
    for start in range(0, len(items), _PARAMETERS_PER_CALL):
        api.log_batch(run.info.run_id, params=items[start : start + _PARAMETERS_PER_CALL])
    return str(run.info.run_id)


class MlflowTracker:
    """Record into one existing run."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.api, self.run_id = client(uri), run_id

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record several metrics in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, step) for key, value in values.items()]
        self.api.log_batch(self.run_id, metrics=batch)

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Record an image; the dashboard shows the series of `key` in its image grid."""
        self.api.log_image(self.run_id, image, key=key, step=step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file among the run's artifacts."""
        self.api.log_artifact(self.run_id, str(path), folder)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run with an MLflow status: FINISHED, FAILED or KILLED."""
        self.api.set_terminated(self.run_id, status)

    def reopen(self) -> None:
        """Mark the run as running again."""
        self.api.update_run(self.run_id, status="RUNNING")
