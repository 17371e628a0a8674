"""What a run remembers, and what may change when it is continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.state import RunState, check_same_config

MakeExperiment = Callable[..., Experiment]


def state_of(experiment: Experiment) -> RunState:
    return RunState(mlflow_run_id="abc", tracking_uri="sqlite:///x", config=experiment.model_dump(mode="json"))


def refusal(state: RunState, experiment: Experiment, *allow: str) -> str:
    with pytest.raises(UserError) as caught:
        check_same_config(state, experiment, allow)
    return str(caught.value)


# The state


def test_the_state_comes_back(own_folder: Path, make_experiment: MakeExperiment) -> None:
    state = state_of(make_experiment(objective={"ar_decay": 0.95}, optim={"betas": (0.8, 0.9)}))
    later = state.model_copy(update={"finished": True, "launches": 3, "order": 2, "mlflow_run_id": None})
    for written in (state, later):
        written.write(own_folder)
        assert RunState.read(own_folder) == written
    assert [path.name for path in own_folder.iterdir()] == ["run.json"]


def test_a_run_that_was_never_started(own_folder: Path) -> None:
    assert RunState.read(own_folder) is None
    assert RunState.read(own_folder / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"mlflow_run_id": 3}'])
def test_a_damaged_state(own_folder: Path, content: bytes) -> None:
    (own_folder / "run.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        RunState.read(own_folder)
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
    assert RunState.read(own_folder) == state


# The configuration


def test_the_same_configuration(own_folder: Path, make_experiment: MakeExperiment) -> None:
    state_of(make_experiment()).write(own_folder)
    state = RunState.read(own_folder)
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
        {"data": {"prefetch_batches": 9, "in_memory": True}},
        {"objective": {"sequence_multiple": 64}},
        {"train": {"keep_checkpoints": 9, "keep_best": 9, "keep_every_images": 9, "staging": "/elsewhere"}},
        {"train": {"num_workers": 2, "zero_stage": 3, "micro_batch_size": 2, "offload": "parameters"}},
        {"train": {"cpus_per_worker": 9, "gpus_per_worker": 1, "compile": True, "activation_checkpointing": True}},
        {"train": {"log_every_images": 9, "sample_every_images": 9, "checkpoint_every_images": 9}},
        {"supervision": {"max_failures": 9, "hang_seconds": 9, "spike_factor": 9, "min_workers": 1}},
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
        ({"train": {"global_batch_size": 64}}, ["train.global_batch_size: was 128, now 64"]),
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
    free = {"description", "runs", "sweep", "objective.sequence_multiple"}
    free |= {f"data.{key}" for key in ("path", "prepare", "cpus_per_task", "concurrency", "prefetch_batches")}
    free.add("data.in_memory")
    free |= {
        f"data.{key}" for key in ("verify", "max_bad_rows", "max_overlap", "validation", "tokenizer", "subset")
    }
    kept = ("keep_checkpoints", "keep_best", "keep_every_images", "staging")
    divided = ("num_workers", "cpus_per_worker", "gpus_per_worker", "zero_stage", "micro_batch_size")
    memory = ("activation_checkpointing", "offload", "compile")
    cadences = ("log_every_images", "sample_every_images", "checkpoint_every_images")
    free |= {f"train.{key}" for key in (*kept, *divided, *memory, *cadences)}
    free |= {f"supervision.{key}" for key in experiment.supervision.model_dump()}
    free |= {"tracking.tags", "evaluation.score", "evaluation.probe_every_images"}
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


def test_a_run_recorded_with_the_earlier_name_of_a_key_goes_on(make_experiment: MakeExperiment) -> None:
    config = make_experiment().model_dump(mode="json")
    del config["data"]["validation"]
    config["data"]["heldout"] = "/shards/digits-heldout"
    state = RunState(mlflow_run_id="", tracking_uri="", config=config)
    check_same_config(state, make_experiment(data={"validation": "/shards/digits-validation"}))
    refused = refusal(state, make_experiment(seed=1))
    assert "seed: was 0, now 1" in refused
    assert "heldout" not in refused


def test_a_key_of_the_old_configuration_that_is_gone(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment()
    config = experiment.model_dump(mode="json")
    config["optim"]["momentum"] = 0.9
    state = RunState(mlflow_run_id="", tracking_uri="", config=config)
    assert "\n  optim.momentum: was 0.9, now None" in refusal(state, experiment)


# Changes that are asked for


@pytest.mark.parametrize("allow", [("optim.base_lr", "seed"), ("optim", "seed"), ("seed", "optim", "data")])
def test_allowed_changes(make_experiment: MakeExperiment, allow: tuple[str, ...]) -> None:
    state, other = state_of(make_experiment()), make_experiment(seed=1, optim={"base_lr": 1e-5})
    assert "--allow-config-change optim.base_lr,seed to go on" in refusal(state, other)
    check_same_config(state, other, allow)


@pytest.mark.parametrize("allow", ["optim.base", "optim.base_lr.x", "opt", "see", ""])
def test_only_whole_names_allow(make_experiment: MakeExperiment, allow: str) -> None:
    state, other = state_of(make_experiment()), make_experiment(seed=1, optim={"base_lr": 1e-5})
    message = refusal(state, other, allow, "seed")
    assert "\n  optim.base_lr: was " in message
    assert "\n  seed: was " not in message


@pytest.mark.parametrize("key", ["model", "model.depth", "name", "tracking", "tracking.uri"])
def test_what_no_checkpoint_outlives_cannot_be_allowed(make_experiment: MakeExperiment, key: str) -> None:
    """Also where nothing has changed: a person who asks for it should hear at once."""
    experiment = make_experiment()
    message = refusal(state_of(experiment), experiment, "seed", key)
    assert message.startswith(f"--allow-config-change {key}:")
    assert "name=" in message


def test_advice_names_what_may_be_allowed_only(make_experiment: MakeExperiment) -> None:
    state = state_of(make_experiment())
    assert "--allow-config-change" not in refusal(state, make_experiment(model={"preset": "tiny", "depth": 3}))
    both = refusal(state, make_experiment(model={"preset": "tiny", "depth": 3}, seed=1))
    assert "--allow-config-change seed to go on" in both
