"""What a run remembers, and what may change when it is continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causalfusion_platform.config.compose import Composed
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.validate import CheckedShards
from causalfusion_platform.launch import run_folder
from causalfusion_platform.launch.run_folder import RunState, check_same_config, open_run, read_state

MakeExperiment = Callable[..., Experiment]


def state_of(experiment: Experiment) -> RunState:
    return RunState(mlflow_run_id="abc", tracking_uri="sqlite:///x", config=experiment.model_dump(mode="json"))


def refusal(state: RunState, experiment: Experiment) -> str:
    with pytest.raises(UserError) as caught:
        check_same_config(state, experiment)
    return str(caught.value)


# The state


def test_the_state_comes_back(own_folder: Path, make_experiment: MakeExperiment) -> None:
    state = state_of(make_experiment(objective={"ar_decay": 0.95}, optim={"betas": (0.8, 0.9)}))
    later = state.model_copy(update={"finished": True, "launches": 3})
    for written in (state, later):
        written.write(own_folder)
        assert read_state(own_folder) == written
    assert [path.name for path in own_folder.iterdir()] == ["run.json"]


def test_a_run_that_was_never_started(own_folder: Path) -> None:
    assert read_state(own_folder) is None
    assert read_state(own_folder / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"mlflow_run_id": 3}'])
def test_a_damaged_state(own_folder: Path, content: bytes) -> None:
    (own_folder / "run.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_state(own_folder)
    message = str(caught.value)
    assert f"{own_folder / 'run.json'} is damaged" in message
    assert "name=" in message
    assert f"remove {own_folder}" in message


def test_an_interrupted_write_keeps_the_old_state(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, make_experiment: MakeExperiment
) -> None:
    def stop(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    state = state_of(make_experiment())
    state.write(own_folder)
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        state.model_copy(update={"finished": True}).write(own_folder)
    assert read_state(own_folder) == state


# The configuration


def test_the_same_configuration(own_folder: Path, make_experiment: MakeExperiment) -> None:
    state_of(make_experiment()).write(own_folder)
    state = read_state(own_folder)
    assert state is not None
    check_same_config(state, make_experiment())


def test_a_dit_goes_on(make_experiment: MakeExperiment) -> None:
    """Its defaults alone would not be valid: it has one AR step."""
    dit = make_experiment(model={"preset": "digits-dit"}, objective={"num_ar_steps": 1})
    check_same_config(state_of(dit), dit)


def test_a_run_of_an_earlier_version_goes_on(make_experiment: MakeExperiment) -> None:
    """Its configuration lacks keys that came later; their defaults count."""
    state = state_of(make_experiment())
    del state.config["model"]["architecture"], state.config["objective"]["time_copies"]
    check_same_config(state, make_experiment())
    assert "objective.time_copies: was 1, now 2" in refusal(state, make_experiment(objective={"time_copies": 2}))


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "other"},
        {"runs": "/elsewhere"},
        {"data": {"path": "/elsewhere", "prepare": True, "cpus_per_task": 2, "concurrency": 9}},
        {"data": {"prefetch_batches": 9}},
        {"train": {"max_failures": 9, "keep_checkpoints": 9, "cpus_per_worker": 9}},
        {"sweep": {"grid": {"seed": [1, 2]}}},
    ],
)
def test_what_may_change(make_experiment: MakeExperiment, changes: dict[str, Any]) -> None:
    check_same_config(state_of(make_experiment()), make_experiment(**changes))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"seed": 1}, ["seed: was 0, now 1"]),
        ({"train": {"images": 7}}, ["train.images: was 102400, now 7"]),
        ({"train": {"num_workers": 2}}, ["train.num_workers: was 1, now 2"]),
        ({"train": {"zero_stage": 3}}, ["train.zero_stage: was 1, now 3"]),
        ({"train": {"precision": "bf16"}}, ["train.precision: was 'auto', now 'bf16'"]),
        ({"data": {"window_rows": 9}}, ["data.window_rows: was 8192, now 9"]),
        ({"optim": {"betas": (0.9, 0.99)}}, ["optim.betas: was [0.9, 0.95], now [0.9, 0.99]"]),
        ({"objective": {"num_ar_steps": 4}}, ["objective.num_ar_steps: was None, now 4"]),
        ({"diffusion": {"beta_end": 0.03}}, ["diffusion.beta_end: was 0.02, now 0.03"]),
        ({"sampling": {"guidance_scale": 2}}, ["sampling.guidance_scale: was 1.0, now 2.0"]),
        ({"model": {"preset": "tiny", "depth": 3}}, ["model.depth: was 2, now 3"]),
        ({"seed": 1, "description": "free", "optim": {"eps": 1.0}}, ["seed: was 0, now 1", "optim.eps: was 1e-08"]),
    ],
)
def test_what_may_not_change(make_experiment: MakeExperiment, changes: dict[str, Any], lines: list[str]) -> None:
    message = refusal(state_of(make_experiment()), make_experiment(**changes))
    assert "run 'test'" in message
    assert message.count(": was ") == len(lines)
    for line in lines:
        assert f"\n  {line}" in message
    assert "name=" in message


def test_every_key_that_is_not_free_counts(make_experiment: MakeExperiment) -> None:
    """Change the remembered value of each key in turn: no key is forgotten."""
    experiment = make_experiment()
    free = {"description", "runs", "sweep"}
    free |= {f"data.{key}" for key in ("path", "prepare", "cpus_per_task", "concurrency", "prefetch_batches")}
    free |= {"data.verify", "data.max_bad_rows"}
    free |= {f"train.{key}" for key in ("max_failures", "keep_checkpoints", "cpus_per_worker")}
    found = set()
    tree = experiment.model_dump(mode="json")
    keys = [f"{top}.{key}" for top, node in tree.items() if isinstance(node, dict) for key in node]
    keys += [top for top, node in tree.items() if not isinstance(node, dict)]
    for key in keys:
        changed = experiment.model_dump(mode="json")
        *path, last = key.split(".")
        node = changed
        for part in path:
            node = node[part]
        node[last] = "something else"
        state = RunState(mlflow_run_id="", tracking_uri="", config=changed)
        try:
            check_same_config(state, experiment)
        except UserError as error:
            assert f"\n  {key}: was 'something else'" in str(error)
        else:
            found.add(key)
    assert found == free


def test_a_key_of_the_old_configuration_that_is_gone(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment()
    config = experiment.model_dump(mode="json")
    config["optim"]["momentum"] = 0.9
    state = RunState(mlflow_run_id="", tracking_uri="", config=config)
    assert "\n  optim.momentum: was 0.9, now None" in refusal(state, experiment)


# Opening a run


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Put notes in place of MLflow, and return them."""
    notes: list[tuple[str, Any]] = []

    class Tracker:
        def __init__(self, uri: str, run_id: str) -> None:
            self.run_id = run_id

        def reopen(self) -> None:
            notes.append(("reopen", self.run_id))

        def artifact(self, path: Path) -> None:
            notes.append(("artifact", path))

    def start(*names: str, **given: Any) -> str:
        notes.append(("start", (names, given)))
        return "new-run"

    monkeypatch.setattr(run_folder, "MlflowTracker", Tracker)
    monkeypatch.setattr(run_folder, "start_run", start)
    return notes


