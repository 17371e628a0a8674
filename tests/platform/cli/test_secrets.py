"""Secrets of the environment stay out of everything that a run, a sweep and their reports write or print."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.cli.conftest import Result, Run
from tests.platform.config.test_text import KEYS
from tests.platform.config.trees import write_yaml

from causalfusion_platform.config import secrets
from causalfusion_platform.config.compose import Composed, compose_experiment, recorded_tree
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.config.text import NAMES
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState, check_same_config
from causalfusion_platform.launch.sweeping.job import job_of
from causalfusion_platform.launch.sweeping.results import TrialEnd, tabulate, write_results
from causalfusion_platform.tracking.mlflow import answers

FINETUNE = ("finetune.weights", "finetune.test", "finetune.vae")
PATHS = ("runs", "data.path", "data.validation", "data.tokenizer", "data.subset.of", "train.staging", *FINETUNE)
"""Keys whose value is a place on disk, which cannot be hidden from those who see the disk."""

PLANTED = {
    "description": "about ${oc.env:PLANTED_DESCRIPTION}",
    "tracking.uri": "http://${oc.env:PLANTED_USER}:${oc.env:PLANTED_PASSWORD}@127.0.0.1:9/?key=${oc.env:PLANTED_QUERY}",
    "tracking.tags.mine": "${oc.env:PLANTED_TAG}",
    "train.deepspeed.mine": {
        "tensorboard": {"enabled": False, "job_name": "${oc.env:PLANTED_NESTED}"},
        "data_types": {"keep_in_fp32_modules": ["${oc.env:PLANTED_IN_A_LIST}"]},
    },
    "sweep.grid.mine[]": {
        "description": ["${oc.env:PLANTED_IN_A_GRID}", "of ${oc.env:PLANTED_LATER_IN_A_GRID}"],
        "train.deepspeed.tensorboard.output_path": ["${oc.env:PLANTED_IN_A_GRID_OF_PATHS}"],
    },
    "sweep.space.mine.choice[]": {"description": {"choice": ["${oc.env:PLANTED_CHOICE}"]}},
}
"""Place in the configuration → a value there that holds secrets."""


def places_of_anything() -> Iterator[str]:
    """Yield the places of the JSON schema that take values of any type."""
    root = Experiment.model_json_schema()

    def walk(node: Any, key: str) -> Iterator[str]:
        if node is True or (isinstance(node, dict) and not set(node) - {"title", "description", "default"}):
            yield key
            return
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rpartition("/")[2]]
        for choice in (*node.get("anyOf", []), *node.get("oneOf", [])):
            yield from walk(choice, key)
        for name, inner in node.get("properties", {}).items():
            yield from walk(inner, f"{key}.{name}".lstrip("."))
        if node.get("type") == "object" and node.get("additionalProperties", False) is not False:
            yield from walk(node["additionalProperties"], f"{key}.mine")
        if node.get("type") == "array" and "items" in node:
            yield from walk(node["items"], f"{key}[]")

    yield from walk(root, "")


def test_every_place_of_text_is_tried() -> None:
    assert {*KEYS, *places_of_anything()} - {*PATHS, *NAMES} == set(PLANTED)


@pytest.fixture(autouse=True)
def no_secrets_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", {})


@pytest.fixture
def planted(own_folder: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Write an experiment with a secret at every place, and return variable → secret."""
    tree = {
        "name": "planted",
        "model": {"preset": "tiny"},
        "description": PLANTED["description"],
        "data": {"path": str(digits_folder)},
        "tracking": {"uri": PLANTED["tracking.uri"], "tags": {"mine": PLANTED["tracking.tags.mine"]}},
        "train": {
            "images": 128,
            "global_batch_size": 64,
            "sample_every_images": 128,
            "checkpoint_every_images": 128,
            "deepspeed": PLANTED["train.deepspeed.mine"],
        },
        "sampling": {"num_inference_steps": 2},
        "evaluation": {"num_samples": 10, "classifier_epochs": 1},
    }
    write_yaml(own_folder / "experiments/planted.yaml", yaml.safe_dump(tree))
    for name, section in (
        ("grid", {"grid": PLANTED["sweep.grid.mine[]"]}),
        ("space", {"space": PLANTED["sweep.space.mine.choice[]"], "num_trials": 1}),
    ):
        swept = {**tree, "name": f"planted-{name}", "sweep": section}
        write_yaml(own_folder / f"experiments/{name}.yaml", yaml.safe_dump(swept))
    variables = re.findall(r"oc\.env:(\w+)", json.dumps(PLANTED))
    values = {name: f"hunter2-{place:02d}é'\"-secret" for place, name in enumerate(variables)}
    for name in ("PLANTED_USER", "PLANTED_PASSWORD", "PLANTED_QUERY"):  # characters of an address
        values[name] = f"hunter2-{name}-secret"
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def check_nothing_leaked(folder: Path, *printed: str) -> None:
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert b"hunter2" not in file.read_bytes(), file
        assert "hunter2" not in str(file)
    for text in printed:
        assert "hunter2" not in text


