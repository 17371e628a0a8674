"""Probes of a model's layers: their features, their accuracy, and a model that is left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tests.platform.conftest import description_of, small_rows

from causalfusion import DiffusionConfig, Model, build_model, draws, preset
from causalfusion.representation import Condition, features
from causalfusion_platform.data.chosen_rows import ChosenRows, choose_rows
from causalfusion_platform.data.read import read_all
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.data.split_digits import write_split_digits
from causalfusion_platform.evaluation.probe import features as probe_features
from causalfusion_platform.evaluation.probe.features import NotFinite, averaged_tokens
from causalfusion_platform.evaluation.probe.linear import linear_predictions
from causalfusion_platform.evaluation.probe.nearest import nearest_predictions
from causalfusion_platform.evaluation.probe.probe import Accuracy, Kind, ProbeData, probe_layers, untrained

DIFFUSION = DiffusionConfig()
KINDS: tuple[Kind, ...] = ("linear", "knn")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> ProbeData:
    """200 training digits and 150 validation digits."""
    folder = tmp_path_factory.mktemp("shards") / "digits"
    found = write_split_digits(folder)
    validation = folder.with_name("digits-validation")
    return ProbeData(choose_rows(folder, found.train, 200), choose_rows(validation, found.validation, 150), seed=3)


@pytest.fixture(scope="module")
def dit() -> Model:
    """A DiT whose blocks are no identities."""
    torch.manual_seed(0)
    model = build_model(preset("digits-dit", hidden_size=32, depth=2, num_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def measured(
    model: Model, data: ProbeData, layers: Sequence[int] = (0, 2), t: int = 50
) -> list[tuple[object, ...]]:
    found = probe_layers(model, data, layers, KINDS, t=t, diffusion=DIFFUSION)
    return [(kind, layer, accuracy) for kind, layer, accuracy in found]


@pytest.mark.parametrize(("t", "condition"), [(0, "none"), (50, "none"), (0, "null"), (50, "null")])
def test_averaged_tokens_are_those_of_each_image_alone(
    dit: Model, split: ProbeData, monkeypatch: pytest.MonkeyPatch, t: int, condition: Condition
) -> None:
    """In batches of any size: its noise follows from its row id."""
    monkeypatch.setattr(probe_features, "_BATCH", 7)
    rows = split.validation
    found = averaged_tokens(dit, rows, (1, 2), t=t, condition=condition, diffusion=DIFFUSION, seed=9)
    assert found.shape == (2, 150, dit.config.hidden_size)
    assert found.dtype == np.float32
    images = read_all(rows.folder, rows.manifest)
    for place in (0, 11, 149):
        row = int(rows.places[place])
        for index, layer in enumerate((1, 2)):
            noise = draws.randn_each(draws.sample_streams(9, "features", [int(images.row_ids[row])]), 1, 8, 8)
            tokens = features(
                dit,
                images.latents[row : row + 1],
                layer,
                t=t if t else None,
                noise=noise if t else None,
                condition=condition,
                diffusion=DIFFUSION,
            )
            expected = tokens.detach().double().mean(dim=1)[0].numpy()
            np.testing.assert_allclose(found[index, place], expected, rtol=1e-4, atol=1e-5)


def test_accuracies_are_those_of_features_and_classifiers(dit: Model, split: ProbeData) -> None:
    seeds = [draws.stream_seed(3, "probe noise", part) for part in ("training", "validation")]
    train, others = (
        averaged_tokens(dit, rows, (2,), t=50, diffusion=DIFFUSION, seed=seed)[0]
        for rows, seed in zip((split.train, split.validation), seeds, strict=True)
    )
    expected = [
        int((predict(train, split.train.labels, others, 10) == split.validation.labels).sum())
        for predict in (linear_predictions, nearest_predictions)
    ]
    found = measured(dit, split)
    assert [(kind, layer) for kind, layer, _ in found] == [(kind, layer) for layer in (0, 2) for kind in KINDS]
    assert [accuracy for _, layer, accuracy in found if layer == 2] == [Accuracy(n, 150) for n in expected]
    assert min(expected) > 20


def test_a_probe_leaves_the_model_alone_and_gives_the_same_numbers_again(dit: Model, split: ProbeData) -> None:
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    state = torch.random.get_rng_state()
    first, again = measured(dit, split), measured(dit, split)
    assert first == again
    after = dit.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in before)
    assert all(parameter.grad is None for parameter in dit.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def shuffled(folder: Path, rows: ChosenRows, seed: int) -> ChosenRows:
    """Write the rows with shuffled labels."""
    images = read_all(rows.folder, rows.manifest)
    labels = np.random.default_rng(seed).permutation(images.labels.numpy())
    data = Rows(
        row_ids=images.row_ids.numpy(),
        labels=labels,
        keys=[str(row) for row in images.row_ids.tolist()],
        mean=images.latents.numpy().astype(np.float16),
        std=None,
        mean_flip=None,
        std_flip=None,
    )
    description = description_of(small_rows(1)).model_copy(
        update={"shape": (1, 8, 8), "class_names": rows.manifest.class_names}
    )
    manifest = write_shards(data, description, folder, rows_per_shard=500, rows_per_group=100)
    return choose_rows(folder, manifest, 2000)


def test_shuffled_labels_give_chance(dit: Model, split: ProbeData, tmp_path: Path) -> None:
    """Unless validation rows are training rows: then their neighbours are themselves."""
    train, others = (shuffled(tmp_path / str(n), rows, n) for n, rows in enumerate((split.train, split.validation)))
    low, high = binom.interval(0.999, len(others), 0.1)
    for kind, _, accuracy in probe_layers(dit, ProbeData(train, others, 0), (2,), KINDS, t=0, diffusion=DIFFUSION):
        assert low <= accuracy.correct <= high, kind
    leaking = ProbeData(others, others, 0)
    for kind, _, accuracy in probe_layers(dit, leaking, (2,), KINDS, t=0, diffusion=DIFFUSION):
        assert accuracy.correct > high, kind


def test_the_untrained_model_is_that_of_a_run_at_its_start(dit: Model) -> None:
    state = torch.random.get_rng_state()
    found = untrained(dit.config, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(draws.stream_seed(5, "initial weights"))
    expected = build_model(dit.config).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_features_that_are_not_finite_are_named(split: ProbeData) -> None:
    model = untrained(preset("tiny"), 0)
    with torch.no_grad():
        dict(model.named_parameters())["blocks.1.mlp.2.bias"][0] = float("nan")
    data = ProbeData(split.validation, split.validation, 0)
    assert len(measured(model, data, (0, 1), t=0)) == 4
    with pytest.raises(NotFinite, match="layer 2 at t = 0 hold NaN or infinity"):
        measured(model, data, (0, 2), t=0)


def test_intervals_are_wilsons() -> None:
    """The formula, for 90 of 100."""
    z, share, total = 1.959963984540054, 0.9, 100
    middle = (share + z**2 / 2 / total) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / 4 / total**2) ** 0.5
    accuracy = Accuracy(90, 100)
    assert accuracy.value == 0.9
    assert accuracy.interval == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert Accuracy(100, 100).interval[1] == 1
