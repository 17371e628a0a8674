"""Names of the files in a folder of shards, and the card that Hugging Face's `datasets` reads.

Programs that open a folder as one Parquet data set pass over names that begin with an underscore or a dot.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa


class FolderNames(NamedTuple):
    """Names in a folder of shards, beside the shards themselves."""

    manifest: str
    faults: str
    """Table of every image with a fault."""
    records: str
    """Folder with the plan and the records of an encoding."""
    quarantine: str
    """Folder for shards that were set aside."""


NAMES = FolderNames("_manifest.json", "_faults.csv", "_encoding", "_quarantine")
EARLIER_NAMES = FolderNames("manifest.json", "faults.csv", "encoding", "quarantine")
"""Names in folders of earlier versions."""

CARD_FILE = ".huggingface.yaml"
"""Description of the columns for Hugging Face's `datasets`, which does not know Arrow's tensors."""


def names_in(folder: Path) -> FolderNames:
    """Return the names in a folder, which keeps those that it was begun with."""

    def holds(names: FolderNames) -> bool:
        return (folder / names.manifest).exists() or (folder / names.records).exists()

    return EARLIER_NAMES if holds(EARLIER_NAMES) and not holds(NAMES) else NAMES


def manifest_path(folder: Path) -> Path:
    """Return the path of the manifest of a folder, or the path that it will have."""
    return folder / names_in(folder).manifest


def card(schema: pa.Schema, class_names: list[str]) -> bytes:
    """Return the content of `CARD_FILE` for shards of a schema. Latents are lists of numbers there, flattened."""
    tree = {
        "configs": [{"config_name": "default", "data_files": "shard-*.parquet"}],
        "dataset_info": {"features": _features(schema, class_names)},
    }
    return (json.dumps(tree) + "\n").encode()  # JSON is YAML, too


def _features(schema: pa.Schema, class_names: list[str]) -> list[dict[str, object]]:
    features: list[dict[str, object]] = []
    for field in schema:
        if isinstance(field.type, pa.FixedShapeTensorType):
            features.append({"name": field.name, "sequence": "float16", "length": math.prod(field.type.shape)})
        elif pa.types.is_list(field.type):
            features.append({"name": field.name, "sequence": "string"})
        elif field.name == "label" and len(set(class_names)) == len(class_names):
            names = {str(label): name for label, name in enumerate(class_names)}
            features.append({"name": field.name, "dtype": {"class_label": {"names": names}}})
        else:
            features.append({"name": field.name, "dtype": str(field.type)})
    return features
