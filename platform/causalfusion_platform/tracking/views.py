"""First look of MLflow's dashboard at an experiment: columns of its table of runs, and the order of its charts.

The dashboard keeps a view that someone shares as JSON in a tag of the experiment. The names of its fields are not
documented. Before MLflow is upgraded, look at the page of an experiment. Without the tag it shows its usual view.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

from .mlflow import client

KEY = "causalfusion"
"""Name of the view in the address of the page."""
_VIEW_TAG = f"mlflow.sharedViewState.{KEY}"
_KIND = ("mlflow.experimentKind", "custom_model_development")  # not of generative language models
_PRIMARY_METRIC = "mlflow.experiment.primaryMetric.name"

_SCORES_SHOWN = 2
_MOST_CHARTS = 12
"""Scores with a chart of their own. A tag of MLflow holds 20,000 characters, about 60 charts."""
_RUNS_READ = 20
# Where they differ between runs, they matter most: images, S of sampling and training, γ, λ.
_PARAMETERS = (
    "train.images",
    "sampling.num_ar_steps",
    "objective.num_ar_steps",
    "objective.ar_decay",
    "objective.ar_weight",
)
_FIRST_CHARTS = ("train/loss",)
_FIRST = "loss and scores"
_SECTIONS = (_FIRST, "samples", "eval", "probe", "train", "throughput", "memory", "time", "System metrics")
_NOT_FINAL = re.compile(
    r"_(n|s|beam)\d+(_|$)|_w\d[\d.]*(_|$)|_real$|^judge_|_stderr(_|$)|_unseen(_|$)|_images$|_guidance_best$"
)
"""Scores of training, of parts of the data, of other AR steps, beams and guidance, and of the measure itself."""
_MAIN = ("class_accuracy", "t2i_class_best", "cider_d_words")
"""Scores that come before the others."""
_EVAL = "eval/"


def runs_page(experiment_id: str, **more: str) -> str:
    """Return the relative address of the runs of an experiment in the dashboard, in the mode for training.

    Args:
        experiment_id: the experiment.
        more: further parameters of the page, such as `searchFilter`.
    """
    query = {"workflowType": "machine_learning", "viewStateShareKey": KEY, **more}
    return f"#/experiments/{experiment_id}/runs?{urlencode(query)}"


def keep_view(api: Any, experiment_id: str) -> None:
    """Let the dashboard's first look show the scores that runs of an experiment have.

    Args:
        api: client of the store.
        experiment_id: the experiment.
    """
    runs = api.search_runs([experiment_id], max_results=_RUNS_READ, order_by=["attributes.start_time DESC"])
    scores = scores_of(key for run in runs for key in run.data.metrics)
    tags = api.get_experiment(experiment_id).tags
    wanted = {_VIEW_TAG: json.dumps(view_state(scores))}
    if scores:
        wanted[_PRIMARY_METRIC] = scores[0]
    if _KIND[0] not in tags:
        wanted[_KIND[0]] = _KIND[1]
    for key, value in wanted.items():
        if tags.get(key) != value:
            api.set_experiment_tag(experiment_id, key, value)


def newest_experiment(uri: str) -> str | None:
    """Return the id of the experiment with the newest run, or None without runs. Each experiment gets its view."""
    api = client(uri)
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    for experiment in experiments:
        keep_view(api, experiment)
    newest = api.search_runs(experiments, max_results=1, order_by=["attributes.start_time DESC"])
    return str(newest[0].info.experiment_id) if newest else None


def scores_of(metrics: Iterable[str]) -> list[str]:
    """Return the metrics that are scores of final samples, the main one first."""
    names = {key.removeprefix(_EVAL) for key in metrics if key.startswith(_EVAL)}
    final = sorted((name for name in names if not _NOT_FINAL.search(name)), key=lambda name: (_place(name), name))
    return [f"{_EVAL}{name}" for name in final]


def _place(name: str) -> int:
    return _MAIN.index(name) if name in _MAIN else len(_MAIN)


def view_state(scores: Sequence[str]) -> dict[str, Any]:
    """Return the view as the dashboard reads it.

    Args:
        scores: metrics of final scores, the main one first.
    """
    columns = [*(f"metrics.`{score}`" for score in scores[:_SCORES_SHOWN])]
    columns += [f"params.`{name}`" for name in _PARAMETERS]
    charts = [_curve(metric) for metric in _FIRST_CHARTS] + [_bars(score) for score in scores[:_MOST_CHARTS]]
    return {
        "selectedColumns": [*columns, "attributes.`Duration`"],
        "compareRunSections": [_section(name) for name in _SECTIONS],
        "compareRunCharts": charts,
        "isAccordionReordered": True,
    }


def _section(name: str) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": True}


def _chart(kind: str, metric: str) -> dict[str, Any]:
    return {
        "uuid": metric,
        "type": kind,
        "metricSectionId": _FIRST,
        "metricKey": metric,
        "displayName": metric,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": True,
    }


def _bars(metric: str) -> dict[str, Any]:
    """Return a chart of one value a run."""
    return _chart("BAR", metric)


def _curve(metric: str) -> dict[str, Any]:
    """Return a chart over images seen."""
    return _chart("LINE", metric) | {
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
