"""Relative addresses of pages in MLflow's dashboard, for links in descriptions of runs."""

from __future__ import annotations

from .mlflow import answers, client
from .views import runs_page

NOTE = "mlflow.note.content"
"""The tag that holds the description of a run, as Markdown."""


def charts_of_children(uri: str, run_id: str, metric: str, mode: str) -> str | None:
    """Return the page with the charts of a run's children side by side, the best first. None: MLflow is away.

    Sorted by time, the dashboard would hide children under their parent, and its charts would be empty.

    Args:
        uri: tracking URI.
        run_id: the parent.
        metric: metric to sort the children by, such as eval/fd_digits_cnn.
        mode: `min` or `max`, the best value.
    """
    from mlflow.exceptions import MlflowException

    if answers(uri) is not None:
        return None
    try:
        experiment = client(uri).get_run(run_id).info.experiment_id
    except (MlflowException, OSError):
        return None
    return runs_page(
        experiment,
        compareRunsMode="CHART",
        searchFilter=f"tags.`mlflow.parentRunId` = '{run_id}'",
        orderByKey=f"metrics.`{metric}`",
        orderByAsc="true" if mode == "min" else "false",
    )
