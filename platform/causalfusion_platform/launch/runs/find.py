"""Find runs on disk, and read their folders."""

from __future__ import annotations

import difflib
import posixpath
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...config.commands import command
from ...config.compose import flatten
from ...config.errors import UserError
from ...config.files import home
from ...config.schema import Experiment, local_copy
from ...config.secrets import shown_address
from ...evaluation.identity import classifiers_of, depends_on_classifier, describe_classifiers
from ...report.runs.comparison import Comparison
from ...report.runs.show import CheckpointSize, RunView
from ...report.terminal import as_path
from ...storage.objects import ObjectUrl, is_object_url, open_store
from ...storage.run_layout import JOURNAL_FILE, STATE_FILE
from ...storage.sqlite import is_sqlite, sqlite_file
from ...tracking.accounting import account
from .folder import RunFolder
from .state import RunState
from .sync import sync_run

_NAMING = ("name", "description", "runs", "tracking", "sweep")
_TAG_KEY = re.compile(r"(?!/)[\w./ -]{1,250}")
_INCOMPARABLE = (
    "scores are left out, because different classifiers measured them:\n{}\n"
    "  measure each run under one classifier: causalfusion evaluate RUN"
)
_OF_RUNS = (f"/{STATE_FILE}", f"/{JOURNAL_FILE}")
_LONGEST_TAG = 8000  # characters, MLflow's limit


def runs_in(folder: Path | ObjectUrl) -> list[RunFolder]:
    """Return all runs below `folder`, the trials of sweeps included, by name."""
    if isinstance(folder, ObjectUrl):
        names = {
            name
            for info in open_store(folder).list()
            if info.key.count("/") == 1 and (name := info.key.partition("/")[0]) and info.key.endswith(_OF_RUNS)
        }
        return [RunFolder(local_copy(folder) / name, folder / name) for name in sorted(names)]
    found = {
        path.parent
        for name in (STATE_FILE, JOURNAL_FILE)
        for depth in ("*", "*/*")
        for path in folder.glob(f"{depth}/{name}")
    }
    return [RunFolder(path) for path in sorted(found)]


def folder_of_runs(given: str | Path | None) -> Path | ObjectUrl:
    """Return the folder of runs that `--runs` names, or its address on object storage.

    Raises:
        UserError: it is an address that is not supported.
    """
    if given is not None and is_object_url(given):
        return ObjectUrl.parse(given)
    return home() / (given or "runs")


def find_run(name: str, runs: str | Path | None = None) -> RunFolder:
    """Return a run from its name, or from a path or an address.

    Args:
        name: a path, `s3://BUCKET/PREFIX/NAME`, or a name below the folder of runs, such as `quickstart` or a
            sweep's `gamma/trial-3`.
        runs: the folder of runs, or its address. None: `runs` below CAUSALFUSION_HOME.

    Raises:
        UserError: the run does not exist. The message names the nearest ones.
    """
    folder = folder_of_runs(runs)
    if is_object_url(name):
        url = ObjectUrl.parse(name)
        folder, name = url.parent, url.name
    if isinstance(folder, ObjectUrl):
        candidates = [RunFolder(local_copy(folder) / name, folder / name)]
    else:
        candidates = [RunFolder(folder / name), RunFolder(home() / name)]
    for found in candidates:
        found.storage.look()
        if found.state_file.is_file() or found.journal_file.is_file():
            return found
    known = [_name_below(folder, run) for run in runs_in(folder)]
    near = difflib.get_close_matches(name, known, n=3) or known[:5]
    listed = f"did you mean {', '.join(near)}?" if near else "there are no runs there yet"
    advice = command("runs", "list", *(("--runs", runs) if runs is not None else ()))
    raise UserError(
        f"no run {name!r} in {folder}; {listed}\n  all of them: {advice}; in another folder: --runs FOLDER"
    )


def look_at(run: RunFolder) -> RunView:
    """Read the state, journal, checkpoints and summary in a run's folder.

    Raises:
        UserError: its state file is damaged.
    """
    _ = run.state
    return _look_at(run, None)


def _name_below(folder: Path | ObjectUrl, run: RunFolder) -> str:
    return run.root.relative_to(folder).as_posix() if isinstance(folder, Path) else run.name


def look_at_all(folder: Path | ObjectUrl) -> list[tuple[str, RunView]]:
    """Return name and view of all runs below `folder`. Of damaged ones the view says what could be read."""
    views = []
    for run in runs_in(folder):
        try:
            _, fault = run.state, None
        except UserError as error:
            fault = str(error)
        views.append((_name_below(folder, run), _look_at(run, fault)))
    return views


