"""Download the artifacts of a run from MLflow: its reports, tables, grids and configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.errors import UserError
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
    import requests
    from mlflow.exceptions import MlflowException

    check_reachable(uri)
    api = client(uri)
    try:
        found = _find(api, uri, run)
        names = sorted(_files(api, found.info.run_id, None))
        to.mkdir(parents=True, exist_ok=True)
        api.download_artifacts(found.info.run_id, "", str(to))
    except (MlflowException, requests.RequestException, OSError) as error:
        raise UserError(f"artifacts of run {run!r} do not come from MLflow at {uri}: {one_line(error)}") from error
    return [to / name for name in names]


def _find(api: Any, uri: str, run: str) -> Any:
    """Return a run by its id or by its name."""
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    quote = '"' if "'" in run else "'"  # MLflow's filters know no escapes
    for key in ("run_id", "run_name"):
        condition = f"attributes.{key} = {quote}{run}{quote}"
        found = api.search_runs(experiments, condition, max_results=_LISTED) if experiments else []
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
