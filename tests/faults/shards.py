"""Folders of shards that an encoder was killed in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def check_finished_shards(out: Path) -> None:
    """Every record is whole, and so is its shard; the manifest is not there before all of them are."""
    records = list(out.glob("_encoding/shard-*.json"))
    for path in records:
        shard = json.loads(path.read_bytes())["shard"]
        if shard is not None:
            content = (out / shard["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]
    if (out / "_manifest.json").exists():
        whole = json.loads((out / "_manifest.json").read_bytes())["shards"]
        assert {shard["file"] for shard in whole} == {path.name for path in out.glob("shard-*.parquet")}
        assert len(records) >= len(whole)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, but the lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
