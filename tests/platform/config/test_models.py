"""The two kinds of models in an experiment, and lists in its sampling."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.config.trees import change, fault_of, load_experiment, message_of, write_yaml

from causalfusion import PRESETS, CausalFusionConfig, DiTConfig, SamplingConfig, preset
from causalfusion_platform.config.compose import validate, with_overrides
from causalfusion_platform.config.schema import Experiment

DIT = ("model={preset: digits-dit}", "objective.num_ar_steps=1")
SIZES = "input_size, in_channels, patch_size, hidden_size, depth, num_heads, mlp_ratio, num_classes"
TIME_TOKEN = "model.time_conditioning=token"


# The kinds


def test_a_dit_by_its_preset() -> None:
    experiment = load_experiment("quickstart", ["++model.preset=digits-dit", "objective.num_ar_steps=1"])
    assert experiment.model == PRESETS["digits-dit"]
    assert isinstance(experiment.model, DiTConfig)
    changed = load_experiment(
        "quickstart", ["model.preset=digits-dit", "model.depth=2", "objective.num_ar_steps=1"]
    )
    assert changed.model == preset("digits-dit", depth=2)


def test_a_dit_by_a_group(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/model/plain.yaml", "architecture: dit\nhidden_size: 8\nnum_heads: 2\n")
    write_yaml(own_folder / "experiments/model/named.yaml", "preset: digits-dit\nlearn_sigma: false\n")
    plain = load_experiment("quickstart", ["model=plain", "objective.num_ar_steps=1", "model.depth=1"])
    assert plain.model == DiTConfig(hidden_size=8, num_heads=2, depth=1)
    named = load_experiment("quickstart", ["model=named", "objective.num_ar_steps=1"])
    assert named.model == preset("digits-dit", learn_sigma=False)


def test_a_model_is_a_causalfusion_unless_it_says_otherwise(quickstart: dict[str, Any]) -> None:
    assert change(quickstart, "model={depth: 3}").model == CausalFusionConfig(depth=3)
    assert change(quickstart, "model={architecture: causalfusion}").model == CausalFusionConfig()


def test_another_preset_in_code_changes_the_kind(quickstart: dict[str, Any]) -> None:
    changes = {"model.preset": "digits-dit", "objective.num_ar_steps": 1}
    dit = with_overrides(change(quickstart), changes, "x")
    assert dit.model == PRESETS["digits-dit"]
    assert with_overrides(dit, {"model.preset": "tiny"}, "x").model == PRESETS["tiny"]
    assert with_overrides(dit, {"model.depth": 2}, "x").model == preset("digits-dit", depth=2)


# Wrong keys and values


@pytest.mark.parametrize(
    ("overrides", "fault", "nearest"),
    [
        ([], "model.class_token", "model.class_tokens"),
        ([], "model.qk_nrom", "model.qk_norm"),
        ([], "model.archtecture", "model.architecture"),
        (DIT, "model.learn_sigmas", "model.learn_sigma"),
        (DIT, "model.hiden_size", "model.hidden_size"),
        (DIT, "model.presets", "model.preset"),
        (DIT, "model.class_tokens", "model.num_classes"),
    ],
)
def test_an_unknown_key_is_named_as_it_was_written(
    quickstart: dict[str, Any], overrides: list[str], fault: str, nearest: str
) -> None:
    """Without the kind of model, that is; and the keys that are listed are those of the kind."""
    message = fault_of(quickstart, *overrides, f"{fault}=3")
    assert f"\n  {fault}: unknown key; did you mean {nearest!r}?" in message
    assert "'quickstart' has 1 wrong value(s)" in message
    listed = re.search(r"keys here: (.*)", message)
    assert listed is not None
    own = {"learn_sigma"}
    if not overrides:
        own = {"class_tokens", "class_token_repeat", "position_embedding", "qk_norm", "text", "time_conditioning"}
    assert set(listed[1].split(", ")) == {"architecture", "preset", *SIZES.split(", ")} | own


@pytest.mark.parametrize("key", ["dit", "causalfusion"])
@pytest.mark.parametrize("overrides", [[], DIT])
def test_a_key_that_is_called_as_a_kind(quickstart: dict[str, Any], overrides: list[str], key: str) -> None:
    assert f"\n  model.{key}: unknown key; " in fault_of(quickstart, *overrides, f"model.{key}=3")


@pytest.mark.parametrize("overrides", [[], DIT])
def test_a_wrong_value_is_named_as_it_was_written(quickstart: dict[str, Any], overrides: list[str]) -> None:
    message = fault_of(quickstart, *overrides, "model.depth=deep")
    assert re.search(r"\n  model\.depth: .* integer.* \(got 'deep'\)", message)
    message = fault_of(quickstart, *overrides, "model.depth=0")
    assert "\n  model: depth must be at least 1, got 0" in message
    message = fault_of(quickstart, *overrides, "model.patch_size=3")
    assert "\n  model: input_size 8 is not a multiple of patch_size 3" in message


def test_an_unknown_kind(quickstart: dict[str, Any]) -> None:
    message = fault_of(quickstart, "model.architecture=unet")
    assert re.search(r"\n  model: .*'unet'.*'causalfusion', 'transfusion', 'dit'", message)
    assert "\n  model: " in fault_of(quickstart, "model=3")


# What a model cannot do


def test_a_dit_has_no_ar_steps(quickstart: dict[str, Any]) -> None:
    dit = "model={preset: digits-dit}"
    for objective in ("objective={}", "objective.num_ar_steps=2", "objective.ar_decay=0.5"):
        message = fault_of(quickstart, dit, objective)
        assert "DiT has no AR steps: train it with objective.num_ar_steps=1" in message
    sampled = (
        "sampling.num_ar_steps=2",
        "sampling.step_sizes=[8, 8]",
        "sampling={num_ar_steps: 2, step_sizes: random}",
    )
    for sampling in sampled:
        message = fault_of(quickstart, *DIT, sampling)
        assert "DiT has no AR steps: sampling.num_ar_steps must be 1, got 2" in message
    for allowed in ("objective.num_ar_steps=1", "objective.ar_decay=0"):  # γ = 0: always S = 1
        assert change(quickstart, dit, allowed).model == PRESETS["digits-dit"]
    assert change(quickstart, *DIT, "sampling.step_sizes=[16]").sampling.step_sizes == (16,)


@pytest.mark.parametrize("many", ["objective.time_sampling=per_step", "objective.time_copies=4"])
def test_one_diffusion_time_per_sample(quickstart: dict[str, Any], many: str) -> None:
    """A time token and a DiT have room for one; an embedding is added to each noised token."""
    assert "a time token carries one diffusion time per sample" in fault_of(quickstart, TIME_TOKEN, many)
    assert "DiT has one diffusion time per sample" in fault_of(quickstart, *DIT, many)
    change(quickstart, many)
    model = change(quickstart, TIME_TOKEN, "objective.time_copies=1").model
    assert model == preset("digits", time_conditioning="token")


# Lists in sampling


LISTS = "{num_ar_steps: 1, step_sizes: [5, 11], num_inference_steps: [4, 8], guidance_interval: [100, 900]}"


def check_lists(experiment: Experiment) -> None:
    sampling = experiment.sampling
    assert (sampling.step_sizes, sampling.num_inference_steps) == ((5, 11), (4, 8))
    assert sampling.guidance_interval == (100, 900)
    for value in (sampling.step_sizes, sampling.num_inference_steps, sampling.guidance_interval):
        assert isinstance(value, tuple)  # lists could be changed, and a frozen record cannot


def test_lists_from_a_file(own_folder: Path) -> None:
    text = f"defaults: [quickstart, _self_]\nname: lists\nsampling: {LISTS}\n"
    write_yaml(own_folder / "experiments/lists.yaml", text)
    check_lists(load_experiment("lists"))


def test_lists_from_overrides() -> None:
    overrides = [
        "sampling.step_sizes=[5,11]",
        "sampling.num_inference_steps=[4, 8]",
        "sampling.guidance_interval=[100,900]",
    ]
    check_lists(load_experiment("quickstart", overrides))


def test_lists_return_from_json(quickstart: dict[str, Any]) -> None:
    experiment = change(quickstart, f"sampling={LISTS}")
    dumped = json.loads(json.dumps(experiment.model_dump(mode="json")))
    assert dumped["sampling"]["num_inference_steps"] == [4, 8]
    assert validate(dumped, "again") == experiment
    check_lists(validate(dumped, "again"))
    check_lists(with_overrides(experiment, {"seed": 1}, "x"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_returns_from_json(quickstart: dict[str, Any], name: str) -> None:
    steps = 1 if PRESETS[name].architecture == "dit" else 4
    experiment = change(quickstart, f"model={{preset: {name}}}", f"objective.num_ar_steps={steps}")
    dumped = experiment.model_dump(mode="json")
    assert dumped["model"] == dataclasses.asdict(PRESETS[name])
    assert validate(json.loads(json.dumps(dumped)), "again") == experiment
    assert validate(yaml.safe_load(yaml.safe_dump(dumped)), "again") == experiment


@pytest.mark.parametrize(
    ("sampling", "parts"),
    [
        ("sampling.step_sizes=[5, 12]", ["sampling", "add up to 16, got [5, 12]"]),
        ("sampling.step_sizes=[16, 0]", ["sampling", "step_sizes must be positive"]),
        ("sampling.step_sizes=halves", ["\n  sampling.step_sizes: ", "'equal' or 'random'", "(got 'halves')"]),
        ("sampling.num_inference_steps=few", ["\n  sampling.num_inference_steps: ", "integer", "(got 'few')"]),
        ("sampling.num_inference_steps=[4, few]", ["\n  sampling.num_inference_steps.1: ", "(got 'few')"]),
        ("sampling.num_inference_steps=[4, 8]", ["sampling", "2 AR steps", "1"]),
        ("sampling.num_inference_steps=[]", ["sampling", "num_inference_steps must be at least 1"]),
        (
            "sampling={num_ar_steps: 2, num_inference_steps: [4, 1001]}",
            ["num_inference_steps", "[1, 1000], got 1001"],
        ),
        ("sampling.guidance_interval=[100]", ["sampling.guidance_interval"]),
        ("sampling={num_ar_steps: 3, step_sizes: [8, 8]}", ["step_sizes names 2 AR steps, but num_ar_steps is 3"]),
    ],
)
def test_lists_that_do_not_fit(quickstart: dict[str, Any], sampling: str, parts: list[str]) -> None:
    message = fault_of(quickstart, sampling)
    for part in parts:
        assert part in message
    assert "tuple[" not in message


def test_a_list_that_does_not_fit_is_named_by_its_override() -> None:
    message = message_of("quickstart", "sampling.num_inference_steps=[4,0]")
    assert "num_inference_steps must be at least 1, got (4, 0)" in message


def test_lists_of_a_record_made_in_code_are_frozen() -> None:
    given: Any = [5, 11]
    config = SamplingConfig(step_sizes=given, num_inference_steps=given, guidance_interval=given)
    given[0] = 0
    assert config.step_sizes == config.num_inference_steps == config.guidance_interval == (5, 11)
