"""Writing shards: exact, reproducible, and trusted only when whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.digits import ensure_digits, write_digits
from causalfusion_platform.data.manifest import Manifest, sha256_of
from causalfusion_platform.data.read import read_all
from causalfusion_platform.data.shards import Latents, write_shards
from causalfusion_platform.data.validate import open_shards


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_digits_come_back_exactly(digits_folder: Path) -> None:
    """Sixteenths from −1 to 1 are exact in fp16: no pixel changes on its way through the shards."""
    pixels, labels = load_digits(return_X_y=True)
    batch = read_all(digits_folder, Manifest.read(digits_folder))
    assert np.array_equal(batch.latents.numpy(), pixels.reshape(-1, 1, 8, 8) / 8 - 1)
    assert np.array_equal(batch.labels.numpy(), labels)
    assert batch.row_ids.tolist() == list(range(1797))
    assert batch.samples == range(1797)


def test_the_digits_manifest(digits_folder: Path) -> None:
    manifest = open_shards(digits_folder)
    assert (manifest.rows, manifest.shape, manifest.dtype) == (1797, (1, 8, 8), "float16")
    assert (manifest.autoencoder, manifest.scale) == ("identity", 1.0)
    assert manifest.class_names == [str(digit) for digit in range(10)]
    assert [shard.rows for shard in manifest.shards] == [450, 450, 450, 447]
    assert [shard.row_groups for shard in manifest.shards] == [[128, 128, 128, 66]] * 3 + [[128, 128, 128, 63]]


def test_the_manifest_says_what_the_files_are(digits_folder: Path) -> None:
    """Compare with hashlib, the file system and pyarrow alone."""
    tree = json.loads((digits_folder / "manifest.json").read_text())
    files = files_of(digits_folder)
    assert set(files) == {"manifest.json", *(shard["file"] for shard in tree["shards"])}
    for shard in tree["shards"]:
        content = files[shard["file"]]
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["bytes"] == len(content)
        metadata = pq.read_metadata(digits_folder / shard["file"])
        assert shard["rows"] == metadata.num_rows
        assert shard["row_groups"] == [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def test_latents_are_native_fixed_shape_tensors(digits_folder: Path) -> None:
    """A type of Arrow itself: no pickled extension metadata, which would run code when read."""
    for path in digits_folder.glob("*.parquet"):
        schema = pq.read_schema(path)
        assert schema.names == ["row_id", "label", "latent"]
        assert [field.nullable for field in schema] == [False] * 3
        assert [schema.field(name).type for name in ("row_id", "label")] == [pa.int64()] * 2
        latent = schema.field("latent").type
        assert latent.extension_name == "arrow.fixed_shape_tensor"
        assert (latent.shape, latent.value_type) == ([1, 8, 8], pa.float16())
        for group in range(pq.read_metadata(path).num_row_groups):
            assert pq.read_metadata(path).row_group(group).column(2).compression == "ZSTD"


def test_writing_twice_gives_the_same_bytes(digits_folder: Path, own_folder: Path) -> None:
    digest = Manifest.read(digits_folder).digest
    assert write_digits(own_folder / "again").digest == digest
    assert files_of(own_folder / "again") == files_of(digits_folder)
    assert write_digits(own_folder / "again").digest == digest


def test_row_ids_do_not_depend_on_the_layout(own_folder: Path, make_latents: Callable[..., Latents]) -> None:
    data = make_latents(23)
    digests = set()
    for rows_per_shard, rows_per_group in ((23, 23), (10, 4), (1, 1), (100, 7)):
        folder = own_folder / f"{rows_per_shard}-{rows_per_group}"
        manifest = write_shards(data, folder, rows_per_shard=rows_per_shard, rows_per_group=rows_per_group)
        batch = read_all(folder, open_shards(folder))
        assert batch.row_ids.tolist() == list(range(23))
        assert np.array_equal(batch.latents.numpy(), data.latents.astype(np.float32))
        assert np.array_equal(batch.labels.numpy(), data.labels)
        assert len(manifest.shards) == -(-23 // rows_per_shard)
        assert max(max(shard.row_groups) for shard in manifest.shards) == min(rows_per_group, rows_per_shard, 23)
        digests.add(manifest.digest)
    assert len(digests) == 4


def test_the_digest_names_the_data(own_folder: Path, make_latents: Callable[..., Latents]) -> None:
    data = make_latents(9)
    other = make_latents(9)
    other.latents[4, 0, 1, 1] += 1
    digests = [
        write_shards(each, own_folder / str(index), rows_per_shard=5, rows_per_group=5).digest
        for index, each in enumerate((data, other, make_latents(9)))
    ]
    assert digests[0] == digests[2] != digests[1]
    assert re.fullmatch("[0-9a-f]{64}", digests[0])


@pytest.mark.parametrize("interrupted_at", [1, 3, 4])
@pytest.mark.parametrize("already_there", [False, True])
def test_an_interrupted_writer_leaves_nothing_to_trust(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, interrupted_at: int, already_there: bool
) -> None:
    """Neither in an empty folder, nor in one with an older data set."""
    folder = own_folder / "digits"
    if already_there:
        write_digits(folder)
    calls = 0

    def sha256_or_stop(path: Path) -> str:
        nonlocal calls
        calls += 1
        if calls == interrupted_at:
            raise KeyboardInterrupt
        return sha256_of(path)

    with monkeypatch.context() as patch:
        patch.setattr("causalfusion_platform.data.shards.sha256_of", sha256_or_stop)
        with pytest.raises(KeyboardInterrupt):
            write_digits(folder)
    assert list(folder.glob("*.parquet"))
    with pytest.raises(UserError, match=re.escape(f"{folder} has no manifest.json")):
        Manifest.read(folder)
    ensure_digits(folder)
    assert open_shards(folder).rows == 1797


def test_an_interruption_while_the_manifest_is_written(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder / "digits"

    def stop(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    write_digits(folder)
    manifest = Manifest.read(folder)
    (folder / "manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            manifest.write(folder)
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        Manifest.read(folder)


def test_data_that_is_there_is_not_written_again(own_folder: Path) -> None:
    folder = own_folder / "digits"
    first = ensure_digits(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ensure_digits(folder) == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_old_shards_do_not_outlive_their_manifest(own_folder: Path) -> None:
    folder = own_folder / "digits"
    write_digits(folder, rows_per_shard=200)
    manifest = write_digits(folder, rows_per_shard=1000)
    assert set(files_of(folder)) == {"manifest.json", *(shard.file for shard in manifest.shards)}
