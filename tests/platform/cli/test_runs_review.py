"""`runs compare`, `runs tag` and `runs register` over folders of runs as training leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.platform.checkpoint.made import facts, hash_files
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.config.trees import load_experiment
from tests.platform.tracking.recorded import waiting

from causalfusion import PRESETS, build_model, save_weights
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import only_launch
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.tracking.mlflow import client
from causalfusion_platform.tracking.outbox import Outbox

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(own_folder: Path, uri: str) -> MakeRun:
    """Return a function that makes a run's folder: (name, *overrides, summary={…}, runs=…)."""

    def make(name: str, *overrides: str, summary: dict[str, Any] | None = None, runs: str = "runs") -> Path:
        settings = [f"name={name}", f"runs={runs}", f"tracking.uri={uri}", "tracking.experiment=review", *overrides]
        experiment = load_experiment("smoke", settings)
        folder = own_folder / runs / name
        folder.mkdir(parents=True)
        RunState(tracking_uri=uri, config=experiment.model_dump(mode="json")).write(folder)
        outbox = Outbox(folder)
        outbox.create("review", name, artifacts=own_folder / "artifacts", parameters={}, tags={"row": "old"})
        if summary is not None:
            RunFolder(folder).write_summary(summary)
        return folder

    return make


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_two_runs_side_by_side(run: Run, make_run: MakeRun) -> None:
    make_run("a", "tracking.tags={row: '1'}", summary={"fd_digits_cnn": 6.25, "num_samples": 20, "grid_path": "x"})
    make_run("gamma-0.9", "objective.ar_decay=0.8", "seed=3", "description=other")
    result = run("runs", "compare", "a", "gamma-0.9")
    assert result.status == 0
    assert rows_of(result.out) == [
        ["where", "they", "differ"],
        ["a", "gamma-0.9"],
        ["seed", "0", "3"],
        ["objective.ar_decay", "0.9", "0.8"],
        ["what", "they", "came", "to"],
        ["a", "gamma-0.9"],
        ["status", "unknown", "unknown"],
        ["images", "0", "0"],
        ["fd_digits_cnn", "6.25", "–"],
    ]


def test_the_same_numbers_as_json(run: Run, make_run: MakeRun) -> None:
    make_run("a", summary={"fd_digits_cnn": 6.123456789})
    make_run("b", "train.images=2048", "sampling.num_ar_steps=2", summary={"goodput": 0.5})
    found = json.loads(run("runs", "compare", "a", "b", "--json").out)
    assert found == {
        "runs": ["a", "b"],
        "differing": {"train.images": {"a": 1024, "b": 2048}, "sampling.num_ar_steps": {"a": 1, "b": 2}},
        "outcome": {
            "status": {"a": "unknown", "b": "unknown"},
            "images": {"a": "0", "b": "0"},
            "fd_digits_cnn": {"a": 6.123456789, "b": None},
            "goodput": {"a": None, "b": 0.5},
        },
    }


def test_scores_under_two_classifiers_are_not_shown_side_by_side(run: Run, make_run: MakeRun) -> None:
    """An earlier version recorded no classifier: its scores are of one that nobody knows."""
    make_run("a", summary={"fd_digits_cnn": 6.25, "goodput": 0.5, "classifier_sha256": "a" * 64})
    make_run("b", summary={"fd_digits_cnn": 6.5, "goodput": 0.25})
    result = run("runs", "compare", "a", "b")
    assert ["goodput", "0.5", "0.25"] in rows_of(result.out)
    assert "fd_digits_cnn" not in result.out
    assert result.out.splitlines()[-4:] == [
        "scores are left out, because different classifiers measured them:",
        "  aaaaaaaaaaaa…: a",
        "  an unknown one (an earlier version recorded none): b",
        "  measure each run under one classifier: causalfusion evaluate RUN",
    ]
    found = json.loads(run("runs", "compare", "a", "b", "--json").out)
    assert "fd_digits_cnn" not in found["outcome"]
    assert found["note"].startswith("scores are left out")


def test_many_runs_and_long_values_fit_eighty_columns(run: Run, make_run: MakeRun) -> None:
    names = [f"{'ar_decay-0.95.patch_order-raster.seed-' * 2}{number}" for number in range(7)]
    for number, name in enumerate(names):
        make_run(name, f"seed={number}", f"data.path={'/very/long' * 12}/{number}", summary={"loss": number / 3})
    result = run("runs", "compare", *names)
    assert all(len(line) <= 80 for line in result.out.splitlines())
    together = "".join(result.out.split())
    assert result.out.count("where they differ") == 3  # three runs beside each other, three more, and one
    assert "…" not in result.out  # nothing is cut off
    for number in range(7):
        assert f"{number / 3:.4g}" in together


def test_runs_of_one_name_are_told_apart(run: Run, make_run: MakeRun) -> None:
    first, second = make_run("t", runs="runs/s1"), make_run("t", "seed=2", runs="runs/s2")
    found = json.loads(run("runs", "compare", str(first), str(second), "--json").out)
    assert found["runs"] == ["s1/t", "s2/t"]
    assert found["differing"] == {"seed": {"s1/t": 0, "s2/t": 2}}


