"""Versions of manifests: those of before keep their digest, and their bytes when they are written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import Manifest

# A manifest that version 2 wrote, and the digest that its code printed for it.
EARLIER = {
    "version": 2,
    "source": {
        "kind": "bundled",
        "location": "scikit-learn handwritten digits (UCI optdigits test set), 1797 gray images of 8x8; "
        "held-out rows of split 0",
        "items": 1797,
        "digest": "",
    },
    "autoencoder": {"name": "identity", "scale": 1.0, "weights_sha256": None},
    "crop": None,
    "order": "source",
    "shape": [1, 8, 8],
    "dtype": "float16",
    "posterior": False,
    "flip": False,
    "captions": True,
    "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "faults": {},
    "rows": 300,
    "shards": [
        {
            "file": "shard-00000-of-00001.parquet",
            "rows": 300,
            "row_groups": [128, 128, 44],
            "bytes": 55216,
            "sha256": "fe01db63fd8e8f90a5d02cc26752df2b698b4b9118458519ee3428a97ddb6f4a",
        }
    ],
    "quarantined": [],
}
DIGEST = "8562176b80f29d6489f7e3dbaae9e85ba7dc23f63f5c200540e2a1260423def7"


def read(folder: Path, tree: dict[str, Any]) -> Manifest:
    (folder / "_manifest.json").write_text(json.dumps(tree, indent=2) + "\n")
    return Manifest.read(folder)


def test_version_2_reads_as_train_with_its_digest_and_bytes(tmp_path: Path) -> None:
    manifest = read(tmp_path, EARLIER)
    assert (manifest.version, manifest.split, manifest.digest) == (2, "train", DIGEST)
    before = json.loads((tmp_path / "_manifest.json").read_bytes())
    manifest.write(tmp_path)  # as a quarantine does
    assert json.loads((tmp_path / "_manifest.json").read_bytes()) == before


def test_the_split_is_a_part_of_the_digest_unless_it_is_train(tmp_path: Path) -> None:
    digests = {
        split: read(tmp_path, {**EARLIER, "version": 3, "split": split}).digest
        for split in ("train", "val", "test")
    }
    assert digests["train"] == DIGEST
    assert len(set(digests.values())) == 3
    read(tmp_path, {**EARLIER, "version": 3, "split": "val"}).write(tmp_path)
    written = json.loads((tmp_path / "_manifest.json").read_bytes())
    assert (written["version"], written["split"]) == (3, "val")


def test_version_2_has_no_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split val needs version 3"):
        read(tmp_path, {**EARLIER, "split": "val"})
    with pytest.raises(ValidationError, match="split test needs version 3"):
        Manifest.model_validate({**EARLIER, "split": "test"})
