"""A run that is recorded for MLflow, and the comparison of MLflow with it."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from causalfusion_platform.data.manifest import AutoencoderId, Manifest, Shard, SourceId
from causalfusion_platform.tracking.delivery import Delivery, RetryPolicy
from causalfusion_platform.tracking.outbox import Outbox
from causalfusion_platform.tracking.pending import Pending
from causalfusion_platform.tracking.records import Record

MANIFEST = Manifest(
    source=SourceId(kind="folders", location="/data/in turn/numbers/", items=3, digest="0" * 64),
    autoencoder=AutoencoderId(name="identity", scale=1.0),
    shape=(1, 2, 2),
    class_names=["zero", "one"],
    rows=3,
    shards=[Shard(file="a.parquet", rows=3, row_groups=[3], bytes=1, sha256="0" * 64)],
)
HASTY = RetryPolicy(poll_seconds=0.05, first_pause_seconds=0.1, longest_pause_seconds=0.5, tries=3)


class Job:
    """A run that is recorded, and what it should look like in MLflow."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.folder, self.experiment = folder / "run", experiment
        self.folder.mkdir(exist_ok=True)
        self.outbox = Outbox(self.folder)
        self.ids: list[str] = []
        self.steps: list[int] = []
        self.images = 0
        self.artifacts = folder / "artifacts"

    def create(self) -> None:
        parameters = {f"key.{number}": number for number in range(120)}
        self.outbox.create(
            self.experiment, "name", artifacts=self.artifacts, parameters=parameters, tags={"data.digest": "abc"}
        )
        self.outbox.data(MANIFEST, Path("/shards"))

    def train(self, steps: int, images: int = 0) -> None:
        """Record so many points, going down where a sorted history would go up, and some images among them."""
        for number in range(steps):
            step = len(self.steps) + 1
            self.steps.append(step)
            self.outbox.metrics({"loss": value_at(step), "odd": math.nan if step % 2 else math.inf}, step)
            if number % max(1, steps // (images or steps)) == 0 and images:
                self.outbox.image("samples", Image.fromarray(pixels_at(self.images)), step)
                self.images += 1

    def delivery(self, uri: str, run_id: str | None = None) -> Delivery:
        return Delivery(self.folder, uri, run_id=run_id, on_run_id=self.ids.append, retry=HASTY)

    def deliver(self, uri: str, timeout_seconds: float = 60) -> int:
        delivery = self.delivery(uri, self.ids[-1] if self.ids else None)
        delivery.start()
        left = delivery.drain(timeout_seconds)
        delivery.stop(60)
        return left

    def check(self, client: Any, status: str = "RUNNING") -> None:
        """Compare MLflow with what was recorded: each point, image and run once, in order."""
        (run_id,) = set(self.ids)
        experiment = client.get_experiment_by_name(self.experiment)
        (run,) = client.search_runs([experiment.experiment_id])
        assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "name", status)
        assert run.data.params == {f"key.{number}": str(number) for number in range(120)}
        assert run.data.tags["data.digest"] == "abc"
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("in turn/numbers", MANIFEST.digest[:36])
        assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
        history = client.get_metric_history(run_id, "loss")
        assert [(point.step, point.value) for point in history] == [(step, value_at(step)) for step in self.steps]
        odd = client.get_metric_history(run_id, "odd")
        assert [point.step for point in odd] == self.steps
        assert all(math.isnan(point.value) == bool(point.step % 2) for point in odd)
        files = [Path(file.path) for file in client.list_artifacts(run_id, "images")]
        assert len([file for file in files if file.suffix == ".webp"]) == self.images
        originals = {int(step_of(file)): file for file in files if file.suffix == ".png"}
        assert len(files) == 2 * len(originals) == 2 * self.images
        for number in {0, self.images - 1} if self.images else ():
            file = originals[sorted(originals)[number]]
            found = np.asarray(Image.open(client.download_artifacts(run_id, str(file))))
            assert np.array_equal(found, pixels_at(number))


def waiting(run_dir: Path) -> list[Record]:
    """Return the records that wait in a run's folder."""
    return [item.record for item in Pending(run_dir).items()]


def value_at(step: int) -> float:
    return 1 / step if step % 3 else -float(step)


def pixels_at(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def step_of(file: Path) -> str:
    match = re.match(r"samples\+step\+(\d+)\+", file.name)
    assert match
    return match[1]


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait for a condition, with a limit that only a hang reaches."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def deliver_again(folder: Path, uri: str) -> None:
    """Check a run whose cursor was lost after the last delivery: everything is delivered once more."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    job = Job(folder, "again")
    job.create()
    job.train(50, 2)
    job.outbox.finish()
    for name in ("copy", "second copy"):
        shutil.copytree(job.folder, folder / name)
    assert job.deliver(uri) == 0
    job.check(client, "FINISHED")
    before = client.get_run(job.ids[0])
    for run_id, name in ((job.ids[0], "copy"), (None, "second copy")):
        again = Delivery(folder / name, uri, run_id=run_id, on_run_id=job.ids.append, retry=HASTY)
        again.start()
        assert again.drain(60) == 0
        again.stop(60)
        assert again.refused() == 0
        job.check(client, "FINISHED")
    assert len(job.ids) == 2
    after = client.get_run(job.ids[0])
    assert (after.info.start_time, after.info.end_time) == (before.info.start_time, before.info.end_time)
