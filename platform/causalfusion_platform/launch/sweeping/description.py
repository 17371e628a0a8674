"""Description on a sweep's page in MLflow."""

from __future__ import annotations

from ...config.schema import Experiment
from ...config.sweep import SweepConfig
from ...tracking.pages import charts_of_children


def pinned(experiment: Experiment, sweep: SweepConfig, run_id: str, text: str) -> str:
    """Return the description of a sweep's page: a link to the charts of its trials, the best first, then `text`.

    Args:
        experiment: the sweep's.
        sweep: its first target orders the trials.
        run_id: the sweep's run in MLflow.
        text: Markdown.
    """
    metric, mode = next(iter(sweep.targets.items()))
    link = charts_of_children(experiment.tracking_uri, run_id, f"eval/{metric}", mode)
    return f"[Charts of the trials, the best first]({link})\n\n{text}" if link else text
