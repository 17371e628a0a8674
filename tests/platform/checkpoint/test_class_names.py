"""Names of a model's classes: beside its weights, or in the shards that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.platform.checkpoint.made import facts, hash_files

from causalfusion_platform.checkpoint.class_names import class_names
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.digits import write_digits

NAMES = [f"class {number}" for number in range(10)]


def weights_of(folder: Path, names: list[str] | None, data_digest: str) -> Path:
    """Make a checkpoint, and return its folder of weights."""
    (folder / "weights").mkdir(parents=True)
    (folder / "weights/model.safetensors").write_bytes(b"weights")
    if names is not None:
        (folder / "weights/classes.json").write_text(json.dumps(names))
    write_manifest(folder, facts(64, data_digest=data_digest), hash_files(folder))
    return folder / "weights"


def test_names_beside_the_weights_come_first(tmp_path: Path) -> None:
    shards = write_digits(tmp_path / "shards")
    named = weights_of(tmp_path / "named", NAMES, shards.digest)
    assert class_names(named, 10, tmp_path / "shards") == class_names(named, 10, None) == NAMES


def test_older_checkpoints_have_those_of_their_shards(tmp_path: Path) -> None:
    """Unless other shards lie there now: their names would be wrong."""
    shards = write_digits(tmp_path / "shards")
    older = weights_of(tmp_path / "older", None, shards.digest)
    assert class_names(older, 10, tmp_path / "shards") == shards.class_names
    assert class_names(older, 10, None) is None
    assert class_names(older, 10, tmp_path / "nowhere") is None
    other = weights_of(tmp_path / "other", None, "0" * 64)
    assert class_names(other, 10, tmp_path / "shards") is None
    outside = tmp_path / "outside"
    older.rename(outside)
    assert class_names(outside, 10, tmp_path / "shards") is None


def test_as_many_names_as_classes(tmp_path: Path) -> None:
    named = weights_of(tmp_path, NAMES[:9], "0" * 64)
    with pytest.raises(UserError, match=r"classes\.json has 9 names for 10 classes"):
        class_names(named, 10, None)
