"""References: from images, from ADM's files, and from a cache; in another space they are refused or made anew."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.platform.evaluation.tiny_extractor import TinyExtractor, random_images
from torch import Tensor

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.evaluation.collect import batches_of
from causalfusion_platform.evaluation.extractors.inception_extractor import FID_DIGEST, FID_SPACE
from causalfusion_platform.evaluation.reference import (
    Reference,
    check_size,
    read_reference,
    reference_from_images,
    size_in,
    write_reference,
)


def named(folder: Path) -> str:
    """Name what was read by its content too: two files of one name are two references."""
    return f"ref.npz (SHA-256 {hashlib.sha256((folder / 'ref.npz').read_bytes()).hexdigest()[:12]}…)"


@pytest.fixture(scope="module")
def fid_like() -> TinyExtractor:
    """Return an extractor that has the name and the widths of FID's."""
    return TinyExtractor(space=FID_SPACE, digest=FID_DIGEST, width=2048, spatial=2023)


def save_adm(path: Path, images: Tensor | None, width: int = 2048, spatial: int | None = 2023) -> None:
    """Write a file as ADM's: statistics without a word about their space, and images."""
    arrays = {"mu": np.full(width, 2.0, np.float32), "sigma": np.eye(width)}
    if spatial is not None:
        arrays |= {"mu_s": np.full(spatial, 3.0), "sigma_s": np.eye(spatial)}
    if images is not None:
        arrays["arr_0"] = images.permute(0, 2, 3, 1).numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]


def assert_same(found: Reference, expected: Reference) -> None:
    for name in ("space", "digest", "source", "image_size"):
        assert getattr(found, name) == getattr(expected, name)
    for one, other in ((found.pool, expected.pool), (found.spatial, expected.spatial)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one.mean, other.mean)
            assert torch.equal(one.covariance, other.covariance)
    assert (found.features is None) == (expected.features is None)
    if found.features is not None and expected.features is not None:
        assert torch.equal(found.features, expected.features)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("spatial", [3, 0])
