"""Inception weights from files: what is called FID, what is refused, and what becomes of the pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.malicious import MakesFolder
from tests.platform.evaluation.released_inception import State, step_by_step
from torch import Tensor

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.evaluation.extractors.extractor import Features
from causalfusion_platform.evaluation.extractors.inception_extractor import (
    FID_DIGEST,
    FID_SPACE,
    InceptionExtractor,
    open_inception,
)
from causalfusion_platform.evaluation.measure import is_fid, metric_name


@pytest.fixture(scope="module")
def extractor(inception_file: Path) -> InceptionExtractor:
    """Return the extractor of random weights."""
    return open_inception(inception_file)


@pytest.fixture(scope="module")
def seen(extractor: InceptionExtractor) -> Features:
    """Return what it says of one image."""
    return extractor.features(noise(1, 16))


def noise(count: int, size: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def resizing(pixels: int, size: int) -> Tensor:
    """Return the matrix (size, pixels) that resizes a row: output i is at i · pixels / size."""
    matrix = torch.zeros(size, pixels, dtype=torch.float64)
    for row in range(size):
        whole, part = divmod(row * pixels, size)
        matrix[row, whole] += 1 - part / size
        matrix[row, min(whole + 1, pixels - 1)] += part / size
    return matrix


def test_other_weights_are_never_fid(extractor: InceptionExtractor, inception_file: Path) -> None:
    """Whatever the file is called: its own SHA-256 names the space."""
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert "6726825d" in inception_file.name
    assert (extractor.digest, extractor.space) == (digest, f"inception_{digest[:8]}")
    assert not is_fid(extractor)
    assert metric_name("fd", extractor) == f"fd_inception_{digest[:8]}"
    assert metric_name("sfd", extractor) == f"sfd_inception_{digest[:8]}"
    assert metric_name("precision", extractor) == f"precision_inception_{digest[:8]}"


def test_the_released_weights_are_fid(extractor: InceptionExtractor) -> None:
    """By all of their SHA-256: eight digits of it can be had by trying."""
    released = InceptionExtractor(extractor.network, FID_DIGEST)
    assert FID_DIGEST.startswith("6726825d")
    assert (released.space, len(FID_DIGEST)) == (FID_SPACE, 64)
    assert [metric_name(kind, released) for kind in ("fd", "sfd", "classifier_score", "precision", "recall")] == [
        "fid",
        "sfid",
        "inception_score",
        "precision",
        "recall",
    ]
    alike = InceptionExtractor(extractor.network, FID_DIGEST[:8] + "0" * 56)
    assert alike.space == "inception_6726825d"
    assert metric_name("fd", alike) == "fd_inception_6726825d"


def test_features_are_those_of_the_graph(extractor: InceptionExtractor, inception_weights: State) -> None:
    """Resized, (x − 128) / 128, then the network, all in float64; probabilities without the last bias."""
    images = noise(1, 24)
    images[0, :, 0, 0], images[0, :, 0, 1:] = 0, 255
    matrix = resizing(24, 299)
    pixels = (matrix @ images.double() @ matrix.T - 128) / 128
    assert (float(pixels.min()), float(pixels.max())) == pytest.approx((-1.0, 127 / 128), abs=1e-12)
    found = extractor.features(images)
    expected = step_by_step(inception_weights, pixels)
    assert found.spatial is not None
    assert found.probabilities is not None
    assert [one.dtype for one in (found.pool, found.spatial, found.probabilities)] == [torch.float32] * 3
    widths = 2048, 2023, 1008
    for one, other, width in zip((found.pool, found.spatial, found.probabilities), expected, widths, strict=True):
        assert one.shape == (1, width)
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(1))


def test_the_last_bias_does_not_count(extractor: InceptionExtractor, seen: Features) -> None:
    kept = extractor.network.fc.bias.clone()
    extractor.network.fc.bias.add_(torch.arange(1008))
    after = extractor.features(noise(1, 16)).probabilities
    extractor.network.fc.bias.copy_(kept)
    assert seen.probabilities is not None
    assert after is not None
    assert torch.equal(seen.probabilities, after)


def test_an_image_does_not_see_its_batch(extractor: InceptionExtractor, seen: Features) -> None:
    together = extractor.features(torch.cat([noise(1, 16, seed=1), noise(1, 16)]))
    torch.testing.assert_close(together.pool[1:], seen.pool, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together.pool[:1], seen.pool, rtol=0.01)


def test_grey_images_are_three_times_the_same(extractor: InceptionExtractor) -> None:
    grey = noise(1, 16, channels=1)
    assert torch.equal(extractor.features(grey).pool, extractor.features(grey.repeat(1, 3, 1, 1)).pool)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8).byte(), torch.zeros(3, 8, 8).byte()]
)
def test_what_is_no_image(extractor: InceptionExtractor, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 1 or 3, H, W\) torch.uint8"):
        extractor.features(images)


def test_safetensors_and_counters_of_training(
    extractor: InceptionExtractor, seen: Features, inception_weights: State, tmp_path: Path
) -> None:
    """The same weights in another file are the same features, in a space of their own."""
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for name in inception_weights
        if name.endswith("running_var")
    }
    save_file(inception_weights | counters, tmp_path / "copy.safetensors")
    copy = open_inception(tmp_path / "copy.safetensors")
    assert copy.space != extractor.space
    assert torch.equal(copy.features(noise(1, 16)).pool, seen.pool)


def test_no_gradient_and_no_training(extractor: InceptionExtractor, seen: Features) -> None:
    assert not extractor.network.training
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())
    assert not seen.pool.requires_grad


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_inception(tmp_path / "none.pth")
    for part in ("none.pth", "no such file", "weights-inception-2015-12-05-6726825d.pth", FID_DIGEST):
        assert part in str(caught.value)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"fc.weight": MakesFolder(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="pickled code"):
        open_inception(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_files_of_something_else(inception_file: Path, inception_weights: State, tmp_path: Path) -> None:
    """A truncated file, another network, a missing tensor, and one of the wrong shape: each is named."""
    (tmp_path / "cut.pth").write_bytes(inception_file.read_bytes()[:-1000])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    lacking = inception_weights.copy()
    del lacking["Mixed_7c.branch_pool.conv.weight"]
    torch.save(lacking, tmp_path / "lacking.pth")
    torch.save(inception_weights | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "narrow.pth")
    for name, reason in (
        ("cut.pth", "damaged"),
        ("other.pth", r"missing \(472\).*\n.*unknown \(1\): weight"),
        ("lacking.pth", r"missing \(1\): Mixed_7c.branch_pool.conv.weight"),
        ("narrow.pth", r"fc.weight is \(1000, 2048\), wanted \(1008, 2048\)"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            open_inception(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
