"""First look of the dashboard at an experiment, in a real store."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

from causalfusion_platform.tracking.mlflow import client
from causalfusion_platform.tracking.views import newest_experiment, runs_page, scores_of

SCORES = ["eval/class_accuracy", "eval/fd_digits_cnn"]


def test_the_view_has_the_scores_that_runs_have(uri: str) -> None:
    api = client(uri)
    assert newest_experiment(uri) is None
    first, second = (api.create_experiment(name) for name in ("first", "second"))
    for experiment in (second, first):
        run = api.create_run(experiment)
    for metric in ("train/loss", "eval/judge_accuracy", *reversed(SCORES)):
        api.log_metric(run.info.run_id, metric, 1.0)
    assert newest_experiment(uri) == first
    tags = api.get_experiment(first).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.experiment.primaryMetric.name"] == SCORES[0]
    view = json.loads(tags["mlflow.sharedViewState.causalfusion"])
    assert view["selectedColumns"][:3] == [*(f"metrics.`{score}`" for score in SCORES), "params.`train.images`"]
    charts = [chart["metricKey"] for chart in view["compareRunCharts"]]
    assert charts == ["train/loss", *SCORES]
    sections = {section["uuid"]: section["name"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == {next(iter(sections))}
    api.set_experiment_tag(first, "mlflow.experimentKind", "chosen by a person")
    assert newest_experiment(uri) == first
    assert api.get_experiment(first).tags == {**tags, "mlflow.experimentKind": "chosen by a person"}


def test_scores_of_the_end_are_told_from_those_of_training() -> None:
    others = ["eval/fd_digits_cnn_n200", "eval/fd_digits_cnn_s4", "eval/fd_digits_cnn_real", "train/loss"]
    assert scores_of([*others, *SCORES, *SCORES]) == SCORES


def test_scores_of_text_and_images_begin_with_one_of_each_direction() -> None:
    """Errors, parts of the data, beams and guidance scales are left out."""
    names = ["caption_all", "caption_class", "cider_d_words", "t2i_class", "t2i_class_best", "t2i_width"]
    ends = (
        "_stderr",
        "_unseen",
        "_unseen_stderr",
        "_beam3",
        "_w2.5",
        "_stderr_w4",
        "_unseen_beam3",
        "_unseen_best",
    )
    others = [f"{name}{end}" for name in names for end in ends]
    found = scores_of(f"eval/{name}" for name in [*names, *others, "caption_images", "t2i_guidance_best"])
    first = ["t2i_class_best", "cider_d_words", "caption_all", "caption_class", "t2i_class", "t2i_width"]
    assert found == [f"eval/{name}" for name in first]


def test_a_run_with_many_scores_has_a_view(uri: str) -> None:
    """MLflow refuses a tag of more than 20,000 characters."""
    api = client(uri)
    run = api.create_run(api.create_experiment("many"))
    for number in range(300):
        api.log_metric(run.info.run_id, f"eval/a score of a name that is not short {number}", 1.0)
    assert newest_experiment(uri) is not None


def test_the_page_of_runs_names_mode_and_view() -> None:
    page = runs_page("7", searchFilter="tags.`x` = 'y'")
    parts = urlsplit(urlsplit(page).fragment)
    assert parts.path == "/experiments/7/runs"
    assert parse_qs(parts.query) == {
        "workflowType": ["machine_learning"],
        "viewStateShareKey": ["causalfusion"],
        "searchFilter": ["tags.`x` = 'y'"],
    }
