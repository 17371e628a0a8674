"""Calls of MLflow for each record of a run, and the meaning of failures.

A record may be sent twice, because a process can be killed before it moves the cursor. A second delivery changes
nothing:

- MLflow keeps one of two points with the same key, step, time and value.
- MLflow keeps one of two data sets with the same name and digest.
- Files have unique names.
- A run is searched by its key before it is created.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..storage.held import held_folder
from .mlflow import client, open_experiment, parentage
from .pending import Item
from .records import Create, Ending, Input, Metrics, Parameters, RunFiles, Tags
from .views import keep_view

RUN_KEY = "spool.key"  # tag, which runs of all versions have
METRICS_PER_CALL = 1000  # MLflow's limit for one batch
_THUMBNAIL = (256, 256)  # pixels, as MLflow's own

# MLflow has read the record, and will never take it.
_REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "MALFORMED_REQUEST")
# The record is right. A missing run may be on another server that had the same address.
_UNAVAILABLE = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "RESOURCE_CONFLICT",
    "ABORTED",
    "ENDPOINT_NOT_FOUND",
    "NOT_FOUND",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
)
_UNAVAILABLE_STATUS = (401, 403, 404, 407, 408, 409, 429)  # of an upload, as are all from 500
# Errors of the driver's own disk, which may pass.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)


class Unavailable(Exception):
    """Delivery is not possible now. The message gives the reason that users see."""


class MlflowRun:
    """Run at MLflow that gets the records.

    Args:
        uri: tracking URI, of a server or SQLite.
        run_id: the run. None: a `create` record makes it.
        on_run_id: called with the new run's id, before `send` returns.
    """

    def __init__(self, uri: str, run_id: str | None, on_run_id: Callable[[str], None]) -> None:
        self.uri, self.run_id, self._on_run_id = uri, run_id, on_run_id
        self._client: Any = None

    def check(self) -> None:
        """Check that the run still takes records, so that a refusal concerns the record alone."""
        try:
            stage = self._api().get_run(self.run_id).info.lifecycle_stage
        except Exception as error:
            raise Unavailable(classify(error)[1]) from error
        if stage != "active":
            raise Unavailable(f"MLflow's run {self.run_id} is {stage}; restore it in the dashboard")

    def _api(self) -> Any:
        if self._client is None:
            try:
                self._client = client(self.uri)
            except Exception as error:  # a database that is locked or of another version
                raise Unavailable(f"MLflow's store cannot be opened ({one_line(error)})") from error
        return self._client

    def send(self, batch: list[Item], points_per_call: int) -> None:
        """Send one record, or several of metrics."""
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        api = self._api()
        first = batch[0]
        record = first.record
        if isinstance(record, Create):
            if self.run_id is None:
                self._create(api, record, first.moment)
            self._keep_one(api)
            return
        if self.run_id is None:
            raise Unavailable("the run is not made yet")
        match record:
            case Metrics():
                points = [
                    Metric(key, value, item.moment, item.record.step)
                    for item in batch
                    if isinstance(item.record, Metrics)
                    for key, value in item.record.values.items()
                ]
                for start in range(0, len(points), points_per_call):
                    api.log_batch(self.run_id, metrics=points[start : start + points_per_call])
            case Parameters():
                api.log_batch(self.run_id, params=[Param(key, value) for key, value in record.values.items()])
            case Tags():
                api.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in record.values.items()])
            case RunFiles():
                self._upload(api, record, first.files)
            case Input():
                api.log_inputs(self.run_id, datasets=[_data_set(record)])
            case Ending(status="RUNNING"):
                api.update_run(self.run_id, status="RUNNING")
            case Ending():
                api.set_terminated(self.run_id, record.status, end_time=first.moment)
                self._keep_one(api)
                with suppress(MlflowException):  # tags of an experiment of others may not be ours to set
                    keep_view(api, api.get_run(self.run_id).info.experiment_id)

    def _create(self, api: Any, record: Create, moment: int) -> None:
        experiment = open_experiment(api, self.uri, record.experiment, record.artifacts)
        found = [run.info.run_id for run in _runs_of(api, experiment, record.key)]
        if not found:
            tags = {RUN_KEY: record.key, **parentage(record.parent)}
            run = api.create_run(experiment, start_time=moment, run_name=record.name, tags=tags)
            found = [run.info.run_id]
        self._on_run_id(found[0])
        self.run_id = found[0]

    def _keep_one(self, api: Any) -> None:
        """Delete empty duplicates of the run. A slow server creates one for each repeated call."""
        run = api.get_run(self.run_id)
        key = run.data.tags.get(RUN_KEY)
        for twin in _runs_of(api, run.info.experiment_id, key) if key else []:
            if twin.info.run_id != self.run_id and not twin.data.metrics and not twin.data.params:
                api.delete_run(twin.info.run_id)

    def _upload(self, api: Any, record: RunFiles, folder: Path | None) -> None:
        if folder is None or not folder.is_dir():
            return
        # Not beside the images: the run's folder is not this thread's any more, once its launch has ended.
        with held_folder() as thumbnails:
            if record.kind == "image":
                from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

                for file in folder.glob("*.png"):
                    _thumbnail(file, thumbnails)
                api.set_tag(self.run_id, MLFLOW_LOGGED_IMAGES, True)
            for file in sorted([*folder.iterdir(), *thumbnails.glob("*.webp")]):
                api.log_artifact(self.run_id, str(file), record.folder)


def _runs_of(api: Any, experiment: str, key: str) -> list[Any]:
    return list(api.search_runs([experiment], filter_string=f"tags.`{RUN_KEY}` = '{key}'"))


def _data_set(record: Input) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    # Columns, since the dashboard does not show a tensor schema.
    schema = [{"name": name, "type": kind} for name, kind in record.columns.items()]
    data = Dataset(
        name=record.name,
        digest=record.digest,
        source_type="local",
        source=json.dumps({"uri": record.source}),
        schema=json.dumps({"mlflow_colspec": schema}),
        profile=json.dumps(record.profile),
    )
    return DatasetInput(data, tags=[InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def _thumbnail(file: Path, folder: Path) -> None:
    """Write the thumbnail of an image, which MLflow's image grid shows."""
    with Image.open(file) as image:
        image.thumbnail(_THUMBNAIL)
        image.save(folder / f"{file.stem}+compressed.webp")


def classify(error: Exception) -> tuple[Literal["unavailable", "refused", "unknown"], str]:
    """Return the kind of a failed delivery, and the text to show.

    `unavailable`: the record is right. `refused`: MLflow will never take it.
    """
    import requests

    if isinstance(error, Unavailable):
        return "unavailable", str(error)
    code = getattr(error, "error_code", None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if code == "RESOURCE_DOES_NOT_EXIST":
        return "unavailable", f"MLflow has no such run ({one_line(error)})"
    if code in _UNAVAILABLE or status in _UNAVAILABLE_STATUS or (status or 0) >= 500:
        return "unavailable", f"MLflow does not answer ({one_line(error)})"
    if isinstance(error, (ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout)):
        return "unavailable", f"MLflow does not answer ({one_line(error)})"
    if getattr(error, "errno", None) in _STORAGE:
        return "unavailable", f"the driver cannot read or write ({one_line(error)})"
    if code in _REFUSED or status or isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
        return "refused", one_line(error)
    return "unknown", one_line(error)


def one_line(error: Exception) -> str:
    """Return the first line of an error, shortened, or its type where the message is empty."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
