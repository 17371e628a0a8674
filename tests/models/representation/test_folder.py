"""Folders of fine-tuned models: a round trip, and every wrong one named."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.random_models import randomised
from torch import Tensor

from causalfusion import CausalFusion, CausalFusionPipeline, DiT, TextConfig, load_weights, save_weights
from causalfusion.representation import (
    Captioner,
    CaptionerConfig,
    Classifier,
    ClassifierConfig,
    load_captioner_tokenizer,
    load_finetuned,
    load_finetuned_config,
    save_finetuned,
)
from causalfusion.text.tokenizer import Tokenizer, train_bpe
from causalfusion.weights import load_class_names

ModelMaker = Callable[..., CausalFusion]


def images(count: int, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(5))


def classifier(model: CausalFusion | DiT, **changes: Any) -> Classifier:
    config = ClassifierConfig(**({"backbone": model.config, "num_classes": 5, "drop_path": 0.1} | changes))
    return randomised(Classifier(config)).float()


def captioner(model: CausalFusion, tokenizer: Tokenizer) -> Captioner:
    text = TextConfig(vocabulary=tokenizer.size, max_tokens=7)
    return randomised(
        Captioner(CaptionerConfig(backbone=model.config, text=text, layer=1, width=12, num_heads=3))
    ).float()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a bold seven", "a light three"] * 2, vocabulary=260)


@pytest.mark.parametrize("position_embedding", ["sinusoidal", "learnable"])
def test_a_classifier_is_restored(tmp_path: Path, make_model: ModelMaker, position_embedding: str) -> None:
    model = classifier(make_model(position_embedding=position_embedding))
    names = ["Katze", "犬", "c", "d", "e"]
    save_finetuned(tmp_path / "new", model.config, model.state_dict(), class_names=names)
    files = ["classes.json", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == files
    assert json.loads((tmp_path / "new/config.json").read_text())["architecture"] == "classifier"
    loaded = load_finetuned(tmp_path / "new")
    assert isinstance(loaded, Classifier) and not loaded.training
    assert loaded.config == model.config == load_finetuned_config(tmp_path / "new")
    assert torch.equal(loaded(images(2)), model(images(2)))
    assert load_class_names(tmp_path / "new") == names


def test_a_classifier_of_a_dit_is_restored(tmp_path: Path, make_dit: Callable[..., DiT]) -> None:
    model = classifier(make_dit(), condition="null")
    save_finetuned(tmp_path, model.config, model.state_dict())
    loaded = load_finetuned(tmp_path)
    assert loaded.config == model.config
    assert isinstance(loaded, Classifier)
    assert torch.equal(loaded(images(2, 2)), model(images(2, 2)))


def test_a_captioner_is_restored_with_its_tokenizer(
    tmp_path: Path, make_model: ModelMaker, tokenizer: Tokenizer
) -> None:
    model = captioner(make_model(), tokenizer)
    save_finetuned(tmp_path, model.config, model.state_dict(), tokenizer=tokenizer)
    loaded = load_finetuned(tmp_path)
    assert isinstance(loaded, Captioner)
    tokens = torch.tensor([tokenizer.encode("a")])
    assert torch.equal(loaded(images(1), tokens), model(images(1), tokens))
    assert load_captioner_tokenizer(tmp_path).json == tokenizer.json
    named = dataclasses.replace(model.config.text, tokenizer_sha256=tokenizer.digest)
    assert loaded.config == dataclasses.replace(model.config, text=named)


def test_wrong_tokenizers(tmp_path: Path, make_model: ModelMaker, tokenizer: Tokenizer) -> None:
    model = captioner(make_model(), tokenizer)
    larger = train_bpe(["a bold seven seven leaning leaning"] * 2, vocabulary=400)
    assert larger.size > tokenizer.size
    with pytest.raises(ValueError, match=rf"the given tokenizer has {larger.size} tokens, but the model's table"):
        save_finetuned(tmp_path, model.config, model.state_dict(), tokenizer=larger)
    save_finetuned(tmp_path, model.config, model.state_dict())
    with pytest.raises(ValueError, match=r"there is no tokenizer at"):
        load_captioner_tokenizer(tmp_path)
    save_finetuned(tmp_path, model.config, model.state_dict(), tokenizer=tokenizer)
    (tmp_path / "tokenizer.json").write_text(train_bpe(["b"], vocabulary=258).json)
    with pytest.raises(ValueError, match=r"is not the tokenizer of the model's training"):
        load_captioner_tokenizer(tmp_path)
    other = classifier(make_model())
    save_finetuned(tmp_path, other.config, other.state_dict())
    with pytest.raises(ValueError, match=r"is a classifier, which has no tokenizer"):
        load_captioner_tokenizer(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_code_that_draws_images_refuses_them(tmp_path: Path, make_model: ModelMaker, tokenizer: Tokenizer) -> None:
    for model in (classifier(make_model()), captioner(make_model(), tokenizer)):
        save_finetuned(tmp_path, model.config, model.state_dict())
        message = (
            rf"config\.json is that of a fine-tuned {model.config.architecture}, which draws no images: load it "
            r"with causalfusion\.representation\.load_finetuned$"
        )
        with pytest.raises(ValueError, match=message):
            load_weights(tmp_path)
        with pytest.raises(ValueError, match=message):
            CausalFusionPipeline.from_weights(tmp_path)


def test_models_that_draw_images_are_refused(tmp_path: Path, make_model: ModelMaker) -> None:
    model = make_model()
    save_weights(tmp_path, model.config, model.state_dict())
    with pytest.raises(ValueError, match=r"architecture 'causalfusion' is not that of a fine-tuned model"):
        load_finetuned(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 2.5}, "num_classes must be a whole number, got 2.5"),
        ({"backbone": []}, "backbone must be the configuration of a model, got []"),
        ({"backbone": {"architecture": ["dit"]}}, "unknown architecture of the backbone: ['dit']"),
        ({"backbone": {"depth": 10**9}}, "depth must be at most 1,000"),
        ({"classes": 2}, "classes"),
        ({"architecture": "mamba"}, "the architecture 'mamba' is not that of a fine-tuned model"),
    ],
)
def test_a_damaged_configuration(
    tmp_path: Path, make_model: ModelMaker, changes: dict[str, Any], message: str
) -> None:
    model = classifier(make_model())
    save_finetuned(tmp_path, model.config, model.state_dict())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_finetuned(tmp_path)
    assert str(file) in str(caught.value)


def test_damaged_tensors(tmp_path: Path, make_model: ModelMaker) -> None:
    model = classifier(make_model())
    state = model.state_dict()
    save_finetuned(tmp_path, model.config, state | {"head.bias": torch.zeros(6)})
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.bias"):
        load_finetuned(tmp_path)
    save_finetuned(tmp_path, model.config, {name: state[name] for name in state if name != "norm.weight"})
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.weight"):
        load_finetuned(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_finetuned(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        load_finetuned(tmp_path)
