"""Weights on disk: safetensors and JSON, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from causalfusion import (
    CausalFusion,
    DiffusionConfig,
    DiT,
    DiTConfig,
    build_model,
    load_weights,
    save_weights,
)
from causalfusion.weights import load_class_names, load_diffusion

ModelMaker = Callable[..., CausalFusion]


def assert_restored(folder: Path, model: CausalFusion | DiT) -> None:
    loaded = load_weights(folder)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.positions, model.positions)


@pytest.mark.parametrize("position_embedding", ["sinusoidal", "learnable"])
def test_round_trip_is_exact(tmp_path: Path, make_model: ModelMaker, position_embedding: str) -> None:
    model = make_model(position_embedding=position_embedding, class_token_repeat=2, qk_norm=False).float()
    folder = tmp_path / "new" / "folder"
    save_weights(folder, model.config, model.state_dict())
    assert_restored(folder, model)


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_round_trip_of_a_dit_is_exact(tmp_path: Path, learn_sigma: bool) -> None:
    config = DiTConfig(
        input_size=4,
        in_channels=2,
        hidden_size=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        learn_sigma=learn_sigma,
    )
    model = DiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_weights(tmp_path, model.config, model.state_dict())
    assert_restored(tmp_path, model)


def test_the_folder_holds_safetensors_and_json_only(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model().float()
    save_weights(tmp_path, model.config, model.state_dict())
    names = ["config.json", "diffusion.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "config.json").read_text()) == dataclasses.asdict(model.config)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_the_noise_process_is_kept(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model().float()
    process = DiffusionConfig(
        num_train_steps=77,
        beta_start=1 / 3000,
        beta_end=1 / 70,
        beta_schedule="scaled_linear",
        prediction="x0",
        variance="fixed_small",
    )
    save_weights(tmp_path, model.config, model.state_dict(), process)
    assert load_diffusion(tmp_path) == process


def test_names_of_classes_are_kept(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model().float()
    names = ["Katze", "犬", 'a "quoted", name']
    save_weights(tmp_path, model.config, model.state_dict(), class_names=names)
    assert load_class_names(tmp_path) == names
    assert json.loads((tmp_path / "classes.json").read_bytes().decode()) == names
    save_weights(tmp_path, model.config, model.state_dict())  # others, of which they are not known
    assert load_class_names(tmp_path) is None
    (tmp_path / "classes.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"classes\.json is not a list of names"):
        load_class_names(tmp_path)


def test_the_noise_process_is_the_papers_if_none_is_named(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model().float()
    save_weights(tmp_path, model.config, model.state_dict())
    assert json.loads((tmp_path / "diffusion.json").read_text()) == {
        "num_train_steps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction": "epsilon",
        "variance": "fixed_large",
    }


def test_folders_of_earlier_versions_load(tmp_path: Path, make_model: ModelMaker) -> None:
    """They have no `diffusion.json`, and their configuration names no architecture."""
    model = make_model().float()
    save_weights(tmp_path, model.config, model.state_dict())
    (tmp_path / "diffusion.json").unlink()
    (tmp_path / "config.json").write_text(
        """{
          "input_size": 8, "in_channels": 1, "patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2,
          "mlp_ratio": 4.0, "num_classes": 3, "class_tokens": 2, "class_token_repeat": 1,
          "position_embedding": "sinusoidal", "qk_norm": true
        }"""
    )
    assert_restored(tmp_path, model)
    process = load_diffusion(tmp_path)
    assert (process.num_train_steps, process.prediction, process.variance) == (1000, "epsilon", "fixed_large")


def test_an_unknown_architecture_is_named(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model().float()
    save_weights(tmp_path, model.config, model.state_dict())
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"causalfusion"', '"mamba"'))
    with pytest.raises(
        ValueError, match=r"config\.json: unknown architecture 'mamba'; known: causalfusion, transfusion, dit$"
    ):
        load_weights(tmp_path)


def test_saving_again_replaces(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model().float()
    save_weights(tmp_path, model.config, model.state_dict(), DiffusionConfig(prediction="v"))
    torch.nn.init.constant_(model.head.bias, 7.0)
    save_weights(tmp_path, model.config, model.state_dict())
    assert load_weights(tmp_path).head.bias.tolist() == [7.0] * 4
    assert load_diffusion(tmp_path).prediction == "epsilon"


def test_views_and_gradients_are_saved_as_plain_tensors(tmp_path: Path, make_model: ModelMaker) -> None:
    """States from an optimizer or a sharded engine may be transposed, expanded, or require gradients."""
    model = make_model().float()
    state: dict[str, Tensor] = dict(model.named_parameters())
    state["head.weight"] = state["head.weight"].detach().T.contiguous().T
    assert not state["head.weight"].is_contiguous()
    save_weights(tmp_path, model.config, state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(load_weights(tmp_path).state_dict()[name], tensor), name


def altered(make_model: ModelMaker, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Save a tiny model whose state was changed."""
    model = make_model().float()
    state = model.state_dict()
    change(state)
    save_weights(folder, model.config, state)


