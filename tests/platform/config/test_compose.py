"""Composing experiments, and what is said about wrong ones."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from causalfusion import PRESETS
from causalfusion_platform.config.compose import (
    compose_experiment,
    experiment_folders,
    experiment_names,
    flatten,
    home,
    load_experiment,
    validate,
    with_overrides,
)
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.run_folder import public_config, write_config

SHIPPED = Path(__file__).parents[3] / "experiments"
MODEL_GROUPS = sorted(path.stem for path in (SHIPPED / "model").glob("*.yaml"))


def message_of(name: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(name, overrides)
    return str(caught.value)


@pytest.fixture(scope="module")
def quickstart() -> dict[str, Any]:
    """Return the resolved tree of quickstart."""
    return compose_experiment("quickstart").unresolved


def change(tree: dict[str, Any], *texts: str) -> Experiment:
    """Validate a tree with `key=value` changes, without Hydra, which takes a tenth of a second each time."""
    changed = copy.deepcopy(tree)
    for text in texts:
        key, _, value = text.partition("=")
        *path, last = key.split(".")
        node = changed
        for part in path:
            node = node.setdefault(part, {})
        node[last] = yaml.safe_load(value)
    return validate(changed, "quickstart")


def fault_of(tree: dict[str, Any], *texts: str) -> str:
    with pytest.raises(UserError) as caught:
        change(tree, *texts)
    return str(caught.value)


def write_yaml(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


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
    files = [path.stem for path in SHIPPED.glob("*.yaml")]
    files += [f"sweeps/{path.stem}" for path in (SHIPPED / "sweeps").glob("*.yaml")]
    assert experiment_names() == sorted(files)
    assert {"quickstart", "smoke", "sweeps/gamma"} <= set(files)


@pytest.mark.parametrize("name", ["quickstart", "smoke", "sweeps/gamma"])
def test_shipped_experiments_compose_and_satisfy_the_schema(name: str) -> None:
    tree = load_experiment(name).model_dump(mode="json")
    jsonschema.Draft202012Validator(Experiment.model_json_schema()).validate(tree)


@pytest.mark.parametrize("group", MODEL_GROUPS)
def test_model_groups_compose(group: str) -> None:
    preset = yaml.safe_load((SHIPPED / "model" / f"{group}.yaml").read_text())["preset"]
    assert load_experiment("quickstart", [f"model={group}"]).model == PRESETS[preset]


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
    assert experiment.model == dataclasses.replace(PRESETS["tiny"], class_tokens=8)
    assert experiment.train.images == 256
    assert experiment.optim.betas == (0.8, 0.9)
    assert (experiment.name, experiment.seed) == ("other", 7)
    assert experiment.optim.base_lr == load_experiment("quickstart").optim.base_lr


def test_the_last_of_two_overrides_counts() -> None:
    assert load_experiment("quickstart", ["seed=1", "seed=2"]).seed == 2


def test_a_preset_may_be_named_and_changed() -> None:
    experiment = load_experiment("quickstart", ["model.preset=L/2", "model.depth=3", "model.qk_norm=false"])
    assert experiment.model == dataclasses.replace(PRESETS["L/2"], depth=3, qk_norm=False)


def test_keys_that_the_file_does_not_hold_can_be_set() -> None:
    text = (SHIPPED / "quickstart.yaml").read_text()
    assert "weight_decay" not in text
    assert "sweep" not in text
    experiment = load_experiment(
        "quickstart", ["optim.weight_decay=0.5", "+train.max_failures=3", "sweep.grid={objective.ar_decay: [1.0]}"]
    )
    assert (experiment.optim.weight_decay, experiment.train.max_failures) == (0.5, 3)
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


# What is said about wrong ones


def test_an_unknown_experiment() -> None:
    message = message_of("quikstart")
    assert "no experiment 'quikstart'; did you mean 'quickstart'?" in message
    assert "experiments: quickstart, smoke, sweeps/gamma" in message
    assert "causalfusion config show quickstart" in message
    assert str(SHIPPED) in message


def test_an_unknown_experiment_like_no_other() -> None:
    message = message_of("zzz")
    assert "'zzz'" in message
    assert "did you mean" not in message
    assert "causalfusion config show quickstart" in message


@pytest.mark.parametrize(
    ("override", "fault", "nearest"),
    [
        ("trian.images=3", "trian", "train"),
        ("sede=3", "sede", "seed"),
        ("train.imags=3", "train.imags", "train.images"),
        ("train.batch_size=3", "train.batch_size", "train.global_batch_size"),
        ("optim.base_rl=3", "optim.base_rl", "optim.base_lr"),
        ("data.window=3", "data.window", "data.window_rows"),
        ("tracking.url=x", "tracking.url", "tracking.uri"),
        ("model.dept=3", "model.dept", "model.depth"),
        ("model.presets=tiny", "model.presets", "model.preset"),
        ("objective.ar_decy=1", "objective.ar_decy", "objective.ar_decay"),
        ("sampling.steps=3", "sampling.steps", "sampling.num_ar_steps"),
        ("diffusion.beta_strat=3", "diffusion.beta_strat", "diffusion.beta_start"),
    ],
)
def test_an_unknown_key(quickstart: dict[str, Any], override: str, fault: str, nearest: str) -> None:
    message = fault_of(quickstart, override)
    assert f"{fault}: unknown key; did you mean {nearest!r}?" in message
    assert "causalfusion config schema" in message
    *path, _ = fault.split(".")
    section: Any = change(quickstart)
    for part in path:
        section = getattr(section, part)
    fields = (
        [field.name for field in dataclasses.fields(section)]
        if dataclasses.is_dataclass(section)
        else list(type(section).model_fields)
    )
    listed = re.search(r"keys here: (.*)", message)
    assert listed is not None
    assert set(listed[1].split(", ")) - {"preset"} == set(fields)


def test_an_unknown_key_of_an_optional_section() -> None:
    message = message_of("sweeps/gamma", "sweep.metrc=x")
    assert "sweep.metrc: unknown key; did you mean 'sweep.metric'?" in message


def test_every_fault_is_listed() -> None:
    message = message_of("quickstart", "train.imags=3", "seed=-1", "objective.ar_decy=1")
    assert "3 wrong value(s)" in message
    for fault in ("train.imags", "seed", "objective.ar_decy"):
        assert re.search(rf"^  {re.escape(fault)}: ", message, re.MULTILINE)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.images=abc", ["train.images", "integer", "'abc'"]),
        ("train.images=1.5", ["train.images", "integer", "1.5"]),
        ("data.prepare=maybe", ["data.prepare", "boolean", "'maybe'"]),
        ("train=3", ["train", "3"]),
        ("seed=null", ["seed", "integer", "None"]),
        ("objective.patch_order=spiral", ["objective.patch_order", "'blockwise'", "'raster'", "'spiral'"]),
        ("optim.betas=[0.9]", ["optim.betas", "missing"]),
        ("model.depth=deep", ["model.depth", "integer", "'deep'"]),
        ("train.images=0", ["train.images", "greater than or equal to 1", "0"]),
        ("optim.ema_decay=1", ["optim.ema_decay", "less than 1", "1"]),
        ("optim.base_lr=0", ["optim.base_lr", "greater than 0", "0"]),
        ("train.zero_stage=4", ["train.zero_stage", "0, 1, 2 or 3", "4"]),
        ("evaluation.num_samples=1", ["evaluation.num_samples", "greater than or equal to 2", "1"]),
        ("objective.ar_decay=2", ["objective", "ar_decay", "[0, 1]", "2.0"]),
        ("objective.class_dropout=1", ["objective", "class_dropout", "[0, 1)", "1"]),
        ("sampling.guidance_scale=-1", ["sampling", "guidance_scale", "negative", "-1"]),
        ("model.depth=0", ["model", "depth", "at least 1", "0"]),
        ("model.preset=huge", ["model", "'huge'", "tiny", "L/2"]),
        ("model.patch_size=3", ["model", "input_size 8", "patch_size 3"]),
        ("train.num_workers=7", ["train", "global_batch_size", "not a multiple of num_workers 7"]),
        ("objective.num_ar_steps=17", ["objective.num_ar_steps 17", "16 image tokens"]),
        ("sampling.num_ar_steps=17", ["sampling.num_ar_steps 17", "16 image tokens"]),
        ("name=a/b", ["name", "'a/b'"]),
        ("name=.hidden", ["name", "'.hidden'"]),
        ("name=''", ["name", "''"]),
        (f"name={'x' * 121}", ["name", "120"]),
    ],
)
def test_a_value_that_is_not_allowed(quickstart: dict[str, Any], override: str, parts: list[str]) -> None:
    message = fault_of(quickstart, override)
    assert "'quickstart' has 1 wrong value(s)" in message
    for part in parts:
        assert part in message
    assert "causalfusion config schema" in message


@pytest.mark.parametrize("section", ["objective", "sampling"])
@pytest.mark.parametrize("order", ["blockwise", "dilated"])
@pytest.mark.parametrize("block", [3, 0, -2])
def test_a_block_that_does_not_divide_the_grid(
    quickstart: dict[str, Any], section: str, order: str, block: int
) -> None:
    message = fault_of(quickstart, f"{section}.patch_order={order}", f"{section}.order_block={block}")
    assert f"{section}.order_block {block}" in message or f"order_block must be at least 1, got {block}" in message
    assert "causalfusion config schema" in message


def test_blocks_that_divide_the_grid_are_allowed(quickstart: dict[str, Any]) -> None:
    for block in (1, 2, 4):
        experiment = change(quickstart, "objective.patch_order=dilated", f"objective.order_block={block}")
        assert experiment.objective.order_block == block
    assert change(quickstart, "objective.order_block=3").objective.patch_order == "random"


def test_more_diffusion_steps_than_the_schedule_has(quickstart: dict[str, Any]) -> None:
    """Found here, not by the sampler, which first runs after minutes of training."""
    message = fault_of(quickstart, "sampling.num_inference_steps=1001")
    assert "num_inference_steps 1001" in message
    assert "1000" in message
    assert change(quickstart, "sampling.num_inference_steps=1000").sampling.num_inference_steps == 1000


def test_a_preset_that_is_not_a_name() -> None:
    message = message_of("quickstart", "model.preset=[tiny]")
    assert "['tiny']" in message
    assert "tiny, digits" in message


@pytest.mark.parametrize("text", ["images", "=3", "", "hydra.run.dir=x"])
def test_an_override_that_is_not_key_value(text: str) -> None:
    message = message_of("quickstart", text)
    assert f"override {text!r} is not of the form key=value, such as train.images=25600" in message
    assert "causalfusion config schema" in message


@pytest.mark.parametrize("text", ["train.images=[1", "description=a,b", "~seed=1"])
def test_an_override_that_cannot_be_read(text: str) -> None:
    message = message_of("quickstart", text)
    assert "does not compose" in message
    assert text in message
    assert "causalfusion config show quickstart" in message


def test_an_unknown_group_option() -> None:
    message = message_of("quickstart", "model=tyni")
    assert "model/tyni" in message
    assert all(group in message for group in MODEL_GROUPS)
    assert "causalfusion config show quickstart" in message


def test_an_environment_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    message = message_of("quickstart", "tracking.uri=${oc.env:NOT_SET_HERE}")
    assert "NOT_SET_HERE" in message
    assert "tracking.uri" in message


def test_a_file_that_is_not_yaml(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/broken.yaml", "name: [a\ntrain: }")
    assert "'broken'" in message_of("broken")


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
    assert load_experiment("one").model == dataclasses.replace(PRESETS["digits"], depth=2)
    assert load_experiment("one", ["model=tiny"]).model == dataclasses.replace(PRESETS["tiny"], depth=2)
    assert load_experiment("two").train == load_experiment("smoke").train
    assert {"one", "two", "smoke"} <= set(experiment_names())


def test_an_own_group_serves_shipped_experiments(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/model/small.yaml", "preset: digits\nclass_tokens: 7\n")
    experiment = load_experiment("quickstart", ["model=small"])
    assert experiment.model == dataclasses.replace(PRESETS["digits"], class_tokens=7)
    assert "small" in message_of("quickstart", "model=smoll")


@pytest.mark.parametrize("name", ["a (copy)", "a, b", "it's", "a=b", "[a]"])
@pytest.mark.filterwarnings("error")
def test_a_folder_of_any_name(own_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    place = own_folder / name
    write_yaml(place / "experiments/model/small.yaml", "preset: digits\nclass_tokens: 7\n")
    monkeypatch.chdir(place)
    assert load_experiment("quickstart", ["model=small"]).model.class_tokens == 7


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


def test_absolute_paths_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALFUSION_HOME", "/far/away")
    experiment = load_experiment("quickstart", ["runs=/r", "data.path=/d/e", "tracking.uri=http://h:5000"])
    assert (experiment.runs, experiment.data.path) == (Path("/r"), Path("/d/e"))
    assert experiment.tracking_uri == "http://h:5000"


# Secrets, the schema, changes in code


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
    assert composed.experiment.description == "hunter2"
    shown = public_config(composed)
    assert "hunter2" not in json.dumps(shown)
    assert shown["tracking"]["uri"] == "https://me:${oc.env:TRACKING_TOKEN}@host"
    assert shown["runs"] == "${oc.env:SCRATCH}"
    written = write_config(composed, own_folder).read_text()
    assert "hunter2" not in written
    assert yaml.safe_load(written) == shown


def test_what_is_shown_composes_to_the_same_experiment(own_folder: Path) -> None:
    """The file that a run leaves behind is an experiment itself."""
    composed = compose_experiment("sweeps/gamma", ["model=tiny", "train.images=300"])
    (own_folder / "experiments").mkdir()
    write_config(composed, own_folder / "experiments").rename(own_folder / "experiments/again.yaml")
    assert load_experiment("again") == composed.experiment


def test_the_schema_describes_every_field() -> None:
    schema = Experiment.model_json_schema()
    sections = {"Experiment": schema, **schema["$defs"]}
    assert {"CausalFusionConfig", "ObjectiveConfig", "TrainConfig", "SweepConfig"} <= set(sections)
    described = 0
    for name, section in sections.items():
        assert section["additionalProperties"] is False, name
        for key, field in section["properties"].items():
            references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(field))
            texts = [field.get("description"), *(sections[reference]["description"] for reference in references)]
            assert any(texts), f"{name}.{key}"
            described += 1
    assert described > 60


def test_the_schema_holds_the_ranges() -> None:
    schema = Experiment.model_json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    tree = load_experiment("quickstart").model_dump(mode="json")
    for section, key, value in (("train", "images", 0), ("optim", "ema_decay", 1.0), ("train", "zero_stage", 4)):
        assert not validator.is_valid(tree | {section: tree[section] | {key: value}})
    assert not validator.is_valid(tree | {"unknown": 1})


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
        experiment = load_experiment(name)
        assert with_overrides(experiment, {}, "x") == experiment


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
