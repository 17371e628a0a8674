"""Composing experiments from files, groups and overrides."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.platform.config.trees import (
    MODEL_GROUPS,
    SHIPPED,
    change,
    load_experiment,
    message_of,
    shipped,
    write_yaml,
)

from causalfusion import PRESETS, preset
from causalfusion_platform.config.compose import compose_experiment, flatten, validate, with_overrides
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.files import experiment_folders, experiment_names, home
from causalfusion_platform.launch.runs.public_config import public_config, write_config

# What composes


def test_quickstart_has_its_documented_values() -> None:
    experiment = load_experiment("quickstart")
    assert experiment.model == PRESETS["digits"]
    assert (experiment.name, experiment.description) == (
        "quickstart",
        "CausalFusion on scikit-learn's handwritten digits, pixels as latents",
    )
    assert (experiment.train.num_workers, experiment.train.zero_stage) == (2, 1)
    assert (experiment.objective.ar_decay, experiment.objective.ar_weight) == (0.9, 2.0)
    assert (experiment.sampling.num_ar_steps, experiment.evaluation.num_samples) == (1, 200)
    assert experiment.optim.betas == (0.9, 0.95)
    assert experiment.train.total_images == experiment.train.images  # whole batches


@pytest.mark.parametrize("name", ["quickstart", "smoke"])
def test_every_value_of_a_shipped_file_arrives(name: str) -> None:
    """Read the file with PyYAML alone and look each of its values up."""
    given = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    del given["defaults"]
    found = load_experiment(name).model_dump(mode="json")
    path = given["data"].pop("path")
    assert found["data"]["path"] == str(Path.cwd() / path)
    for section, values in given.items():
        if isinstance(values, dict):
            assert found[section] == found[section] | values
        else:
            assert found[section] == values


def test_the_names_are_those_of_the_files() -> None:
    """All files but groups, what rows of tables share, and what tables are about."""
    files = [path.relative_to(SHIPPED) for path in SHIPPED.rglob("*.yaml")]
    names = {
        path.with_suffix("").as_posix()
        for path in files
        if path.parts[0] not in ("model", "base") and path.name != "table.yaml"
    }
    assert experiment_names() == sorted(names)
    assert {"quickstart", "smoke", "sweeps/gamma", "table3a/mnist/gamma-0.9", "figure4/paper/s-256"} <= names


@pytest.mark.parametrize("group", MODEL_GROUPS)
def test_model_groups_compose(group: str) -> None:
    """A group is a preset, with the fields that it changes."""
    fields = yaml.safe_load((SHIPPED / "model" / f"{group}.yaml").read_text())
    expected = dataclasses.replace(PRESETS[fields.pop("preset")], **fields)
    text = ["objective.text={share: 0.1}"] if "text" in fields else []
    loaded = load_experiment("quickstart", [f"model={group}", "objective.num_ar_steps=1", *text])
    assert loaded.model == expected


def test_the_gamma_sweep_is_quickstart_with_its_own_values() -> None:
    gamma, quickstart = load_experiment("sweeps/gamma"), load_experiment("quickstart")
    assert gamma.name == "gamma"
    assert gamma.sweep is not None
    assert gamma.sweep.grid == {"objective.ar_decay": [1.0, 0.95, 0.9, 0.8]}
    assert (gamma.sweep.metric, gamma.sweep.mode) == ("fd_digits_cnn", "min")
    assert gamma.train.images == 12_800
    assert (gamma.model, gamma.optim, gamma.sampling) == (quickstart.model, quickstart.optim, quickstart.sampling)
    assert load_experiment("sweeps/gamma", ["model=tiny"]).model == PRESETS["tiny"]


def test_overrides_replace_values() -> None:
    experiment = load_experiment(
        "quickstart.yaml",
        ["model=tiny", "model.class_tokens=8", "train.images=256", "optim.betas=[0.8,0.9]", "name=other", "seed=7"],
    )
    assert experiment.model == preset("tiny", class_tokens=8)
    assert experiment.train.images == 256
    assert experiment.optim.betas == (0.8, 0.9)
    assert (experiment.name, experiment.seed) == ("other", 7)
    assert experiment.optim.base_lr == load_experiment("quickstart").optim.base_lr


def test_the_last_of_two_overrides_counts() -> None:
    assert load_experiment("quickstart", ["seed=1", "seed=2"]).seed == 2


def test_a_preset_may_be_named_and_changed() -> None:
    experiment = load_experiment("quickstart", ["model.preset=L/2", "model.depth=3", "model.qk_norm=false"])
    assert experiment.model == preset("L/2", depth=3, qk_norm=False)


def test_keys_that_the_file_does_not_hold_can_be_set() -> None:
    text = (SHIPPED / "quickstart.yaml").read_text()
    assert "weight_decay" not in text
    assert "sweep" not in text
    experiment = load_experiment(
        "quickstart",
        ["optim.weight_decay=0.5", "+supervision.max_failures=3", "sweep.grid={objective.ar_decay: [1.0]}"],
    )
    assert (experiment.optim.weight_decay, experiment.supervision.max_failures) == (0.5, 3)
    assert experiment.sweep is not None
    assert experiment.sweep.grid == {"objective.ar_decay": [1.0]}


def test_a_number_of_images_may_be_written_with_an_exponent() -> None:
    images = load_experiment("quickstart", ["train.images=1e5"]).train.images
    assert images == 100_000
    assert isinstance(images, int)


def test_steps_are_rounded_up_to_whole_batches(quickstart: dict[str, Any]) -> None:
    for images, batch in ((1, 128), (128, 128), (129, 128), (1000, 100), (999, 10)):
        train = change(
            quickstart,
            f"train.images={images}",
            f"train.global_batch_size={batch}",
            "train.num_workers=1",
        ).train
        steps = next(n for n in range(1, 2000) if n * batch >= images)
        assert (train.steps, train.total_images) == (steps, steps * batch)


def test_the_tree_is_frozen() -> None:
    experiment = load_experiment("quickstart")
    for section in (experiment, experiment.data, experiment.optim, experiment.train, experiment.tracking):
        key = next(iter(type(section).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, getattr(section, key))
    for record in (experiment.model, experiment.objective, experiment.diffusion, experiment.sampling):
        key = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, key, getattr(record, key))


# Where experiments and paths come from


def test_the_working_directory_wins_over_the_shipped_files(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/quickstart.yaml", "name: mine\nmodel: {preset: tiny}\n")
    assert experiment_folders() == [own_folder / "experiments", SHIPPED]
    experiment = load_experiment("quickstart")
    assert experiment.name == "mine"
    assert experiment.train.images == 102_400
    assert load_experiment("smoke").name == "smoke"


def test_an_own_experiment_uses_shipped_groups_and_experiments(own_folder: Path) -> None:
    folder = own_folder / "experiments"
    write_yaml(folder / "one.yaml", "defaults: [{model: digits}, _self_]\nname: one\nmodel: {depth: 2}\n")
    write_yaml(folder / "two.yaml", "defaults: [smoke, _self_]\nname: two\n")
    assert load_experiment("one").model == preset("digits", depth=2)
    assert load_experiment("one", ["model=tiny"]).model == preset("tiny", depth=2)
    assert load_experiment("two").train == load_experiment("smoke").train
    assert {"one", "two", "smoke"} <= set(experiment_names())


def test_an_own_group_serves_shipped_experiments(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/model/small.yaml", "preset: digits\nclass_tokens: 7\n")
    experiment = load_experiment("quickstart", ["model=small"])
    assert experiment.model == preset("digits", class_tokens=7)
    assert "small" in message_of("quickstart", "model=smoll")


@pytest.mark.parametrize("name", ["a (copy)", "a, b", "it's", "a=b", "[a]"])
@pytest.mark.filterwarnings("error")
def test_a_folder_of_any_name(own_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    place = own_folder / name
    write_yaml(place / "experiments/model/small.yaml", "preset: digits\nclass_tokens: 7\n")
    monkeypatch.chdir(place)
    assert load_experiment("quickstart", ["model=small"]).model == preset("digits", class_tokens=7)


def test_paths_count_from_the_home_folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, place in ((None, own_folder), ("/far/away", Path("/far/away")), ("near", own_folder / "near")):
        if value is not None:
            monkeypatch.setenv("CAUSALFUSION_HOME", value)
        experiment = load_experiment("quickstart", ["name=one"])
        assert home() == place
        assert experiment.runs == place / "runs"
        assert experiment.run_dir == place / "runs/one"
        assert experiment.data.path == place / "shards/digits"
        assert experiment.tracking_uri == f"sqlite:///{place}/runs/mlflow.db"


def test_an_address_never_becomes_a_folder_of_runs(own_folder: Path) -> None:
    with pytest.raises(UserError, match="runs: gs://bucket/x: gs:// is not supported here"):
        load_experiment("quickstart", ["runs=gs://bucket/x"])
    found = load_experiment("quickstart", ["runs=s3://bucket/x/", "name=one"])
    assert (str(found.runs), str(found.run_url)) == ("s3://bucket/x", "s3://bucket/x/one")
    assert found.run_dir == own_folder / "s3/bucket/x/one"
    assert validate(json.loads(found.model_dump_json()), "again") == found


def test_absolute_paths_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALFUSION_HOME", "/far/away")
    experiment = load_experiment("quickstart", ["runs=/r", "data.path=/d/e", "tracking.uri=http://h:5000"])
    assert (experiment.runs, experiment.data.path) == (Path("/r"), Path("/d/e"))
    assert experiment.tracking_uri == "http://h:5000"


# Secrets, changes in code


def test_secrets_are_not_shown(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKING_TOKEN", "hunter2")
    monkeypatch.setenv("SCRATCH", "/scratch/hunter2")
    write_yaml(
        own_folder / "experiments/mine.yaml",
        "name: mine\nmodel: {preset: tiny}\nruns: ${oc.env:SCRATCH}\n"
        "tracking: {uri: 'https://me:${oc.env:TRACKING_TOKEN}@host'}\n",
    )
    composed = compose_experiment("mine", ["description=${oc.env:TRACKING_TOKEN}"])
    assert composed.experiment.tracking_uri == "https://me:hunter2@host"
    assert composed.experiment.description == "${oc.env:TRACKING_TOKEN}"  # for readers only
    shown = public_config(composed)
    assert "hunter2" not in json.dumps(shown)
    assert shown["tracking"]["uri"] == "https://me:${oc.env:TRACKING_TOKEN}@host"
    assert shown["runs"] == "${oc.env:SCRATCH}"
    written = write_config(composed, own_folder / "config.yaml").read_text()
    assert "hunter2" not in written
    assert yaml.safe_load(written) == shown


def test_what_is_shown_composes_to_the_same_experiment(own_folder: Path) -> None:
    """The file that a run leaves behind is an experiment itself."""
    composed = compose_experiment("sweeps/gamma", ["model=tiny", "train.images=300"])
    (own_folder / "experiments").mkdir()
    write_config(composed, own_folder / "experiments/config.yaml").rename(own_folder / "experiments/again.yaml")
    assert load_experiment("again") == composed.experiment


def test_changes_in_code_are_validated() -> None:
    experiment = load_experiment("quickstart")
    changed = with_overrides(experiment, {"objective.ar_decay": 1.0, "seed": 5, "sweep.grid": {"seed": [1]}}, "x")
    assert (changed.objective.ar_decay, changed.seed) == (1.0, 5)
    assert changed.sweep is not None
    assert changed.model_copy(update={"seed": 0, "sweep": None, "objective": experiment.objective}) == experiment
    assert experiment.objective.ar_decay == 0.9
    with pytest.raises(UserError, match=r"train.imags: unknown key; did you mean 'train.images'"):
        with_overrides(experiment, {"train.imags": 3}, "x")
    with pytest.raises(UserError, match=r"'x' has 1 wrong value"):
        with_overrides(experiment, {"train.images": 0}, "x")


def test_no_changes_in_code_change_nothing() -> None:
    for name in experiment_names():
        assert with_overrides(shipped(name), {}, "x") == shipped(name)


def test_a_preset_changed_in_code_replaces_the_model() -> None:
    experiment = load_experiment("quickstart")
    assert with_overrides(experiment, {"model.preset": "tiny"}, "x").model == PRESETS["tiny"]


trees = st.dictionaries(
    st.text("abc", min_size=1),
    st.recursive(
        st.one_of(st.integers(), st.none(), st.lists(st.integers(), max_size=2)),
        lambda inner: st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(trees)
def test_flatten_can_be_undone(tree: dict[str, Any]) -> None:
    built: dict[str, Any] = {}
    for key, value in flatten(tree):
        *path, last = key.split(".")
        node = built
        for part in path:
            node = node.setdefault(part, {})
        assert last not in node
        node[last] = value
    assert built == tree


def test_flatten_names_leaves_by_dotted_keys() -> None:
    tree = {"a": {"b": 1, "c": {"d": [2, 3]}}, "e": None, "f": {}}
    assert list(flatten(tree)) == [("a.b", 1), ("a.c.d", [2, 3]), ("e", None), ("f", {})]