def test_a_run_leaves_no_secret(run: Run, own_folder: Path, planted: dict[str, str]) -> None:
    """Its server is away, so that the records wait on disk."""
    printed = [
        run("config", "show", "planted"),
        run("config", "explain", "tracking.uri", "--experiment", "planted"),
        run("train", "planted", "--dry-run"),
        run("train", "planted", "--local", "--json"),
        run("train", "planted", "--local"),
        run("runs", "show", "planted"),
        run("runs", "list"),
        run("runs", "sync", "planted"),
        run("runs", "tag", "planted", "a=b"),
        run("train", "planted", "train.num_workers=many"),
        run("train", "planted", "tracking.uri=${oc.env:PLANTED_PASSWORD}"),
        run("sweep", "grid", "--dry-run"),
        run("sweep", "grid"),
    ]
    assert [result.status for result in printed] == [0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 2, 0, 2]
    check_nothing_leaked(own_folder, *(text for result in printed for text in (result.out, result.err)))
    # It has trained with them, and can go on.
    folder = RunFolder(own_folder / "runs/planted")
    assert folder.finished
    assert folder.started.address == os.path.expandvars(PLANTED["tracking.uri"].replace("oc.env:", ""))  # type: ignore[attr-defined]
    assert f"http://{planted['PLANTED_USER']}:" in folder.started.address
    assert (own_folder / "runs/planted/run.json").read_text().count("${oc.env:PLANTED_PASSWORD}") == 2
    tags = [
        line for line in (own_folder / "runs/planted/journal.jsonl").read_text().splitlines() if '"tags"' in line
    ]
    assert "${oc.env:PLANTED_TAG}" in tags[0]


@pytest.mark.parametrize("name", ["grid", "space"])
def test_a_sweep_leaves_no_secret(own_folder: Path, planted: dict[str, str], name: str) -> None:
    job = job_of(compose_experiment(name))
    values = [trial.experiment.train.deepspeed["tensorboard"].get("output_path") for trial in job.trials]
    assert values == ([planted["PLANTED_IN_A_GRID_OF_PATHS"]] * 2 if name == "grid" else [None])
    ends = [TrialEnd(trial.name, trial.values, error="worker lost") for trial in job.trials]
    assert len({end.name for end in ends}) == len(ends)
    (own_folder / "runs" / job.experiment.name).mkdir(parents=True)
    write_results(job.experiment, job.sweep, ends, tabulate(job.sweep, ends, "0123"))
    for trial in job.trials:
        RunState(tracking_uri="sqlite:///x", config=recorded_tree(trial.experiment)).write(own_folder)
        check_nothing_leaked(own_folder, trial.name)
    check_nothing_leaked(own_folder)


@pytest.mark.parametrize("search", ["optuna", "pbt"])
def test_searches_that_store_their_values_take_no_secrets(
    own_folder: Path, planted: dict[str, str], search: str
) -> None:
    more = ["sweep.search=optuna"] if search == "optuna" else ["sweep.pbt={every_images: 64}", "sweep.num_trials=2"]
    with pytest.raises(UserError, match=r"sweep\.space\.description has values of environment variables"):
        job_of(compose_experiment("space", more))


