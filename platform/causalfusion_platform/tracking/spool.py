"""Records of a run on disk, for `courier` to deliver: who records never waits for a server.

A record is one small JSON file, `<time in ns>-<random>.<kind>.json`: names sort in the order of recording. Files
that belong to it lie beside it in a folder of its name, written before it and removed before it: a record whose
folder is gone was delivered.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, get_args

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..data.manifest import Manifest
from .mlflow import batches

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class _Record(BaseModel):
    # JSON has no NaN: as strings they come back as they were.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    time: int
    """When it was recorded: milliseconds since 1970."""


class Create(_Record):
    """Open the run."""

    kind: Literal["create"] = "create"
    key: str
    """Names this run before MLflow has given it an id."""
    experiment: str
    name: str
    parent: str | None
    artifacts: Path
    """Folder of artifacts for a store that has no server of its own (SQLite)."""


class Parameters(_Record):
    """Add parameters; no more than MLflow takes at a time."""

    kind: Literal["params"] = "params"
    values: dict[str, str]


class Tags(_Record):
    """Set tags."""

    kind: Literal["tags"] = "tags"
    values: dict[str, str]


class Metrics(_Record):
    """Add one point to each of several metrics."""

    kind: Literal["metrics"] = "metrics"
    values: dict[str, float]
    step: int


class RunFiles(_Record):
    """Add the files beside the record to the run's artifacts."""

    kind: Literal["image", "artifact"]
    folder: str | None


class Input(_Record):
    """Name the data set that the run reads."""

    kind: Literal["input"] = "input"
    name: str = Field(max_length=500)  # MLflow's limit
    digest: str = Field(max_length=36)  # MLflow's limit
    source: str
    """Folder of the shards."""
    columns: dict[str, str]
    """Column → type."""
    profile: dict[str, int | str]
    """What else is worth knowing of it, such as `num_rows`."""


class Ending(_Record):
    """Set the status of the run."""

    kind: Literal["status"] = "status"
    status: Status


Record = Create | Parameters | Tags | Metrics | RunFiles | Input | Ending
RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])

_NAME = re.compile(r"\d{20}-[0-9a-f]{8}\.[a-z]+\.json")
_log = logging.getLogger(__name__)


