"""Footers that are damaged where no hash is compared: `data.verify=quick`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Rows
from causalfusion_platform.data.validate import shard_fault


def test_any_damage_to_a_footer_is_a_fault_or_harmless(
    own_folder: Path, make_rows: Callable[..., Rows], write_rows: Callable[..., Manifest]
) -> None:
    """One bit of each byte: neither an exception, nor the end of this process, which some bytes make Arrow end."""
    manifest = write_rows(make_rows(8), own_folder / "small", rows_per_shard=8, rows_per_group=8)
    shard, path = manifest.shards[0], own_folder / "small" / manifest.shards[0].file
    content = path.read_bytes()
    footer = range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content))
    found = []
    for place in footer:
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        found.append(shard_fault(path, shard, manifest, hashes=False))
    path.write_bytes(content)
    assert shard_fault(path, shard, manifest, hashes=False) is None
    faults = {fault.split(" (")[0].split(":")[0].rstrip("0123456789, []") for fault in found if fault}
    assert len(faults) >= 4, faults
    assert found.count(None) < 0.6 * len(footer)