def test_another_process_knows_them_too(planted: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pickle.dumps(compose_experiment("planted"))
    monkeypatch.setattr(secrets, "_known", {})
    assert secrets.redact(planted["PLANTED_PASSWORD"]) == planted["PLANTED_PASSWORD"]
    received: Composed = pickle.loads(sent)
    assert planted["PLANTED_PASSWORD"] in received.experiment.tracking_uri
    assert secrets.redact(planted["PLANTED_PASSWORD"]) == "${oc.env:PLANTED_PASSWORD}"


def test_a_changed_secret_is_the_same_configuration(
    own_folder: Path, planted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compose_experiment("planted").experiment
    state = RunState(tracking_uri="x", config=recorded_tree(before))
    old = RunState(tracking_uri="x", config=before.model_dump(mode="json"))  # of an earlier version
    check_same_config(old, before)
    monkeypatch.setenv("PLANTED_PASSWORD", "another-hunter2")
    after = compose_experiment("planted").experiment
    check_same_config(state, after)
    assert before.tracking_uri != after.tracking_uri
    with pytest.raises(UserError, match="was started with another configuration") as caught:
        check_same_config(state, after.model_copy(update={"seed": 3}))
    assert "hunter2" not in str(caught.value)


def test_a_missing_variable_is_named(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    state = RunState(tracking_uri="https://me:${oc.env:NOT_SET_HERE}@host", config={})
    with pytest.raises(
        UserError, match=r"needs the environment variable NOT_SET_HERE\n  set it: export NOT_SET_HERE"
    ):
        _ = state.address


def test_a_password_written_out_is_shown_as_stars(run: Run, own_folder: Path) -> None:
    """In a file for its owner alone it stays: it must be delivered to later."""
    override = "tracking.uri=https://me:hunter2-x@host:5000/?token=hunter2-y"
    shown = [
        run(*verb, override).out for verb in (["train", "sweeps/gamma", "--dry-run"], ["config", "show", "smoke"])
    ]
    assert all("https://me:***@host:5000/?token=***" in text and "hunter2" not in text for text in shown)
    composed = compose_experiment("quickstart", [override])
    tree = recorded_tree(composed.experiment)
    assert tree["tracking"]["uri"] == "https://me:***@host:5000/?token=***"
    state = RunState(tracking_uri=composed.experiment.tracking_uri, config=tree)
    state.write(own_folder)
    assert (own_folder / "run.json").stat().st_mode & 0o777 == 0o600
    found = RunState.read(own_folder)
    assert found is not None
    assert found.address == "https://me:hunter2-x@host:5000/?token=hunter2-y"
    check_same_config(found, composed.experiment)
    RunState(tracking_uri="sqlite:///x", config=tree).write(own_folder)
    assert (own_folder / "run.json").stat().st_mode & 0o077


def test_variables_that_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of people and folders, numbers, and texts so short that they are parts of others."""
    monkeypatch.setenv("USER", "hunter2-user")
    monkeypatch.setenv("SCRATCH", "/scratch/hunter2")
    monkeypatch.setenv("IMAGES", "1280000")
    monkeypatch.setenv("STAGE", "tiny")
    found = compose_experiment(
        "quickstart",
        [
            "tracking.tags.user=${oc.env:USER}",
            "runs=${oc.env:SCRATCH}",
            "train.images=${oc.env:IMAGES}",
            "tracking.tags.stage=${oc.env:STAGE}",
        ],
    ).experiment
    assert (found.tracking.tags, found.train.images) == ({"user": "hunter2-user", "stage": "tiny"}, 1280000)
    assert secrets.known() == {}


def test_an_unexpected_error_shows_no_secret(
    run: Run, own_folder: Path, planted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(composed: Composed, **_: Any) -> None:
        logging.getLogger("causalfusion_platform").warning(composed.experiment.tracking_uri)
        raise RuntimeError(f"cannot parse {composed.experiment.tracking_uri}")

    monkeypatch.setattr("causalfusion_platform.launch.training.train.run_training", fail)
    result: Result = run("train", "planted", "--local")
    assert result.status == 3
    assert "cannot parse http://${oc.env:PLANTED_USER}:" in result.err
    [traceback] = own_folder.glob("causalfusion-error-*.txt")
    assert "RuntimeError: cannot parse http://${oc.env:PLANTED_USER}:" in traceback.read_text()
    check_nothing_leaked(own_folder, result.out, result.err)


def test_an_address_with_credentials_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib by itself takes the password for a port."""
    asked = []

    def refuse(request: Any, timeout: float) -> None:
        asked.append((request.full_url, request.get_header("Authorization")))
        raise OSError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert answers("http://me:p%40ss@127.0.0.1:9/base/") == "refused"
    assert asked == [("http://127.0.0.1:9/base/health", "Basic bWU6cEBzcw==")]
