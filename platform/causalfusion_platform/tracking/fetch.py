"""Download the artifacts of a run from MLflow: its reports, tables, grids and configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.commands import command
from ..config.errors import UserError
from .lineage import JOB_TAG
from .mlflow import check_reachable, client
from .mlflow_calls import one_line

_LISTED = 5


def fetch_artifacts(uri: str, run: str, to: Path) -> list[Path]:
    """Download all artifacts of a run. Existing files are replaced.

    Args:
        uri: tracking URI.
        run: the run's id, or its name if only one run has it.
        to: folder for the files, created if need be.

    Returns:
        The paths of the files.

    Raises:
        UserError: MLflow does not answer, has no such run or several, or a download fails.
    """
    check_reachable(uri)
    api = client(uri)
    with _downloading(f"run {run!r}", uri):
        return _download(api, _find(api, uri, run), to)


def fetch_job(uri: str, job: str, to: Path) -> list[Path]:
    """Download the artifacts of the runs that a Ray job made or continued. Existing files are replaced.

    Args:
        uri: tracking URI.
        job: the job's id, which its runs have as the tag `JOB_TAG`.
        to: folder for the files, created if need be. Each of several runs has a folder of its own there, by name.

    Returns:
        The paths of the files. Those of trials of a sweep are left out, as its report has their results.

    Raises:
        UserError: MLflow does not answer, knows no run of the job, or a download fails.
    """
    check_reachable(uri)
    api = client(uri)
    with _downloading(f"job {job!r}", uri):
        found = _search(api, f"tags.`{JOB_TAG}` = {_quoted(job)}")
        own = {run.info.run_id for run in found}
        runs = [run for run in found if run.data.tags.get("mlflow.parentRunId") not in own]
        if not runs:
            raise UserError(
                f"MLflow at {uri} knows no run of job {job!r}: it may not have begun one yet\n"
                f"  see: causalfusion ui; fetch one by name: {command('runs', 'fetch', 'NAME', '--uri', uri)}"
            )
        names = [run.info.run_name for run in runs]
        folders = [to] if len(runs) == 1 else [to / _folder(run, names) for run in runs]
        return [file for run, folder in zip(runs, folders, strict=True) for file in _download(api, run, folder)]


def _folder(run: Any, names: Sequence[str]) -> str:
    name: str = run.info.run_name.replace("/", "-").lstrip(".")
    return name if name and names.count(run.info.run_name) == 1 else run.info.run_id


@contextmanager
def _downloading(subject: str, uri: str) -> Iterator[None]:
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        raise UserError(f"artifacts of {subject} do not come from MLflow at {uri}: {one_line(error)}") from error


def _download(api: Any, run: Any, to: Path) -> list[Path]:
    names = sorted(_files(api, run.info.run_id, None))
    to.mkdir(parents=True, exist_ok=True)
    api.download_artifacts(run.info.run_id, "", str(to))
    return [to / name for name in names]


def _quoted(text: str) -> str:
    quote = '"' if "'" in text else "'"  # MLflow's filters know no escapes
    return f"{quote}{text}{quote}"


def _search(api: Any, condition: str, most: int = 1000) -> list[Any]:
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    return list(api.search_runs(experiments, condition, max_results=most)) if experiments else []


def _find(api: Any, uri: str, run: str) -> Any:
    """Return a run by its id or by its name."""
    for key in ("run_id", "run_name"):
        found = _search(api, f"attributes.{key} = {_quoted(run)}", _LISTED)
        if len(found) > 1:
            where = "\n".join(f"  {one.info.run_id}  {one.data.tags.get('run.dir', '')}" for one in found)
            raise UserError(f"MLflow at {uri} has several runs named {run!r}; give the id of one:\n{where}")
        if found:
            return found[0]
    raise UserError(f"MLflow at {uri} has no run with the name or id {run!r}\n  see them: causalfusion ui")


def _files(api: Any, run_id: str, folder: str | None) -> list[str]:
    """Return the paths of all files of a run, those in folders included."""
    files: list[str] = []
    for entry in api.list_artifacts(run_id, folder):
        files += _files(api, run_id, entry.path) if entry.is_dir else [entry.path]
    return files
