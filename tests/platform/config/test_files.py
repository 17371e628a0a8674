"""Experiments are files: found by a name or a path, listed with their descriptions, and explained key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.config.trees import load_experiment, message_of, shipped, write_yaml

from causalfusion import PRESETS
from causalfusion_platform.config.compose import flatten
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.explain import explain, origin
from causalfusion_platform.config.files import (
    description_of,
    experiment_files,
    experiment_folders,
    experiment_names,
)
from causalfusion_platform.config.schema import Experiment

MINE = "defaults: [smoke, _self_]\nname: mine\ndescription: what I try\n"


@pytest.mark.parametrize(
    "given", ["mine.yaml", "./mine", "./mine.yaml", "{here}/mine.yaml", "{here}/mine", "sub/../mine"]
)
def test_a_file_anywhere(own_folder: Path, given: str) -> None:
    write_yaml(own_folder / "mine.yaml", MINE)
    (own_folder / "sub").mkdir()
    found = load_experiment(given.format(here=own_folder), ["model=digits"])
    assert found.name == "mine"
    assert (found.model, found.train) == (PRESETS["digits"], load_experiment("smoke").train)


@pytest.mark.parametrize("given", ["tries/mine", "experiments/tries/mine.yaml", "./experiments/tries/mine"])
@pytest.mark.parametrize("header", ["", "# @package _global_\n"])
def test_a_file_in_a_folder_below(own_folder: Path, given: str, header: str) -> None:
    """Also without the header that Hydra asks for there."""
    defaults = "[/smoke, _self_]" if header else "[smoke, _self_]"
    write_yaml(own_folder / "experiments/tries/mine.yaml", f"{header}defaults: {defaults}\nname: mine\n")
    write_yaml(own_folder / "experiments/model/small.yaml", "preset: digits\nclass_tokens: 7\n")
    assert load_experiment(given).name == "mine"
    assert load_experiment(given, ["model=small"]).model.class_tokens == 7  # type: ignore[union-attr]
    assert "tries/mine" in experiment_names()


def test_a_path_is_never_a_name(own_folder: Path) -> None:
    write_yaml(own_folder / "smoke.yaml", "name: here\nmodel: {preset: tiny}\n")
    assert load_experiment("smoke").name == load_experiment("smoke.yaml").name == "smoke"
    assert load_experiment("./smoke").name == "here"
    assert "no experiment './quickstart'; did you mean 'quickstart'?" in message_of("./quickstart")
    message = message_of("elsewhere/mine.yaml")
    assert f"and for the file {own_folder / 'elsewhere/mine.yaml'}" in message


def test_own_experiments_are_known(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/deep/er/mine.yaml", MINE)
    write_yaml(own_folder / "experiments/commented.yaml", "# @package _global_\n# Tries something.\nname: b\n")
    write_yaml(own_folder / "experiments/broken.yaml", "name: [a\n")
    write_yaml(own_folder / "experiments/model/small.yaml", "preset: digits\n")
    files = experiment_files()
    mine = {name: description_of(file.path) for name, file in files.items() if own_folder in file.path.parents}
    assert mine == {
        "deep/er/mine": "what I try",
        "commented": "Tries something.",
        "broken": "(this file is not YAML)",
    }
    assert all(description_of(file.path) for file in files.values())


def test_the_shipped_folder_is_nobodys_own(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from causalfusion_platform.config import files

    assert files.own_folder() is None
    monkeypatch.chdir(experiment_folders()[-1].parent)
    assert files.own_folder() is None


# Explanations


def test_every_key_is_explained() -> None:
    for name in ("quickstart", "sweeps/gamma"):
        tree = shipped(name).model_dump(mode="json")
        tree["sweep"] = {**tree["sweep"], "grid": {}} if tree["sweep"] else None
        for key, value in flatten(tree):
            found = explain(key)
            assert len(found.meaning) > 10, key
            assert found.kind, key
            assert not found.keys or value in ({}, None), key


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("train.images", "whole number, ≥ 1", "102400"),
        ("optim.ema_decay", "number, ≥ 0, < 1", "0.9999"),
        ("optim.betas", "list of number, ≥ 0, < 1", "[0.9, 0.95]"),
        ("train.zero_stage", "0 or 1 or 2 or 3 or null", "null"),
        ("data.posterior", "sample or mean", '"sample"'),
        ("data.prepare", "true or false or split or captions or mnist or mnist-captions", "false"),
        ("supervision.min_workers", "whole number, ≥ 1 or null", "null"),
        ("train.staging", "path or null", "null"),
        ("tracking.experiment", "text", '"causalfusion"'),
        ("tracking.tags.row", "text", "none"),
        ("tracking.tags", "mapping", "none"),
        ("name", "text that matches ^[A-Za-z0-9][A-Za-z0-9._-]*$", "it must be given"),
        ("model.depth", "whole number", "24"),
        ("sampling.sampler", "ddpm or ddim or dpm-solver++ or unipc", '"ddpm"'),
        ("sweep.asha.grace_images", "whole number, ≥ 1", "it must be given"),
    ],
)
def test_types_ranges_and_defaults(key: str, kind: str, default: str) -> None:
    found = explain(key)
    assert (found.kind, found.default) == (kind, default)


def test_presets_are_explained() -> None:
    assert explain("model.preset").kind == " or ".join(PRESETS)


def test_a_section_lists_its_keys() -> None:
    found = explain("optim")
    assert found.meaning.startswith("AdamW, its learning-rate rule")
    assert list(found.keys) == list(Experiment.model_fields["optim"].annotation.model_fields)  # type: ignore[union-attr]
    assert found.keys["weight_decay"] == "AdamW weight decay (Table 9: 0)"


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(
        UserError, match=r"no key 'optim.base_rl'; did you mean 'optim.base_lr'\?\n  keys of optim: "
    ):
        explain("optim.base_rl")
    with pytest.raises(UserError, match=r"no key 'trian'; did you mean 'train'\?"):
        explain("trian")


def test_where_a_value_comes_from(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/mine.yaml", f"{MINE}train: {{images: 640}}\n")
    write_yaml(own_folder / "experiments/model/small.yaml", "preset: tiny\ndepth: 1\n")
    smoke = experiment_folders()[-1] / "smoke.yaml"
    assert origin("train.images", "mine", []) == "experiments/mine.yaml"
    assert origin("train.images", "mine", ["train.images=5", "seed=3"]) == "override train.images=5"
    assert origin("train.log_every_images", "mine", []) == str(smoke)
    assert origin("train.keep_best", "mine", []) == "the default"
    assert origin("model.num_heads", "mine", []) == "the model's preset"
    assert origin("model.depth", "mine", ["model=small"]) == "experiments/model/small.yaml"
    assert origin("objective.ar_decay", "table3a/mnist/gamma-0.9", []).endswith("table3a/mnist/gamma-0.9.yaml")
    assert origin("optim.ema_decay", "table3a/mnist/gamma-0.9", []).endswith("base/mnist.yaml")