def _look_at(run: RunFolder, fault: str | None) -> RunView:
    under_way = run.is_under_way()  # asked first, so that an end that follows is among the events
    state, events = None if fault else run.state, run.journal.events()
    found = account(events, time.time() if under_way else None)
    status: str = found.status
    if fault:
        status = "damaged"
    elif not events:  # an earlier version wrote it without a journal, or it has not begun
        status = "finished" if state and state.finished else "running" if under_way else "unknown"
    experiment, stored = _experiment(run), run.storage.checkpoints
    return RunView(
        name=run.name,
        folder=run.url or run.root,
        status=status,
        total_images=experiment.train.total_images if experiment else None,
        account=found,
        events=events,
        checkpoints=[CheckpointSize(name.partition("/")[0], size) for name, size in stored.sizes().items()],
        bad_checkpoints=stored.set_aside(),
        mlflow_run_id=state.mlflow_run_id if state else None,
        tracking_uri=shown_address(state.tracking_uri) if state else None,
        dashboard=_dashboard(state),
        summary=_summary(run),
        fault=fault,
        task=experiment.task if experiment else None,
        user=state.user if state else None,
    )


def _dashboard(state: RunState | None) -> str:
    if state and not is_sqlite(state.tracking_uri):
        return f"open {shown_address(state.tracking_uri)}"
    folder = sqlite_file(state.tracking_uri).parent if state else home() / "runs"
    return command("ui", *(() if folder == home() / "runs" else ("--runs", as_path(folder))))


def _experiment(run: RunFolder) -> Experiment | None:
    try:
        return run.experiment
    except UserError:  # another version wrote it, with keys that do not exist now
        return None


def _summary(run: RunFolder) -> dict[str, Any] | None:
    try:
        return run.read_summary() if run.summary_file.exists() else None
    except UserError:
        return None


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """Compare runs by their configurations and their results.

    Raises:
        UserError: one of them is damaged, or has no configuration yet.
    """
    configs = [_settings(run) for run in runs]
    views = [look_at(run) for run in runs]
    summaries = [view.summary or {} for view in views]
    short = _short_names([run.root for run in runs])
    classifiers = classifiers_of(dict(zip(short, summaries, strict=True)))
    keys = dict.fromkeys(key for config in configs for key in config)
    settings = {key: [config.get(key) for config in configs] for key in keys}
    numbers = dict.fromkeys(
        name
        for summary in summaries
        for name, value in summary.items()
        if isinstance(value, float) and not (len(classifiers) > 1 and depends_on_classifier(name))
    )
    return Comparison(
        names=short,
        differing={key: values for key, values in settings.items() if any(one != values[0] for one in values)},
        outcome={
            "status": [view.status for view in views],
            "images": [f"{view.account.images:,}" for view in views],
            **{name: [summary.get(name) for summary in summaries] for name in numbers},
        },
        note=_INCOMPARABLE.format(describe_classifiers(classifiers)) if len(classifiers) > 1 else "",
    )


def _settings(run: RunFolder) -> dict[str, Any]:
    """Return a run's configuration without its name: dotted key → value."""
    state = run.state
    if state is None:
        raise UserError(
            f"run {run.name!r} has not been begun: it has no configuration to compare\n  begin it, or leave it out"
        )
    try:  # an earlier version without a key did what the key does by default
        experiment = run.experiment
        tree = state.config if experiment is None else experiment.model_dump(mode="json")
    except UserError:  # another version wrote it, with keys that do not exist now
        tree = state.config
    return {key: value for key, value in flatten(tree) if key.partition(".")[0] not in _NAMING}


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of the folders' paths, as many as tell them apart."""
    parts = 1
    while True:
        names = ["/".join(folder.absolute().parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
        parts += 1


def tag_run(run: RunFolder, tags: Sequence[str]) -> str | None:
    """Set tags `key=value` of a run in MLflow. Return the reason if they wait for MLflow, else None.

    Raises:
        UserError: a tag is not of this form, the run does not exist, or MLflow refuses a tag.
    """
    values = dict(_tag(text) for text in tags)
    _ = run.started
    run.outbox.tags(values)
    if run.is_under_way():
        return "the run is under way and delivers them itself"
    try:
        sync_run(run, seconds=60)
    except UserError as error:
        return str(error).partition("\n")[0]
    return None


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    # MLflow takes a key for a path: a/../b would be refused.
    if not equals or not _TAG_KEY.fullmatch(key) or posixpath.normpath(key) != key or key.startswith("mlflow."):
        raise UserError(
            f"tag {text!r} is not KEY=VALUE\n"
            f"  a key has letters, digits, spaces and . _ - /, is no path such as a//b, and begins not with mlflow."
        )
    if len(value) > _LONGEST_TAG:
        raise UserError(f"tag {key!r} has {len(value):,} characters; MLflow takes {_LONGEST_TAG:,}")
    return key, value