def test_a_new_run_is_opened_and_then_again(
    make_experiment: MakeExperiment, digits_folder: Path, tracked: list[tuple[str, Any]]
) -> None:
    experiment, manifest = make_experiment(description="what for"), Manifest.read(digits_folder)
    composed = Composed(experiment, {})
    whole, lacking = (
        CheckedShards(digits_folder, manifest, {}),
        CheckedShards(digits_folder, manifest, {"a": "bad"}),
    )
    state = open_run(composed, whole, None, parent="above")
    assert (state.mlflow_run_id, state.launches, state.finished) == ("new-run", 1, False)
    assert read_state(experiment.run_dir) == state
    (names, given), config = tracked[0][1], tracked[1][1]
    assert names == (experiment.tracking_uri, "causalfusion", "test")
    assert given["parent"] == "above"
    assert given["parameters"]["model.depth"] == 2
    assert given["tags"]["data.digest"] == manifest.digest
    assert given["tags"]["run.dir"] == str(experiment.run_dir)
    assert given["tags"]["mlflow.note.content"] == "what for"
    assert config == experiment.run_dir / "config.yaml"
    assert config.is_file()

    again = open_run(composed, lacking, state)
    assert tracked[2:] == [("reopen", "new-run")]
    assert again == state.model_copy(update={"launches": 2, "bad_shards": ["a"]})
    assert read_state(experiment.run_dir) == again