class Spool:
    """Record into a folder. Several processes and threads may share it; no call touches the network.

    A record that cannot be written (full disk) is dropped, with one warning: training goes on.

    Attributes:
        dropped: records that this object could not write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.dropped = folder, 0
        self._lock = threading.Lock()
        try:
            names = [path.name for path in waiting(folder)]
        except OSError:  # the first record will say so
            names = []
        # A clock that was set back must not sort new records before the old ones.
        self._newest_ns = int(names[-1].partition("-")[0]) if names else 0

    def create(
        self,
        experiment: str,
        name: str,
        *,
        artifacts: Path,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
    ) -> None:
        """Record a new run.

        Args:
            experiment: MLflow experiment, made if need be.
            name: the run's name.
            artifacts: folder of artifacts for a store that has no server of its own (SQLite).
            parameters: flattened configuration.
            tags: lineage.
            parent: id of the run that this one is a child of.
        """
        self._put(
            Create,
            key=uuid.uuid4().hex,
            experiment=experiment,
            name=name,
            parent=parent,
            artifacts=artifacts.absolute(),
        )
        for some in batches(parameters):
            self._put(Parameters, values=some)
        self.tags(tags)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags of the run."""
        if values:
            self._put(Tags, values=dict(values))

    def data(self, manifest: Manifest, folder: Path) -> None:
        """Record the shards in `folder` as what the run reads."""
        location = manifest.source.location
        latent = f"{manifest.dtype} {'×'.join(map(str, manifest.shape))}"
        self._put(
            Input,
            name=_short(location)[:500],
            digest=manifest.digest[:36],
            source=str(folder.absolute()),
            columns={"row_id": "int64", "label": "int64", "key": "string"}
            | dict.fromkeys(manifest.latent_columns, latent)
            | ({"captions": "list of string"} if manifest.captions else {}),
            profile={
                "num_rows": manifest.rows,
                "num_classes": len(manifest.class_names),
                "autoencoder": manifest.autoencoder.name,
                "num_shards": len(manifest.shards),
                "source": f"{manifest.source.kind} {location}",
            },
        )

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record several metrics at once; NaN and infinities are values too."""
        points = {key: float(value) for key, value in values.items()}
        self._put(Metrics, values=points, step=step)

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Record an image as one step of the image series `key`."""
        # The name is what MLflow's image grid reads; once chosen it stays, so that a second upload overwrites.
        series = re.sub(r"[^A-Za-z0-9_\-. ~]", "_", key.replace("/", "~"))

        def fill(folder: Path, now: int) -> None:
            name = f"{series}+step+{step}+timestamp+{now}+{uuid.uuid4()}.png"
            image.save(folder / name, compress_level=1)

        self._put(RunFiles, fill, kind="image", folder="images")

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a copy of the file as it is now."""

        def fill(inside: Path, _: int) -> None:
            shutil.copyfile(path, inside / path.name)

        self._put(RunFiles, fill, kind="artifact", folder=folder)

    def finish(self, status: str = "FINISHED") -> None:
        """Record the end of the run with an MLflow status: FINISHED, FAILED or KILLED."""
        if status not in get_args(Status):
            raise ValueError(f"{status!r} is not one of {', '.join(get_args(Status))}")
        self._put(Ending, status=status)

    def reopen(self) -> None:
        """Record that the run runs again."""
        self._put(Ending, status="RUNNING")

    def _put(
        self,
        make: Callable[..., Record],
        fill: Callable[[Path, int], None] | None = None,
        **fields: object,
    ) -> None:
        with self._lock:
            # Whole milliseconds, each once: MLflow sorts a metric's history by time, then by value, and takes
            # two points of one time, step and value for one.
            now = max(time.time_ns() // 1_000_000, self._newest_ns // 1_000_000 + 1)
            self._newest_ns = now * 1_000_000
            record = make(time=now, **fields)
            path = self.folder / f"{self._newest_ns:020d}-{uuid.uuid4().hex[:8]}.{record.kind}.json"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if fill:
                    files_of(path).mkdir()
                    fill(files_of(path), now)
                # Whole or not there, but for a power cut: waiting for the disk, busy with a checkpoint, is waiting.
                _unfinished(path).write_text(record.model_dump_json())
                _unfinished(path).replace(path)
            except OSError as error:
                self._drop(path, error)

    def _drop(self, path: Path, error: OSError) -> None:
        self.dropped += 1
        if self.dropped == 1:
            _log.warning("a record for MLflow is lost, training goes on: %s (said once)", error)
        shutil.rmtree(files_of(path), ignore_errors=True)
        with suppress(OSError):
            _unfinished(path).unlink(missing_ok=True)


def _short(location: str) -> str:
    """Return the last two parts of a path, or a title without its details: columns show the beginning of a name."""
    return "/".join(location.rstrip("/").split("/")[-2:]) if "/" in location else location.partition(" (")[0]


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def files_of(path: Path) -> Path:
    """Return the folder of the files that belong to the record at `path`."""
    return path.with_suffix("")


def waiting(folder: Path) -> list[Path]:
    """Return the records that are not delivered yet, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def remove(path: Path) -> None:
    """Remove a delivered record."""
    shutil.rmtree(files_of(path), ignore_errors=True)
    path.unlink(missing_ok=True)


def refuse(path: Path, reason: str) -> None:
    """Move a record that MLflow will never take into `refused/`, with the reason beside it."""
    aside = path.parent / "refused"
    aside.mkdir(exist_ok=True)
    path.replace(aside / path.name)
    if files_of(path).is_dir():
        files_of(path).replace(files_of(aside / path.name))
    (aside / path.name).with_suffix(".txt").write_text(reason + "\n")