def test_written_and_read(tmp_path: Path, keep: bool, spatial: int) -> None:
    extractor = TinyExtractor(spatial=spatial)
    reference = reference_from_images([random_images(20)], extractor, source="twenty images — of noise", keep=keep)
    write_reference(tmp_path / "new" / "x.npz", reference)
    assert_same(read_reference(tmp_path / "new" / "x.npz", extractor), reference)


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    """By ADM's names, in float64, as numpy has them of all features at once."""
    extractor, images = TinyExtractor(), random_images(50)
    reference = reference_from_images(batches_of(images, 7), extractor, source="noise")
    write_reference(tmp_path / "x.npz", reference)
    features = extractor.features(images)
    assert features.spatial is not None
    names = ("space", "digest", "source")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert set(file) == {"mu", "sigma", "mu_s", "sigma_s", "features", "image_size", *names}
        assert (str(file["space"]), str(file["digest"]), str(file["source"])) == ("tiny", extractor.digest, "noise")
        for suffix, of in (("", features.pool), ("_s", features.spatial)):
            exact = of.double().numpy()
            assert file[f"mu{suffix}"].dtype == file[f"sigma{suffix}"].dtype == np.float64
            np.testing.assert_allclose(file[f"mu{suffix}"], exact.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(file[f"sigma{suffix}"], np.cov(exact.T), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.from_numpy(file["features"]), features.pool)


def test_adms_statistics_and_images(tmp_path: Path, fid_like: TinyExtractor) -> None:
    """Statistics are those of the file; of its images only the features are taken."""
    images = random_images(6)
    save_adm(tmp_path / "ref.npz", images)
    found = read_reference(tmp_path / "ref.npz", fid_like, batch_size=4)
    assert (found.space, found.digest, found.source) == (FID_SPACE, FID_DIGEST, f"statistics in {named(tmp_path)}")
    assert found.spatial is not None
    assert found.features is not None
    assert found.pool.mean.eq(2).all()
    assert found.spatial.mean.eq(3).all()
    torch.testing.assert_close(found.features, fid_like.features(images).pool)


def test_statistics_without_images(tmp_path: Path, fid_like: TinyExtractor) -> None:
    """As MAR's file has them: no sFID, no precision, no recall."""
    save_adm(tmp_path / "ref.npz", None, spatial=None)
    found = read_reference(tmp_path / "ref.npz", fid_like)
    assert found.spatial is None
    assert found.features is None
    assert found.pool.mean.eq(2).all()


def test_images_alone(tmp_path: Path) -> None:
    extractor, images = TinyExtractor(), random_images(9)
    np.savez(tmp_path / "ref.npz", images.permute(0, 2, 3, 1).numpy())
    found = read_reference(tmp_path / "ref.npz", extractor)
    assert_same(found, reference_from_images([images], extractor, source=f"images in {named(tmp_path)}"))


def test_adms_statistics_are_of_no_use_in_another_space(tmp_path: Path) -> None:
    """Even where the widths fit: with other weights the images are all there is."""
    images = random_images(9)
    save_adm(tmp_path / "ref.npz", images, width=5, spatial=3)
    other = TinyExtractor(space="inception_0123abcd")
    assert_same(
        read_reference(tmp_path / "ref.npz", other),
        reference_from_images([images], other, source=f"images in {named(tmp_path)}"),
    )
    save_adm(tmp_path / "bare.npz", None, width=5, spatial=3)
    with pytest.raises(UserError) as caught:
        read_reference(tmp_path / "bare.npz", other)
    for part in (FID_SPACE, FID_DIGEST[:12], "no images arr_0", "inception_0123abcd", other.digest[:12]):
        assert part in str(caught.value)


def test_the_same_space_by_other_weights_is_another(tmp_path: Path) -> None:
    extractor = TinyExtractor()
    write_reference(tmp_path / "x.npz", reference_from_images([random_images(9)], extractor, source="noise"))
    with pytest.raises(UserError, match="no images arr_0; the extractor's space is tiny"):
        read_reference(tmp_path / "x.npz", TinyExtractor(digest="0" * 64))


def test_widths_that_are_not_fids(tmp_path: Path, fid_like: TinyExtractor) -> None:
    save_adm(tmp_path / "narrow.npz", None, width=5)
    with pytest.raises(UserError, match="mu is of 5 features; those of FID are 2048"):
        read_reference(tmp_path / "narrow.npz", fid_like)
    save_adm(tmp_path / "map.npz", None, spatial=7)
    with pytest.raises(UserError, match=r"mu_s is of 7 features.*sFID 2023"):
        read_reference(tmp_path / "map.npz", fid_like)


def test_files_that_are_no_reference(tmp_path: Path) -> None:
    np.savez(tmp_path / "labels.npz", labels=np.arange(3))
    with pytest.raises(UserError, match="holds no statistics and no images"):
        read_reference(tmp_path / "labels.npz", TinyExtractor())
    np.savez(tmp_path / "one.npz", random_images(1).permute(0, 2, 3, 1).numpy())
    with pytest.raises(UserError, match=r"one.npz is of no use as a reference.*at least 2 features"):
        read_reference(tmp_path / "one.npz", TinyExtractor())
    with pytest.raises(UserError, match="no file"):
        read_reference(tmp_path / "none.npz", TinyExtractor())


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    extractor = TinyExtractor()
    write_reference(tmp_path / "x.npz", reference_from_images([random_images(9)], extractor, source="noise"))
    with np.load(tmp_path / "x.npz") as file:
        arrays = {name: file[name] for name in file}
    for wrong in (np.zeros((9, 4), np.float32), np.zeros((9, 5)), np.zeros(5, np.float32)):
        np.savez(tmp_path / "x.npz", **(arrays | {"features": wrong}))
        with pytest.raises(UserError, match=r"wanted: \(N, 5\) float32"):
            read_reference(tmp_path / "x.npz", extractor)


def test_a_file_says_the_size_of_its_images(tmp_path: Path, fid_like: TinyExtractor) -> None:
    """By its images, or by a number of ours. Statistics alone say nothing."""
    reference = reference_from_images([random_images(9)], TinyExtractor(), source="noise")
    write_reference(tmp_path / "ours.npz", reference)
    save_adm(tmp_path / "images.npz", random_images(6))
    save_adm(tmp_path / "bare.npz", None)
    assert [size_in(tmp_path / f"{name}.npz") for name in ("ours", "images", "bare")] == [4, 4, None]
    assert read_reference(tmp_path / "images.npz", fid_like).image_size == 4
    assert read_reference(tmp_path / "bare.npz", fid_like).image_size is None
    for size in (None, 4):
        check_size(size, 4, "x.npz")
    with pytest.raises(UserError, match=r"the reference \(x\.npz\) is of images of 4×4 .*8×8\n  .*--reference"):
        check_size(4, 8, "x.npz")
