"""Records of a run for MLflow, apart from the reports of its steps. They are lines of the run's journal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .lines import Line

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Create(Line):
    """Open the run."""

    kind: Literal["create"] = "create"
    key: str
    """Name of this run before MLflow has given it an id."""
    experiment: str
    name: str
    parent: str | None
    artifacts: Path
    """Folder of artifacts for a store without a server (SQLite)."""


class Parameters(Line):
    """Add parameters, at most as many as MLflow takes in one call."""

    kind: Literal["params"] = "params"
    values: dict[str, str]


class Tags(Line):
    """Set tags."""

    kind: Literal["tags"] = "tags"
    values: dict[str, str]


class Metrics(Line):
    """Add one point to each of several metrics."""

    kind: Literal["metrics"] = "metrics"
    values: dict[str, float]
    step: int


class RunFiles(Line):
    """Add files to the run's artifacts."""

    kind: Literal["image", "artifact"]
    folder: str | None
    """Folder among the run's artifacts."""
    files: str
    """Folder beside the journal's cursor in which copies of the files wait."""


class Input(Line):
    """Name the data set that the run reads."""

    kind: Literal["input"] = "input"
    name: str = Field(max_length=500)  # MLflow's limit
    digest: str = Field(max_length=36)  # MLflow's limit
    source: str
    """Folder of the shards."""
    columns: dict[str, str]
    """Column → type."""
    profile: dict[str, int | str]
    """Further facts about it, such as `num_rows`."""


class Ending(Line):
    """Set the status of the run."""

    kind: Literal["status"] = "status"
    status: Status


Record = Create | Parameters | Tags | Metrics | RunFiles | Input | Ending
RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
