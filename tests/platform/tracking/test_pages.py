"""Links into the dashboard: their parts, against the store that they lead to."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from causalfusion_platform.tracking.mlflow import client, open_experiment, parentage
from causalfusion_platform.tracking.pages import charts_of_children


def test_the_charts_of_a_sweep_are_those_of_its_trials_in_their_order(uri: str, tmp_path: Path) -> None:
    """The filter and the order of the link, given to MLflow's own search."""
    api = client(uri)
    experiment = open_experiment(api, uri, "sweep", tmp_path / "artifacts")
    parent, other = (api.create_run(experiment).info.run_id for _ in range(2))
    names = {"worst": 9.0, "best": 2.0, "middle": 5.0}
    for name, value in names.items():
        trial = api.create_run(experiment, run_name=name, tags=parentage(parent)).info.run_id
        api.log_metric(trial, "eval/fd_digits_cnn", value)
    api.create_run(experiment, tags=parentage(other))
    for mode, expected in (("min", ["best", "middle", "worst"]), ("max", ["worst", "middle", "best"])):
        link = charts_of_children(uri, parent, "eval/fd_digits_cnn", mode)
        assert link is not None
        page = urlsplit(link.removeprefix("#"))
        assert page.path == f"/experiments/{experiment}/runs"
        (key,), (ascending,), (filters,), (view,) = (
            parse_qs(page.query)[name] for name in ("orderByKey", "orderByAsc", "searchFilter", "compareRunsMode")
        )
        order = f"{key} {'ASC' if ascending == 'true' else 'DESC'}"
        found = api.search_runs([experiment], filter_string=filters, order_by=[order])
        assert [run.info.run_name for run in found] == expected
        assert view == "CHART"
    assert charts_of_children(uri, "0" * 32, "loss", "min") is None


def test_a_server_that_is_away_has_no_page() -> None:
    assert charts_of_children("http://127.0.0.1:9", "0" * 32, "loss", "min") is None
