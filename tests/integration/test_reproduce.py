"""A table of the paper, reproduced small: trained, measured, reported, and nothing done twice."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from causalfusion_platform.cli.main import app
from causalfusion_platform.launch.reproduction.reproduce import reproduce
from causalfusion_platform.launch.reproduction.rows import Reproduction, reproduction_of
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.report.sweeps.live import LiveTable
from causalfusion_platform.tracking.fetch import fetch_artifacts
from causalfusion_platform.tracking.journal import Journal, Launched

SMALL = [
    "model=tiny",
    "model.input_size=16",
    "train.images=256",
    "train.global_batch_size=64",
    "train.log_every_images=64",
    "sampling.num_inference_steps=4",
    "evaluation.num_samples=20",
]


def small(table: str, *rows: str) -> Reproduction:
    """A table with a few samples for each value, and one draw of each held-out image."""
    found = reproduction_of(table, "mnist", rows=rows, seeds=[0], overrides=SMALL, command="the command")
    plan = found.plan.model_copy(update={"samples": 60, "validation_draws": 1})
    scales = {**found.table.scales, "mnist": plan}
    return dataclasses.replace(found, table=found.table.model_copy(update={"scales": scales}))


@pytest.mark.ray
@pytest.mark.slow
def test_a_table_is_trained_measured_and_reported(home: Path, ray_cluster: None, log_lines: list[str]) -> None:
    def display(metric: str) -> LiveTable:
        return LiveTable(Console(file=io.StringIO(), width=200), metric)

    first = small("table3b", "random")
    report = reproduce(first, display)
    values = {row.file: row.cells[0].ours.mean for row in report.rows}
    assert (values["random"] or 0) > 0
    others = ["raster", "block-8x8", "block-4x4", "dilated"]
    assert [row for row, value in values.items() if value is None] == others
    assert not report.complete
    losses = {row.file: row.cells[1].ours.mean for row in report.rows}
    assert 0 < (losses["random"] or 0) < 1.1  # a model that predicts nothing has 1
    assert [row for row, loss in losses.items() if loss is None] == others
    assert {name: len(pairs) for name, pairs in report.around.repeats.items()} == {"S = 1": 1, "loss, S = 1": 1}

    folder = home / "runs" / "table3b-mnist"
    names = {path.name for path in (folder / "report").iterdir()}
    assert {
        "report.md",
        "report.tex",
        "report.json",
        "report.html",
        "values.png",
        "loss.png",
        "samples.png",
    } <= names
    written = json.loads((folder / "report" / "report.json").read_text())
    assert written["rows"][-1]["values"]["S = 1"]["by_seed"] == {"0": values["random"]}
    assert written["rows"][-1]["values"]["loss, S = 1"]["by_seed"] == {"0": losses["random"]}
    text = (folder / "report" / "report.md").read_text()
    assert "measured again on the same 1 model" in text and "![samples](samples.png)" in text
    page = (folder / "report" / "report.html").read_text()
    assert "14.46" in page  # what the paper prints
    assert "http" not in page.replace("http-equiv", "")  # it opens offline

    state = RunFolder(folder).state
    assert state is not None and state.mlflow_run_id is not None
    client = MlflowClient(state.tracking_uri)
    parent = client.get_run(state.mlflow_run_id)
    link, _, note = parent.data.tags["mlflow.note.content"].partition("\n\n")
    assert link.startswith("[Charts of the trials, the best first](#/experiments/")
    assert note.startswith("# Table 3b")
    [best] = client.search_model_versions("name = 'table3b-mnist'")
    assert best.tags["trial"] == "random.seed-0"
    [child] = client.search_runs([parent.info.experiment_id], "tags.row = 'random' and tags.seed = '0'")
    assert child.data.tags["mlflow.parentRunId"] == state.mlflow_run_id
    assert child.data.tags["table"] == "table3b"
    assert client.get_experiment(parent.info.experiment_id).name == "table3b-mnist"

    # MLflow has the report, for those who are elsewhere.
    fetched = fetch_artifacts(state.tracking_uri, "table3b-mnist", home / "fetched")
    there = {path.relative_to(home / "fetched").as_posix() for path in fetched}
    assert {f"report/{path.name}" for path in (folder / "report").iterdir()} <= there
    assert (home / "fetched/report/report.md").read_bytes() == (folder / "report" / "report.md").read_bytes()

    # The same command trains and measures nothing again.
    again = reproduce(small("table3b", "random"), display)
    for place in (0, 1):
        assert [row.cells[place].ours for row in again.rows] == [row.cells[place].ours for row in report.rows]
    assert again.around.repeats == report.around.repeats
    launches = [event for event in Journal(folder / "random.seed-0").events() if isinstance(event, Launched)]
    assert len(launches) == 1

    # Another table's row with the very same settings is this run: it is measured at its columns, not trained.
    other = small("table3a", "gamma-0.9")
    assert other.elsewhere == {"gamma-0.9.seed-0": folder / "random.seed-0"}
    report = reproduce(other, display)
    cells = next(row.cells for row in report.rows if row.file == "gamma-0.9")
    assert cells[0].ours.mean == values["random"]  # S = 1, the same samples
    assert cells[4].ours.mean == losses["random"]  # and the same draws
    assert len({cell.ours.mean for cell in cells}) == 8  # S = 1, 2, 4, 8, of samples and of the loss
    assert (home / "runs" / "table3a-mnist" / "report" / "loss_of_rows.png").is_file()
    assert not (home / "runs" / "table3a-mnist" / "gamma-0.9.seed-0").exists()
    assert any("are trained as runs of table3b-mnist" in line for line in log_lines)

    # More places of one of its runs: a table and a picture in its folder and on its page.
    run_dir = folder / "random.seed-0"
    command = ["evaluate", str(run_dir), "--num", "20", "--ar-steps", "1,2", "--steps", "4,6", "--local", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    places = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [(place["S"], place["T"]) for place in places] == [(1, "4"), (1, "6"), (2, "4"), (2, "6")]
    assert "fd_data_cnn" in (run_dir / "evaluation" / "table.md").read_text()
    width, height = Image.open(run_dir / "evaluation" / "plane-cfg2.5.png").size
    assert width > 2 * 5 * 40  # two blocks of five tiles side by side
    assert height > 2 * 2 * 40
    page = client.search_runs([parent.info.experiment_id], "tags.row = 'random' and tags.seed = '0'")[0]
    assert page.data.metrics["eval/fd_data_cnn/S2-T6-cfg2.5"] == places[-1]["fd_data_cnn"]
    assert [
        picture for picture in client.list_artifacts(page.info.run_id, "images") if "plane-cfg2.5" in picture.path
    ]