def test_the_same_settings(run: Run, make_run: MakeRun) -> None:
    make_run("a")
    folder = make_run("b")
    # An earlier version had no such key: it did what is the default now.
    tree = json.loads((folder / "run.json").read_text())
    del tree["config"]["train"]["staging"]
    (folder / "run.json").write_text(json.dumps(tree))
    assert run("runs", "compare", "a", "b").out.startswith("their configurations are the same\n")


def test_what_cannot_be_compared(run: Run, make_run: MakeRun, own_folder: Path) -> None:
    make_run("a")
    check_refusal(run("runs", "compare", "a"), "comparing needs two runs or more", "causalfusion runs list")
    check_refusal(run("runs", "compare", "a", "runs/a"), "comparing needs two runs or more")
    check_refusal(run("runs", "compare", "a", "b"), "no run 'b'", "did you mean a?")
    (own_folder / "runs/begun").mkdir()
    (own_folder / "runs/begun/journal.jsonl").write_text("")
    check_refusal(run("runs", "compare", "a", "begun"), "run 'begun' has not been begun")


def tags_of(folder: Path, uri: str) -> dict[str, str]:
    state = RunFolder(folder).state
    assert state is not None
    tags: dict[str, str] = client(uri).get_run(state.mlflow_run_id).data.tags
    return tags


def test_tags_are_set_and_replaced(run: Run, make_run: MakeRun, uri: str) -> None:
    folder = make_run("a")
    result = run("runs", "tag", "a", "row=s-2", "reviewed/by=a=b", "empty=")
    assert (result.status, result.out) == (0, "tagged a: row, reviewed/by, empty\n")
    found = tags_of(folder, uri)
    assert (found["row"], found["reviewed/by"], found["empty"]) == ("s-2", "a=b", "")
    experiment = client(uri).get_experiment_by_name("review").experiment_id
    (hit,) = client(uri).search_runs([experiment], filter_string="tags.`reviewed/by` = 'a=b'")
    assert hit.info.run_name == "a"


def test_tags_wait_for_a_server_that_is_away(run: Run, make_run: MakeRun, uri: str) -> None:
    folder = make_run("a")
    state = RunFolder(folder).state
    assert state is not None
    state.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}).write(folder)
    result = run("runs", "tag", "a", "row=s-2")
    assert result.status == 0
    assert result.out.startswith(
        "tagged a: row; MLflow is told later (MLflow does not answer at http://127.0.0.1:9"
    )
    state.write(folder)
    assert run("runs", "sync", "a").status == 0
    assert tags_of(folder, uri)["row"] == "s-2"


def test_tags_of_a_run_that_is_under_way(run: Run, make_run: MakeRun) -> None:
    folder = make_run("a")
    before = len(waiting(folder))
    with only_launch(folder):
        result = run("runs", "tag", "a", "row=s-2")
    assert result.out == "tagged a: row; MLflow is told later (the run is under way and delivers them itself)\n"
    assert len(waiting(folder)) == before + 1


@pytest.mark.parametrize(
    "tag", ["row", "=1", "mlflow.note.content=x", "a//b=1", "a/../b=1", "/a=1", "a/=1", "a:b=1", "x" * 251 + "=1"]
)
def test_tags_that_mlflow_would_refuse(run: Run, make_run: MakeRun, tag: str) -> None:
    folder = make_run("a")
    before = len(waiting(folder))
    check_refusal(run("runs", "tag", "a", "row=1", tag), "is not KEY=VALUE")
    check_refusal(
        run("runs", "tag", "a", f"row={'x' * 8001}"), "tag 'row' has 8,001 characters; MLflow takes 8,000"
    )
    assert len(waiting(folder)) == before


def test_a_run_is_registered_by_name(run: Run, make_run: MakeRun, uri: str) -> None:
    folder = make_run("a", summary={"fd_digits_cnn": 6.5})
    check_refusal(run("runs", "register", "a"), "MLflow has not got run 'a' yet", "causalfusion runs sync runs/a")
    assert run("runs", "sync", "a").status == 0
    check_refusal(run("runs", "register", "a"), "no weights in")
    checkpoint = checkpoint_folder(folder / "checkpoints", 64)
    torch.manual_seed(0)
    save_weights(checkpoint / "weights", PRESETS["tiny"], build_model(PRESETS["tiny"]).state_dict())
    write_manifest(checkpoint, facts(64), hash_files(checkpoint))
    assert run("runs", "register", "a").out == "a is version 1 of model review, alias best\n"
    again = run("runs", "register", "a", "--model", "other", "--alias", "candidate")
    assert again.out == "a is version 1 of model other, alias candidate\n"
    found = client(uri).get_model_version_by_alias("review", "best")
    assert (found.tags["run"], found.tags["images"], found.tags["fd_digits_cnn"]) == ("a", "64", "6.5")
    check_refusal(run("runs", "register", "a", "--alias", "v1"), "alias 'v1' is not possible")
