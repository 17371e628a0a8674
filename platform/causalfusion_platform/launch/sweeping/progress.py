"""Progress of the trials of a sweep, from Ray Tune's callbacks and from the trials' journals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from ...report.sweeps.live import State, SweepDisplay, TrialView
from ...tracking.journal import Adopted, JournalReader, Measured, StepReport
from ..runs.folder import RunFolder

_LOOK_SECONDS = 1.0


@dataclass
class _Seen:
    """Newest events of a run."""

    journal: JournalReader
    images: int = 0
    loss: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    origin: str = ""

    def read_on(self) -> None:
        """Read the events that were added."""
        for event in self.journal.new_events():
            if isinstance(event, StepReport):
                self.images, self.loss = event.images, event.loss
            elif isinstance(event, Measured):
                self.values = event.values
            elif isinstance(event, Adopted):
                self.origin = f"from {event.run} at {event.images:,}"


class TrialProgress(tune.Callback):  # type: ignore[misc]
    """Keep the state of each trial, and show all of them every second."""

    def __init__(
        self,
        names: list[str],
        run_of: Callable[[str], RunFolder],
        total: int,
        metric: str,
        finished: Collection[str] = (),
        name_of: Callable[[dict[str, Any]], str | None] = lambda config: config.get("trial"),
        totals: Mapping[str, int] | None = None,
    ) -> None:
        """Start with trials that wait, but for those that have finished in earlier launches.

        Args:
            names: of the trials that are known. Others appear when they start.
            run_of: returns a trial's newest run.
            total: images of a whole trial.
            metric: trials are ranked by it.
            finished: names of those that have finished before.
            name_of: returns a trial's name from its configuration. None: not known before it reports.
            totals: trial → its images, of those that differ from `total`.
        """
        self.run_of, self.total, self.metric, self.name_of = run_of, total, metric, name_of
        self.totals = totals or {}
        self.states: dict[str, State] = dict.fromkeys(names, "waiting")
        self.states.update(dict.fromkeys(finished, "finished"))
        self.names: dict[str, str] = {}
        """Tune's name → ours."""
        self.notes: dict[str, str] = {}
        self.seen: dict[Path, _Seen] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore them elsewhere. The copies show nothing.
        empty: dict[str, Any] = {name: {} for name in ("states", "names", "notes", "seen", "totals")}
        return {**empty, "run_of": RunFolder, "total": 0, "metric": self.metric, "name_of": _no_name}

    def on_trial_start(self, *_: Any, trial: Any, **__: Any) -> None:
        """A trial got its process."""
        self._set(trial, "running")

    def on_trial_result(self, *_: Any, trial: Any, result: Any, **__: Any) -> None:
        """A trial reported."""
        if "trial" in result and trial.trial_id not in self.names:
            self.names[trial.trial_id] = result["trial"]
        self._set(trial, "running")

    def on_trial_complete(self, *_: Any, trial: Any, **__: Any) -> None:
        """A trial ended, or was ended."""
        self._set(trial, "finished" if "summary" in (trial.last_result or {}) else "ended early")

    def on_trial_error(self, *_: Any, trial: Any, **__: Any) -> None:
        """A trial failed."""
        error = trial.get_error() if hasattr(trial, "get_error") else None
        self._set(trial, "failed", str(error).strip().splitlines()[-1] if error else "")

    def views(self) -> list[TrialView]:
        """Return the progress of all trials."""
        return [self._view(name, state) for name, state in list(self.states.items())]

    def _set(self, trial: Any, state: State, note: str = "") -> None:
        name = self.names.get(trial.trial_id) or self.name_of(trial.config)
        if name is not None:
            self.names[trial.trial_id] = name
            self.states[name] = state
            if note:
                self.notes[name] = note

    def _view(self, name: str, state: State) -> TrialView:
        total = self.totals.get(name, self.total)
        if state == "waiting":
            return TrialView(name, state, total=total, note=self.notes.get(name, ""))
        run = self.run_of(name)
        seen = self.seen.setdefault(run.root, _Seen(JournalReader(run.root)))
        seen.read_on()
        metric = seen.values.get(self.metric)
        # Measurements during training use other samples than the final ones, by which trials are ranked.
        if state == "finished" and run.summary_file.is_file():
            metric = run.read_summary().get(self.metric)
        note = seen.origin or self.notes.get(name, "")
        return TrialView(name, state, seen.images, total, seen.loss, metric, note)


def _no_name(_: dict[str, Any]) -> str | None:
    return None


class ProgressThread:
    """Show the progress of trials once a second, in a thread of its own."""

    def __init__(self, progress: TrialProgress, display: SweepDisplay) -> None:
        self.progress, self.display = progress, display
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, name="sweep display", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.display.show(self.progress.views())

    def _look(self) -> None:
        while not self.over.wait(_LOOK_SECONDS):
            self.display.show(self.progress.views())
