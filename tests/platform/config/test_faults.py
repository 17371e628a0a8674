"""What is said about wrong experiments: which key, what was given, what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tests.platform.config.trees import (
    MODEL_GROUPS,
    SHIPPED,
    change,
    fault_of,
    load_experiment,
    message_of,
    write_yaml,
)

from causalfusion_platform.config.compose import flatten, validate, with_overrides
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.files import experiment_names


def test_an_unknown_experiment() -> None:
    message = message_of("quikstart")
    assert "no experiment 'quikstart'; did you mean 'quickstart'?" in message
    assert f"experiments: {', '.join(experiment_names())}" in message
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
        ("train.global_batch=3", "train.global_batch", "train.global_batch_size"),
        ("optim.base_rl=3", "optim.base_rl", "optim.base_lr"),
        ("data.window=3", "data.window", "data.window_rows"),
        ("tracking.url=x", "tracking.url", "tracking.uri"),
        ("model.dept=3", "model.dept", "model.depth"),
        ("model.presets=tiny", "model.presets", "model.preset"),
        ("objective.ar_decy=1", "objective.ar_decy", "objective.ar_decay"),
        ("sampling.ar_steps=3", "sampling.ar_steps", "sampling.num_ar_steps"),
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
        (
            "data.prepare=maybe",
            ["data.prepare", "true, false, split, captions, mnist or mnist-captions", "'maybe'"],
        ),
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
    assert "num_inference_steps: ddpm's diffusion steps must lie in [1, 1000], got 1001" in message
    solver = fault_of(quickstart, "sampling.num_inference_steps=1000", "sampling.sampler=unipc")
    assert "unipc's diffusion steps must lie in [1, 999], got 1000" in solver
    assert change(quickstart, "sampling.num_inference_steps=1000").sampling.num_inference_steps == 1000


def test_a_preset_that_is_not_a_name(quickstart: dict[str, Any]) -> None:
    message = fault_of(quickstart, "model.preset=[tiny]")
    assert "['tiny']" in message
    assert "tiny, digits" in message


@pytest.mark.parametrize("text", ["images", "=3", "", "hydra.run.dir=x"])
def test_an_override_that_is_not_key_value(text: str) -> None:
    message = message_of("quickstart", text)
    assert f"override {text!r} is not of the form key=value, such as train.images=25600" in message
    assert "causalfusion config schema" in message


@pytest.mark.parametrize("text", ["train.images=[1", "sweep.grid=a,b", "~seed=1", "model=3", "model=null"])
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


def test_a_key_of_an_earlier_version_is_refused_where_it_is_given(quickstart: dict[str, Any]) -> None:
    for text in ("evaluation.classifier_epochs=3", "+evaluation.classifier_epochs=3"):
        message = message_of("quickstart", text)
        assert message.startswith("evaluation.classifier_epochs does not exist any more: one classifier scores all")
        assert "evaluation.score=false" in message
    with pytest.raises(UserError, match=r"evaluation\.classifier_epochs does not exist any more"):
        with_overrides(change(quickstart), {"evaluation.classifier_epochs": 3}, "trial")


def test_a_key_of_an_earlier_version_has_no_effect_in_files_and_runs(
    own_folder: Path, quickstart: dict[str, Any], log_lines: list[str]
) -> None:
    assert change(quickstart, "evaluation.classifier_epochs=3") == change(quickstart)  # as in run.json
    assert log_lines == []
    text = "defaults: [quickstart, _self_]\nevaluation: {classifier_epochs: 3}\n"
    write_yaml(own_folder / "experiments/old.yaml", text)
    assert load_experiment("old").evaluation == load_experiment("quickstart").evaluation
    (line,) = log_lines
    assert line.startswith("evaluation.classifier_epochs of old.yaml has no effect: one classifier scores all runs")


def test_a_key_with_another_name_now_is_refused_where_it_is_given(quickstart: dict[str, Any]) -> None:
    message = message_of("quickstart", "data.heldout=shards/val")
    assert message == "data.heldout is data.validation now\n  type: data.validation=…"
    with pytest.raises(UserError, match=r"data\.heldout is data\.validation now"):
        with_overrides(change(quickstart), {"data.heldout": "shards/val"}, "trial")
    both = {**quickstart, "data": {**quickstart["data"], "heldout": "a", "validation": "b"}}
    with pytest.raises(UserError, match=r"data\.heldout is data\.validation now, and both are given\n  leave data"):
        validate(both, "quickstart")


def test_a_key_with_another_name_now_is_read_in_files_and_runs(
    own_folder: Path, quickstart: dict[str, Any], log_lines: list[str]
) -> None:
    data = change(quickstart).model_dump(mode="json")["data"]
    del data["validation"]
    recorded = {**quickstart, "data": {**data, "heldout": str(own_folder / "val")}}
    assert validate(recorded, "run.json").data.validation == own_folder / "val"
    assert recorded["data"]["heldout"] == str(own_folder / "val")  # the given tree is not changed
    assert validate({**recorded, "data": {**data, "heldout": None}}, "run.json").data.validation is None
    assert log_lines == []
    write_yaml(own_folder / "experiments/old.yaml", "defaults: [quickstart, _self_]\ndata: {heldout: val}\n")
    assert load_experiment("old").data.validation == own_folder / "val"
    assert log_lines == ["data.heldout of old.yaml is data.validation now: rename it there"]


def test_scores_of_grids_without_scores(quickstart: dict[str, Any]) -> None:
    message = fault_of(quickstart, "evaluation.score=false", "evaluation.while_training=true")
    assert "evaluation: while_training scores samples, but score is false" in message


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_may_be_infinite_or_nan(quickstart: dict[str, Any], value: float) -> None:
    """Each number of the tree in turn."""
    tree = change(quickstart).model_dump(mode="json")
    keys = [key for key, number in flatten(tree) if isinstance(number, float)]
    assert len(keys) > 15
    for key in keys:
        changed = copy.deepcopy(tree)
        *path, last = key.split(".")
        node = changed
        for part in path:
            node = node[part]
        node[last] = value
        with pytest.raises(UserError, match="has 1 wrong value"):
            validate(changed, "quickstart")


def test_infinity_on_the_command_line() -> None:
    assert "optim.base_lr: Input should be a finite number (got inf)" in message_of(
        "quickstart", "optim.base_lr=inf"
    )


def test_names_that_are_far_too_long() -> None:
    assert "name: String should have at most 120 characters" in message_of("quickstart", f"name={'x' * 5000}")
    message = message_of("quickstart", f"tracking.experiment={'x' * 5000}")
    assert "tracking.experiment: String should have at most 256 characters" in message
    assert len(message) < 1000


@pytest.mark.parametrize("key", ["objective.time_copies", "objective.sequence_multiple", "model.depth"])
def test_numbers_that_would_take_all_memory(key: str) -> None:
    assert "must be at most" in message_of("quickstart", f"{key}={10**9}")
