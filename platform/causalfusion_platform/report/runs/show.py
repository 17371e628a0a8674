"""All that a run's folder says of it, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ...storage.objects import ObjectUrl
from ...tracking.accounting import Account
from ...tracking.journal import Event, Incident, Measured, Probed


@dataclass(frozen=True)
class CheckpointSize:
    """A checkpoint on disk."""

    name: str
    bytes: int


@dataclass(frozen=True)
class RunView:
    """All that a run's folder says of it."""

    name: str
    folder: Path | ObjectUrl
    status: str
    """That of its account. `unknown` if nothing is recorded, `damaged` if its state cannot be read."""
    total_images: int | None
    """Images of the whole run. None where its configuration cannot be read."""
    account: Account
    events: Sequence[Event]
    checkpoints: Sequence[CheckpointSize]
    """Oldest first."""
    bad_checkpoints: Sequence[str]
    """Damaged ones that were set aside."""
    mlflow_run_id: str | None
    tracking_uri: str | None
    dashboard: str
    """The command that opens MLflow's dashboard."""
    summary: dict[str, Any] | None
    """summary.json of a finished run."""
    fault: str | None = None
    """Message about a state that cannot be read."""
    task: str | None = None
    """Task of the run. None where its configuration cannot be read."""
    user: str | None = None
    """Owner of the run. None where it is not recorded."""

    @property
    def scores(self) -> dict[str, float]:
        """Scores of a finished run, or the newest ones of training. The task's main one is the first."""
        if self.summary is not None:
            return summary_scores(self.summary)
        measured = [event for event in self.events if isinstance(event, Measured)]
        return measured[-1].values if measured else {}

    @property
    def scored_images(self) -> int | None:
        """Images seen when the scores were measured in training. None: they are those of the end."""
        measured = [event.images for event in self.events if isinstance(event, Measured)]
        return measured[-1] if measured and self.summary is None else None

    @property
    def probed(self) -> Probed | None:
        """The newest probes of the layers, if the run was probed while it trained."""
        found = [event for event in self.events if isinstance(event, Probed)]
        return found[-1] if found else None


def summary_scores(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores in a summary: the task writes its results between `name` and `images_seen`."""
    results = takewhile(lambda item: item[0] != "images_seen", summary.items())
    return {key: value for key, value in results if isinstance(value, float)}


def run_json(view: RunView) -> dict[str, Any]:
    """Return a run as plain data: the account with its derived numbers, checkpoints, incidents, summary."""
    found = view.account
    return {
        "name": view.name,
        "folder": str(view.folder),
        "status": view.status,
        "total_images": view.total_images,
        **{key: value for key, value in _plain(found).items() if key != "status"},
        "elapsed_seconds": found.elapsed_seconds,
        "goodput": found.goodput,
        "probed": view.probed.model_dump() if view.probed else None,
        "incident_events": [event.model_dump() for event in view.events if isinstance(event, Incident)],
        "checkpoints": [asdict(saved) for saved in view.checkpoints],
        "bad_checkpoints": list(view.bad_checkpoints),
        "mlflow_run_id": view.mlflow_run_id,
        "tracking_uri": view.tracking_uri,
        "user": view.user,
        "summary": view.summary,
        "fault": view.fault,
    }


def _plain(found: Account) -> dict[str, Any]:
    tree = asdict(found)
    for name in ("training", "attempt"):
        event = tree[name]
        tree[name] = event.model_dump() if event else None
    return tree
