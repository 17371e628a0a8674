"""The classifier: features, average, norm and head against numpy; drop path against its law; wrong input."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.random_models import randomised
from tests.models.representation.naive_vit import NaiveViT
from torch import Tensor, nn

from causalfusion import CausalFusion, DiT, Model, ModelConfig, build_model, preset
from causalfusion.representation import Backbone, Classifier, ClassifierConfig, check_labels, features
from causalfusion.representation.drop_path import branch_draws, branch_scales, drop_path_rates

ModelMaker = Callable[..., CausalFusion]
DiTMaker = Callable[..., DiT]


def images(count: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, channels, 8, 8, generator=generator, dtype=torch.float64)


def classifier_of(model: Model, **changes: Any) -> Classifier:
    """Return a classifier in evaluation mode, with a trained model's weights and a random head."""
    config = ClassifierConfig(**({"backbone": model.config, "num_classes": 5} | changes))
    classifier = randomised(Classifier(config))
    classifier.load_backbone(model)
    return classifier


def expected_logits(classifier: Classifier, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    state = {name: value.detach().numpy() for name, value in classifier.state_dict().items()}
    mean = sum(tokens) / len(tokens)
    standard = (mean - mean.mean()) / math.sqrt(mean.var() + 1e-6)
    normed = standard * state["norm.weight"] + state["norm.bias"]
    logits: np.ndarray[Any, Any] = state["head.weight"] @ normed + state["head.bias"]
    return logits


@pytest.mark.parametrize("changes", [{}, {"position_embedding": "learnable", "qk_norm": False, "depth": 3}])
@torch.no_grad()
def test_causalfusion_against_loops(make_model: ModelMaker, changes: dict[str, object]) -> None:
    model, latents = make_model(**changes), images(3)
    classifier = classifier_of(model)
    logits = classifier(latents)
    assert logits.shape == (3, 5)
    for row in range(3):
        tokens = NaiveViT(model).layers(latents[row])[-1]
        np.testing.assert_allclose(logits[row].numpy(), expected_logits(classifier, tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("condition", ["none", "null"])
@torch.no_grad()
def test_dit_against_loops(make_dit: DiTMaker, condition: str) -> None:
    model, latents = make_dit(), images(3, channels=2)
    classifier = classifier_of(model, condition=condition)
    logits = classifier(latents)
    for row in range(3):
        tokens = NaiveViT(model).layers(latents[row], null=condition == "null")[-1]
        np.testing.assert_allclose(logits[row].numpy(), expected_logits(classifier, tokens), rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_tokens_of_a_backbone_are_the_features(make_model: ModelMaker, make_dit: DiTMaker) -> None:
    model, dit = make_model(depth=3), make_dit(depth=3)
    for depth in range(4):
        backbone = Backbone(model.config, depth=depth).double()
        backbone.load(model)
        torch.testing.assert_close(backbone(images(2)), features(model, images(2), depth), rtol=0, atol=1e-12)
        for condition in ("none", "null"):
            backbone = Backbone(dit.config, depth=depth, condition=condition).double()
            backbone.load(dit)
            found = features(dit, images(2, channels=2), depth, condition=condition)
            torch.testing.assert_close(backbone(images(2, channels=2)), found, rtol=0, atol=1e-12)


def test_a_new_classifier_is_a_new_model_with_a_new_head() -> None:
    """Initial weights: those of the paper's models and of MAE's head."""
    config = preset("L/2", hidden_size=64, depth=2, num_heads=4)
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(backbone=config, num_classes=1000))
    head = classifier.head.weight
    assert 1.9e-5 < float(head.detach().std()) < 2.1e-5
    assert not classifier.head.bias.any()
    assert torch.equal(classifier.norm.weight, torch.ones(64)) and not classifier.norm.bias.any()
    model = build_model(config)
    own, other = classifier.backbone.state_dict(), model.state_dict()
    assert own.keys() == {name for name in other if name.startswith(("patch_embed.", "blocks."))}
    for name, tensor in own.items():
        assert tensor.shape == other[name].shape
        assert float(tensor.std()) == pytest.approx(float(other[name].std()), rel=0.05, abs=1e-12), name
    assert torch.equal(classifier.backbone.positions, model.positions)


def test_parameters_of_the_papers_size() -> None:
    """A plain ViT-L of 2×2 patches of 4 channels with QK norm and no qkv bias, counted by hand.

    Table 6b prints 368M and 458M, which count the models of generation.
    """
    width, block = 1024, 12 * 1024**2 + (1 + 4 + 1) * 1024
    patch, head = 16 * width + width, 2 * width + 1000 * width + 1000
    for name, rest in (("L/2", 4 * width + 4 * 64), ("DiT-L/2", 3 * width + 6 * width)):
        config = ClassifierConfig(backbone=preset(name), num_classes=1000)
        with torch.device("meta"):
            found = sum(parameter.numel() for parameter in Classifier(config).parameters())
        assert found == patch + 24 * (block + rest) + head


def test_loading_leaves_the_model_alone_and_copies(make_model: ModelMaker) -> None:
    model = make_model(position_embedding="learnable")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classifier = classifier_of(model)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_gradients_reach_every_parameter_or_the_head_alone(make_model: ModelMaker, make_dit: DiTMaker) -> None:
    model, dit = make_model(position_embedding="learnable"), make_dit()
    for classifier in (classifier_of(model), classifier_of(dit), classifier_of(dit, condition="null")):
        latents = images(2, classifier.config.backbone.in_channels)
        classifier(latents).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in classifier.parameters())
        classifier.zero_grad(set_to_none=True)
        classifier.backbone.requires_grad_(False)
        classifier(latents).square().sum().backward()
        trained = {name for name, p in classifier.named_parameters() if p.grad is not None}
        assert trained == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_rates_of_drop_path_are_linear_in_the_depth() -> None:
    assert drop_path_rates(0.1, 24) == pytest.approx(list(np.linspace(0, 0.1, 24)))
    assert drop_path_rates(0.3, 1) == [0.0]
    assert drop_path_rates(0.0, 3) == [0.0] * 3


class TestDropPath:
    def test_zero_is_off(self, make_model: ModelMaker) -> None:
        classifier = classifier_of(make_model())
        expected = classifier(images(2))
        assert torch.equal(classifier.train()(images(2)), expected)
        assert torch.equal(classifier(images(2), classifier.draw(0, [0, 1])), expected)

    def test_evaluation_drops_nothing(self, make_model: ModelMaker) -> None:
        model = make_model()
        plain, dropping = classifier_of(model), classifier_of(model, drop_path=0.5)
        assert torch.equal(dropping(images(2)), plain(images(2)))
        assert torch.equal(dropping(images(2), torch.zeros(2, 4)), plain(images(2)))

    def test_dropped_branches_are_left_out_and_others_grow(self, make_model: ModelMaker) -> None:
        """Two samples, with the MLP of the second block dropped in the first of them alone."""
        model = make_model()
        classifier = classifier_of(model, drop_path=0.2).train()
        drawn = torch.tensor([[0.0, 0.0, 0.5, 0.1], [0.0, 0.0, 0.5, 0.9]])
        found = classifier.backbone(images(2), drawn)
        naive = NaiveViT(model)
        for row, kept in ((0, 0.0), (1, 1.0)):
            tokens = list(naive.layers(images(2)[row])[1])
            attended = naive.attention([naive.norm(x, "blocks.1.norm1") for x in tokens], "blocks.1.attn")
            tokens = [x + y / 0.8 for x, y in zip(tokens, attended, strict=True)]
            tokens = [x + kept / 0.8 * naive.mlp(naive.norm(x, "blocks.1.norm2"), "blocks.1.mlp") for x in tokens]
            np.testing.assert_allclose(found[row].detach().numpy(), np.stack(tokens), rtol=0, atol=1e-7)

    def test_the_expectation_is_kept(self) -> None:
        """40,000 draws of each branch: means of 1 within five standard errors, and shares of zeros as the rates."""
        rates, count = [0.0, 0.1, 0.4], 40_000
        scales = branch_scales(branch_draws(3, range(count), 3).double(), rates)
        assert scales.shape == (count, 6)
        for branch in range(6):
            rate = rates[branch // 2]
            error = math.sqrt(rate / (1 - rate) / count)
            assert abs(float(scales[:, branch].mean()) - 1) <= 5 * error
            kept = scales[:, branch][scales[:, branch] > 0]
            assert bool((kept == 1 / (1 - rate)).all())
        dropped = (scales == 0).double()
        assert float((dropped[:, 4] * dropped[:, 5]).mean()) == pytest.approx(0.16, abs=0.01)  # independent

    def test_the_mean_over_dropped_and_kept_is_the_whole_branch(self, make_model: ModelMaker) -> None:
        """The last block's MLP, dropped with probability 0.25."""
        classifier = classifier_of(make_model(), drop_path=0.25).train()
        kept, dropped = (
            classifier.backbone(images(1), torch.tensor([[0.9, 0.9, 0.9, last]]).double()) for last in (0.9, 0.1)
        )
        block: Any = classifier.backbone.blocks[1]
        whole = dropped + block.mlp(block.norm2(dropped))
        torch.testing.assert_close(0.75 * kept + 0.25 * dropped, whole, rtol=0, atol=1e-12)

    def test_a_sample_draws_the_same_in_any_batch(self, make_model: ModelMaker) -> None:
        classifier = classifier_of(make_model(), drop_path=0.5)
        together = classifier.draw(4, range(100, 108))
        assert together.shape == (8, 4)
        assert torch.equal(together[3:5], classifier.draw(4, [103, 104]))
        assert not torch.equal(together, classifier.draw(5, range(100, 108)))

    def test_training_needs_draws(self, make_model: ModelMaker) -> None:
        classifier = classifier_of(make_model(), drop_path=0.5).train()
        with pytest.raises(ValueError, match=r"drop path needs draws in training mode: give the result of draw"):
            classifier(images(2))
        with pytest.raises(ValueError, match=r"drop path in 2 blocks needs draws \(B, 4\), got \(2, 3\)"):
            classifier(images(2), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must lie in [1, 10,000,000], got 0"),
        ({"num_classes": 2.5}, "num_classes must be a whole number, got 2.5"),
        ({"drop_path": 1.0}, "drop_path must lie in [0, 1), got 1.0"),
        ({"drop_path": -0.1}, "drop_path must lie in [0, 1), got -0.1"),
        ({"condition": "null"}, "condition null is that of a DiT's blocks"),
        ({"condition": "label"}, "condition must be one of none, null"),
        ({"backbone": 3}, "backbone must be the configuration of a model, got 3"),
        ({"backbone": {"architecture": "mamba"}}, "unknown architecture of the backbone: 'mamba'"),
        ({"backbone": {"size": 3}}, "backbone: "),
        ({"backbone": {"depth": 0}}, "depth must be at least 1, got 0"),
    ],
)
def test_wrong_configurations(
    make_config: Callable[..., ModelConfig], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ClassifierConfig(**({"backbone": make_config(), "num_classes": 5} | changes))


def test_a_configuration_of_plain_fields(make_dit_config: Callable[..., ModelConfig]) -> None:
    config = ClassifierConfig(backbone=make_dit_config(), num_classes=5, drop_path=0.1, condition="null")
    assert ClassifierConfig(**dataclasses.asdict(config)) == config


def test_wrong_input(make_model: ModelMaker, make_dit: DiTMaker) -> None:
    classifier = classifier_of(make_model())
    with pytest.raises(ValueError, match=r"images need latents \(B, 1, 8, 8\) of floats, got \(2, 2, 8, 8\)"):
        classifier(images(2, channels=2))
    with pytest.raises(ValueError, match=r"is that of another model, the given one has depth 3, not 2$"):
        classifier.load_backbone(make_model(depth=3))
    with pytest.raises(ValueError, match=r"the given one has architecture 'dit', not 'causalfusion'; class_tokens"):
        classifier.load_backbone(make_dit(in_channels=1))


def test_labels_beyond_the_head() -> None:
    check_labels(torch.tensor([0, 4, 2]), 5)
    check_labels(torch.tensor([]), 5)
    for label in (5, -1):
        with pytest.raises(ValueError, match=rf"labels of a head of 5 classes lie in \[0, 4\], got {label}"):
            check_labels(torch.tensor([0, label]), 5)


def test_a_classifier_trains(make_model: ModelMaker) -> None:
    """Eight random images with labels are learned by heart."""
    torch.manual_seed(1)
    model = make_model().float()
    classifier = Classifier(ClassifierConfig(backbone=model.config, num_classes=4, drop_path=0.1)).train()
    classifier.load_backbone(model)
    latents, labels = images(8).float(), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for step in range(60):
        logits = classifier(latents, classifier.draw(0, range(8 * step, 8 * step + 8)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.equal(classifier.eval()(latents).argmax(dim=1), labels)
