"""The JSON schema: a description of every field, the ranges, and what satisfies it."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import jsonschema
import pytest
from tests.platform.config.trees import load_experiment, shipped

from causalfusion import CausalFusionConfig, DiffusionConfig, DiTConfig, ObjectiveConfig, SamplingConfig
from causalfusion_platform.config.files import experiment_names
from causalfusion_platform.config.schema import Experiment

RECORDS = (CausalFusionConfig, DiTConfig, DiffusionConfig, ObjectiveConfig, SamplingConfig)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return Experiment.model_json_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Any:
    return jsonschema.Draft202012Validator(schema)


def test_every_field_is_described(schema: dict[str, Any]) -> None:
    """By itself, or by the section that it holds."""
    sections = {"Experiment": schema, **schema["$defs"]}
    for name, section in sections.items():
        assert section["additionalProperties"] is False, name
        for key, field in section["properties"].items():
            references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(field))
            texts = [field.get("description"), *(sections[reference]["description"] for reference in references)]
            assert any(texts), f"{name}.{key}"
    assert sum(len(section["properties"]) for section in sections.values()) > 90


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_of_a_record_is_described_by_itself(schema: dict[str, Any], record: type) -> None:
    """Also those that `architecture` chooses between."""
    properties = schema["$defs"][record.__name__]["properties"]
    assert list(properties) == [field.name for field in dataclasses.fields(record)]
    for key, field in properties.items():
        assert len(field["description"]) > 10, key


def test_shipped_experiments_satisfy_it(validator: Any) -> None:
    for name in experiment_names():
        validator.validate(shipped(name).model_dump(mode="json"))


def test_experiments_with_a_dit_and_with_lists_satisfy_it(validator: Any) -> None:
    experiment = load_experiment("quickstart", ["model.preset=digits-dit", "objective.num_ar_steps=1"])
    validator.validate(experiment.model_dump(mode="json"))
    lists = ["sampling.step_sizes=[5,11]", "sampling.num_inference_steps=[4,8]", "sampling.guidance_interval=[0,9]"]
    validator.validate(load_experiment("quickstart", lists).model_dump(mode="json"))


def test_it_holds_the_ranges(validator: Any) -> None:
    tree = load_experiment("quickstart").model_dump(mode="json")
    for section, key, value in (("train", "images", 0), ("optim", "ema_decay", 1.0), ("train", "zero_stage", 4)):
        assert not validator.is_valid(tree | {section: tree[section] | {key: value}})
    assert not validator.is_valid(tree | {"unknown": 1})


def test_it_tells_the_kinds_of_models_apart(validator: Any) -> None:
    tree = load_experiment("quickstart").model_dump(mode="json")
    assert not validator.is_valid(tree | {"model": tree["model"] | {"architecture": "dit"}})  # has class tokens
    assert not validator.is_valid(tree | {"model": tree["model"] | {"architecture": "unet"}})
    assert validator.is_valid(tree | {"model": {"architecture": "dit", "depth": 3}})
