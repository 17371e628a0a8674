"""From what a person names to the weights that are meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.checkpoint.made import facts, hash_files

from causalfusion import PRESETS, build_model, save_weights
from causalfusion_platform.checkpoint.find import Weights, find_weights
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.config.errors import UserError


def put_weights(folder: Path) -> Path:
    model = build_model(PRESETS["tiny"])
    save_weights(folder, model.config, model.state_dict())
    return folder


def put_checkpoint(run: Path, images: int) -> Path:
    """Write a complete checkpoint of a run; return its folder of weights."""
    folder = checkpoint_folder(run / "checkpoints", images)
    put_weights(folder / "weights")
    write_manifest(folder, facts(images), hash_files(folder))
    return folder / "weights"


@pytest.fixture
def run(own_folder: Path) -> Path:
    """A run with checkpoints after 64 and 128 images."""
    folder = own_folder / "runs/mine"
    for images in (64, 128):
        put_checkpoint(folder, images)
    return folder


def test_a_run_means_its_newest_checkpoint(run: Path) -> None:
    assert find_weights(run) == Weights(run / "checkpoints/images-000000000128/weights", run)


def test_a_damaged_checkpoint_is_passed_over(run: Path) -> None:
    (run / "checkpoints/images-000000000128/weights/diffusion.json").write_text("{}")
    assert find_weights(run).folder == run / "checkpoints/images-000000000064/weights"
    (run / "checkpoints/images-000000000064/checkpoint.json").unlink()
    with pytest.raises(UserError, match="no weights in"):
        find_weights(run)


@pytest.mark.parametrize("images", [64, 128])
def test_a_checkpoint_and_its_weights(run: Path, images: int) -> None:
    """Their run is known, also where the path is relative."""
    checkpoint = checkpoint_folder(run / "checkpoints", images)
    for path in (checkpoint, checkpoint / "weights"):
        assert find_weights(path) == Weights(checkpoint / "weights", run)
        found = find_weights(path.relative_to(Path.cwd()))
        assert found.run == run
        assert found.folder.samefile(checkpoint / "weights")


def test_relative_paths_within_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoints/images-000000000064")
    for path in (Path(), Path("weights")):
        assert find_weights(path).folder.samefile(run / "checkpoints/images-000000000064/weights")
        assert find_weights(path).run == run
    monkeypatch.chdir(run)
    found = find_weights(Path()).run
    assert found is not None
    assert found.samefile(run)


def test_weights_that_lie_elsewhere_have_no_run(own_folder: Path) -> None:
    for name in ("some", "weights", "checkpoint/weights"):
        folder = put_weights(own_folder / name)
        assert find_weights(folder) == Weights(folder, None)
    assert find_weights(own_folder / "checkpoint") == Weights(own_folder / "checkpoint/weights", None)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", None])
def test_a_folder_without_weights(own_folder: Path, missing: str | None) -> None:
    folder = own_folder / "some"
    if missing:
        (put_weights(folder) / missing).unlink()
    with pytest.raises(UserError) as caught:
        find_weights(folder)
    message = str(caught.value)
    assert message.startswith(f"no weights in {folder}\n")
    for part in ("runs/quickstart", "model.safetensors", "config.json", "causalfusion weights import FILE FOLDER"):
        assert part in message


def test_a_file_is_no_folder_of_weights(own_folder: Path) -> None:
    (own_folder / "model.pt").touch()
    with pytest.raises(UserError, match=r"no weights in .*model\.pt"):
        find_weights(own_folder / "model.pt")
