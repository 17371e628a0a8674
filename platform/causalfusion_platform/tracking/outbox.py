"""Write records for MLflow into the run's journal, without waiting for a server.

Copies of files lie in folders beside the journal. A folder is written before its record, and removed before the
cursor passes the record. A record whose folder is gone was delivered. `delivery` reads the records.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from ..config.errors import NotNow
from ..config.secrets import redacted
from ..data.manifest import Manifest
from ..storage.fence import Fence
from ..storage.run_layout import RunPaths
from .journal import Journal
from .mlflow import batches
from .records import Create, Ending, Input, Metrics, Parameters, RunFiles, Status, Tags


class Outbox:
    """Record into a run's folder. Several processes and threads may share it. Calls do not use the network.

    A record that cannot be written (full disk) is dropped with one warning, and training goes on.

    Args:
        run_dir: the run's folder.
        fence: of the launch that records: see `Journal`.

    Attributes:
        journal: holds the records.
        folder: holds copies of files, and the cursor of the delivery.
    """

    def __init__(self, run_dir: Path, fence: Fence | None = None) -> None:
        self.journal, self.folder = Journal(run_dir, fence), RunPaths(run_dir).outbox_folder

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
            experiment: MLflow experiment, created if need be.
            name: the run's name.
            artifacts: folder of artifacts for a store without a server (SQLite).
            parameters: flattened configuration.
            tags: lineage.
            parent: id of the run that this one is a child of.

        Raises:
            UserError: the record cannot be written. The run must not begin without it.
        """
        create = Create(
            key=uuid.uuid4().hex,
            experiment=experiment,
            name=name,
            parent=parent,
            artifacts=artifacts.absolute(),
        )
        if not self.journal.add(create):  # MLflow would take no other record of the run
            raise NotNow(f"{self.journal.path} cannot be written\n  free space there, then give the same command")
        for some in batches(redacted(parameters)):
            self.journal.add(Parameters(values=some))
        self.tags(tags)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags of the run."""
        if values:
            self.journal.add(Tags(values=redacted(values)))

    def data(self, manifest: Manifest, folder: Path) -> None:
        """Record the shards in `folder` as the input of the run."""
        location = manifest.source.location
        latent = f"{manifest.dtype} {'×'.join(map(str, manifest.shape))}"
        self.journal.add(
            Input(
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
        )

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record several metrics at once. NaN and infinities are allowed."""
        points = {key: float(value) for key, value in values.items()}
        self.journal.add(Metrics(values=points, step=step))

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Record an image as one step of the image series `key`."""
        # MLflow's image grid reads this name. It is chosen once, so that a second upload overwrites.
        series = re.sub(r"[^A-Za-z0-9_\-. ~]", "_", key.replace("/", "~"))

        name = f"{series}+step+{step}+timestamp+{time.time_ns() // 1_000_000}+{uuid.uuid4()}.png"
        self._put_files("image", "images", lambda folder: image.save(folder / name, compress_level=1))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a copy of the file as it is now."""

        self._put_files("artifact", folder, lambda copies: shutil.copyfile(path, copies / path.name))

    def finish(self, status: str = "FINISHED") -> None:
        """Record the end of the run with an MLflow status: FINISHED, FAILED or KILLED."""
        if status not in get_args(Status):
            raise ValueError(f"{status!r} is not one of {', '.join(get_args(Status))}")
        self.journal.add(Ending.model_validate({"status": status}))

    def reopen(self) -> None:
        """Record that the run runs again."""
        self.journal.add(Ending(status="RUNNING"))

    def _put_files(
        self, kind: Literal["image", "artifact"], inside: str | None, fill: Callable[[Path], object]
    ) -> None:
        """Write copies of files, then the record that names them."""
        name = f"{uuid.uuid4().hex}.{kind}"
        try:
            (self.folder / name).mkdir(parents=True)
            fill(self.folder / name)
        except OSError as error:
            self.journal.lose(error)
        else:
            if self.journal.add(RunFiles(kind=kind, folder=inside, files=name)):
                return
        shutil.rmtree(self.folder / name, ignore_errors=True)


def _short(location: str) -> str:
    """Return the last two parts of a path, or a title without its details, since columns cut names at the end."""
    return "/".join(location.rstrip("/").split("/")[-2:]) if "/" in location else location.partition(" (")[0]
