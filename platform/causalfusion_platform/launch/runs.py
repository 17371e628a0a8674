"""Find runs on disk, and read all that their folders say of them."""

from __future__ import annotations

import difflib
import json
import time
from pathlib import Path
from typing import Any

from ..config.compose import home, validate
from ..config.errors import UserError
from ..config.schema import Experiment
from ..report.run_view import Saved, View
from ..report.terminal import as_path
from ..tracking.accounting import account
from ..tracking.journal import JOURNAL_FILE, Journal
from .lock import is_under_way
from .run_folder import STATE_FILE, SUMMARY_FILE, RunState, read_state


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of all runs below `folder`, the trials of sweeps included, by name."""
    found = {
        path.parent
        for name in (STATE_FILE, JOURNAL_FILE)
        for depth in ("*", "*/*")
        for path in folder.glob(f"{depth}/{name}")
    }
    return sorted(found)


def find_run(name: str, runs: Path | None = None) -> Path:
    """Return the folder of a run from its name, or from a path.

    Args:
        name: a name below the folder of runs, such as `quickstart` or a sweep's `gamma/trial-3`; or a path.
        runs: the folder of runs; None: `runs` below CAUSALFUSION_HOME.

    Raises:
        UserError: there is no such run; the message names the nearest ones.
    """
    folder = home() / (runs or "runs")
    for candidate in (folder / name, home() / name):
        if (candidate / STATE_FILE).is_file() or (candidate / JOURNAL_FILE).is_file():
            return candidate
    known = [path.relative_to(folder).as_posix() for path in runs_in(folder)]
    near = difflib.get_close_matches(name, known, n=3) or known[:5]
    listed = f"did you mean {', '.join(near)}?" if near else "there are no runs there yet"
    advice = "causalfusion runs list" if runs is None else f"causalfusion runs list --runs {runs}"
    raise UserError(
        f"no run {name!r} in {folder}; {listed}\n  all of them: {advice}; in another folder: --runs FOLDER"
    )


def look_at(folder: Path) -> View:
    """Read what a run's folder says: state, journal, checkpoints, summary.

    Raises:
        UserError: its state file is damaged.
    """
    state = read_state(folder)
    journal = Journal(folder)
    events = journal.events()
    under_way = is_under_way(folder)
    found = account(events, time.time() if under_way else None)
    status: str = found.status
    if not events:  # made before there were journals, or not begun
        status = "finished" if state and state.finished else "running" if under_way else "unknown"
    experiment = _experiment(state, folder.name)
    return View(
        name=folder.name,
        folder=folder,
        status=status,
        total_images=experiment.train.total_images if experiment else None,
        account=found,
        events=events,
        checkpoints=_checkpoints(folder / "checkpoints"),
        bad_checkpoints=sorted(path.name for path in (folder / "checkpoints" / "bad").glob("*")),
        mlflow_run_id=state.mlflow_run_id if state else None,
        tracking_uri=state.tracking_uri if state else None,
        dashboard=_dashboard(state),
        summary=_summary(folder / SUMMARY_FILE),
    )


def _dashboard(state: RunState | None) -> str:
    if state and not state.tracking_uri.startswith("sqlite"):
        return f"open {state.tracking_uri}"
    folder = Path(state.tracking_uri.removeprefix("sqlite:///")).parent if state else home() / "runs"
    return "causalfusion ui" if folder == home() / "runs" else f"causalfusion ui --runs {as_path(folder)}"


def _experiment(state: RunState | None, name: str) -> Experiment | None:
    if state is None:
        return None
    try:
        return validate(state.config, name)
    except UserError:  # of another version, with keys that are no more
        return None


def _checkpoints(root: Path) -> list[Saved]:
    return [
        Saved(path.name, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        for path in sorted(root.glob("images-*"))
        if path.is_dir()
    ]


def _summary(path: Path) -> dict[str, Any] | None:
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None