def test_a_missing_key_is_named(tmp_path: Path, make_model: ModelMaker) -> None:
    altered(make_model, tmp_path, lambda state: state.pop("blocks.1.attn.qkv.weight"))
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.1\.attn\.qkv\.weight"):
        load_weights(tmp_path)


def test_an_unexpected_key_is_named(tmp_path: Path, make_model: ModelMaker) -> None:
    altered(make_model, tmp_path, lambda state: state.update({"blocks.9.extra": torch.zeros(1)}))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*blocks\.9\.extra"):
        load_weights(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path, make_model: ModelMaker) -> None:
    altered(make_model, tmp_path, lambda state: state.update({"head.bias": torch.zeros(5)}))
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.bias"):
        load_weights(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, make_model: ModelMaker, name: str) -> None:
    model = make_model().float()
    save_weights(tmp_path, model.config, model.state_dict())
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 1.5}, "depth must be a whole number, got 1.5"),
        ({"depth": True}, "depth must be a whole number, got True"),
        ({"depth": "2"}, "depth must be a whole number, got '2'"),
        ({"depth": None}, "depth must be a whole number, got None"),
        ({"depth": 10**9}, "depth must be at most 1,000, got 1000000000"),
        ({"hidden_size": 2**40}, "hidden_size must be at most 65,536, got 1099511627776"),
        ({"input_size": 4096, "patch_size": 1}, "num_tokens must be at most 65,536"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio must be a finite number, got inf"),
        ({"mlp_ratio": 10**400}, "mlp_ratio must be at most 100"),
        ({"qk_norm": 1}, "qk_norm must be true or false, got 1"),
        ({"position_embedding": ["learnable"]}, "position_embedding must be one of sinusoidal, learnable"),
        ({"architecture": ["dit"]}, "unknown architecture ['dit']"),
        ({"tokens": 3}, "tokens"),
    ],
)
def test_a_configuration_of_another_type_or_size(
    tmp_path: Path, make_model: ModelMaker, changes: dict[str, object], message: str
) -> None:
    model = make_model()
    save_weights(tmp_path, model.config, model.state_dict())
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_weights(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "3", "", "{", "[" * 200_000, "\xff", " " * (17 << 20)])
def test_a_configuration_that_is_none(tmp_path: Path, make_model: ModelMaker, content: str) -> None:
    model = make_model()
    save_weights(tmp_path, model.config, model.state_dict())
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))):
        load_weights(tmp_path)


def test_sizes_are_compared_before_they_are_allocated(tmp_path: Path, make_model: ModelMaker) -> None:
    """A model of these sizes would have 10¹² parameters."""
    model = make_model()
    save_weights(tmp_path, model.config, model.state_dict())
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"hidden_size": 65_536, "num_heads": 2, "depth": 20}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(tmp_path)


def test_a_damaged_file_of_tensors(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model()
    save_weights(tmp_path, model.config, model.state_dict())
    whole = (tmp_path / "model.safetensors").read_bytes()
    for content in (b"", whole[:100], b"\xff" * 64, whole[:-1]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "model.safetensors"))):
            load_weights(tmp_path)


def test_loading_draws_no_random_number_more_than_building(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model()
    save_weights(tmp_path, model.config, model.state_dict())
    torch.manual_seed(0)
    load_weights(tmp_path)
    after = torch.rand(1)
    torch.manual_seed(0)
    build_model(model.config)
    assert torch.equal(torch.rand(1), after)
