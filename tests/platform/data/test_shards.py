"""Writing shards: exact, reproducible, and trusted only when whole."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
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
from causalfusion_platform.data.manifest import Crop, Manifest, Quarantined, sha256_of
from causalfusion_platform.data.read import read_all
from causalfusion_platform.data.shards import Rows, shard_schema, write_shard
from causalfusion_platform.data.validate import open_shards


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder of shards. A classifier lies beside them in a folder of its own."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_digits_come_back_exactly(digits_folder: Path) -> None:
    """Sixteenths from −1 to 1 are exact in fp16: no pixel changes on its way through the shards."""
    pixels, labels = load_digits(return_X_y=True)
    batch = read_all(digits_folder, Manifest.read(digits_folder))
    assert np.array_equal(batch.latents.numpy(), pixels.reshape(-1, 1, 8, 8) / 8 - 1)
    assert np.array_equal(batch.labels.numpy(), labels)
    assert batch.row_ids.tolist() == list(range(1797))
    assert batch.samples == range(1797)


def test_the_digits_manifest(digits_folder: Path) -> None:
    manifest = open_shards(digits_folder).manifest
    assert (manifest.version, manifest.rows, manifest.shape, manifest.dtype) == (3, 1797, (1, 8, 8), "float16")
    assert (manifest.autoencoder.name, manifest.autoencoder.scale) == ("identity", 1.0)
    assert (manifest.source.kind, manifest.source.items) == ("bundled", 1797)
    assert (manifest.posterior, manifest.flip, manifest.captions) == (False, False, False)
    assert manifest.class_names == [str(digit) for digit in range(10)]
    assert [shard.rows for shard in manifest.shards] == [450, 450, 450, 447]
    assert [shard.row_groups for shard in manifest.shards] == [[128, 128, 128, 66]] * 3 + [[128, 128, 128, 63]]


def test_the_manifest_says_what_the_files_are(digits_folder: Path) -> None:
    """Compare with hashlib, the file system and pyarrow alone."""
    tree = json.loads((digits_folder / "_manifest.json").read_text())
    files = files_of(digits_folder)
    assert set(files) == {"_manifest.json", ".huggingface.yaml", *(shard["file"] for shard in tree["shards"])}
    for shard in tree["shards"]:
        content = files[shard["file"]]
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["bytes"] == len(content)
        metadata = pq.read_metadata(digits_folder / shard["file"])
        assert shard["rows"] == metadata.num_rows
        assert shard["row_groups"] == [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


KINDS = list(itertools.product([False, True], repeat=3))
"""Shards with a posterior or not, mirrored images or not, captions or not."""


def captioned(rows: Rows, captions: bool) -> Rows:
    """Give each row as many captions as its number has digits, some of which are empty."""
    texts = [[""] * len(str(row)) for row in range(len(rows.labels))]
    return dataclasses.replace(rows, captions=texts) if captions else rows


@pytest.mark.parametrize(("posterior", "flip", "captions"), KINDS)
def test_a_shards_columns(
    own_folder: Path, make_rows: Callable[..., Rows], posterior: bool, flip: bool, captions: bool
) -> None:
    """Every column comes back exactly; latents are a type of Arrow itself, with no pickled metadata to run."""
    rows = captioned(make_rows(11, posterior=posterior, flip=flip), captions)
    path = own_folder / "shard-00000-of-00001.parquet"
    shard = write_shard(rows, path, 4)
    assert (shard.file, shard.rows, shard.row_groups) == (path.name, 11, [4, 4, 3])
    assert [file.name for file in own_folder.iterdir()] == [path.name]

    latents = ["mean", *["std"] * posterior, *["mean_flip"] * flip, *["std_flip"] * (posterior and flip)]
    table = pq.read_table(path)
    assert table.column_names == ["row_id", "label", "key", *latents, *["captions"] * captions]
    assert not any(field.nullable for field in table.schema)
    assert table["row_id"].to_pylist() == list(range(11))
    assert table["label"].to_pylist() == rows.labels.tolist()
    assert table["key"].to_pylist() == rows.keys
    if captions:
        assert table["captions"].to_pylist() == rows.captions
    for name in latents:
        kind = table.schema.field(name).type
        assert kind.extension_name == "arrow.fixed_shape_tensor"
        assert (kind.shape, kind.value_type) == ([1, 2, 2], pa.float16())
        found = table[name].combine_chunks().to_numpy_ndarray()
        assert found.dtype == np.float16
        assert np.array_equal(found, getattr(rows, name))
    assert table.schema.equals(shard_schema((1, 2, 2), posterior=posterior, flip=flip, captions=captions))


def test_latents_are_stored_as_they_are(own_folder: Path, make_rows: Callable[..., Rows]) -> None:
    """Unpacking would cost more than the 8% it saves; everything else is packed."""
    path = own_folder / "shard.parquet"
    write_shard(captioned(make_rows(5, posterior=True, flip=True), True), path, 5)
    group = pq.read_metadata(path).row_group(0)
    codecs = {
        group.column(index).path_in_schema.split(".")[0]: group.column(index).compression
        for index in range(group.num_columns)
    }
    plain = dict.fromkeys(("mean", "std", "mean_flip", "std_flip"), "UNCOMPRESSED")
    assert codecs == {**plain, **dict.fromkeys(("row_id", "label", "key", "captions"), "ZSTD")}


@pytest.mark.parametrize("column", range(8))
def test_every_column_has_page_checksums(own_folder: Path, make_rows: Callable[..., Rows], column: int) -> None:
    path = own_folder / "shard.parquet"
    write_shard(captioned(make_rows(500, posterior=True, flip=True), True), path, 500)
    found = pq.read_metadata(path).row_group(0).column(column)
    content = bytearray(path.read_bytes())
    content[found.data_page_offset + found.total_compressed_size - 1] ^= 1  # the last byte of the last page
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_writing_twice_gives_the_same_bytes(digits_folder: Path, own_folder: Path) -> None:
    digest = Manifest.read(digits_folder).digest
    assert write_digits(own_folder / "again").digest == digest
    assert files_of(own_folder / "again") == files_of(digits_folder)
    assert write_digits(own_folder / "again").digest == digest


def test_row_ids_do_not_depend_on_the_layout(
    own_folder: Path, make_rows: Callable[..., Rows], write_rows: Callable[..., Manifest]
) -> None:
    data = make_rows(23)
    digests = set()
    for rows_per_shard, rows_per_group in ((23, 23), (10, 4), (1, 1), (100, 7)):
        folder = own_folder / f"{rows_per_shard}-{rows_per_group}"
        manifest = write_rows(data, folder, rows_per_shard=rows_per_shard, rows_per_group=rows_per_group)
        batch = read_all(folder, open_shards(folder).usable)
        assert batch.row_ids.tolist() == list(range(23))
        assert np.array_equal(batch.latents.numpy(), data.mean.astype(np.float32))
        assert np.array_equal(batch.labels.numpy(), data.labels)
        assert len(manifest.shards) == -(-23 // rows_per_shard)
        assert max(max(shard.row_groups) for shard in manifest.shards) == min(rows_per_group, rows_per_shard, 23)
        digests.add(manifest.digest)
    assert len(digests) == 4


@pytest.mark.parametrize("column", ["row_ids", "labels", "keys", "mean", "std", "mean_flip", "std_flip"])
def test_the_digest_names_the_data(
    own_folder: Path, make_rows: Callable[..., Rows], write_rows: Callable[..., Manifest], column: str
) -> None:
    """Any other value in any column gives another digest."""
    data, same, other = (make_rows(9, posterior=True, flip=True) for _ in range(3))
    if column == "keys":
        other = dataclasses.replace(other, keys=[*other.keys[:4], "another", *other.keys[5:]])
    else:
        getattr(other, column)[4] += 1
    digests = [
        write_rows(each, own_folder / str(index), rows_per_shard=5, rows_per_group=5).digest
        for index, each in enumerate((data, other, same))
    ]
    assert digests[0] == digests[2] != digests[1]
    assert re.fullmatch("[0-9a-f]{64}", digests[0])


def test_the_digest_names_where_the_data_came_from(digits_folder: Path) -> None:
    manifest = Manifest.read(digits_folder)
    changes: list[dict[str, object]] = [
        {"source": manifest.source.model_copy(update={"digest": "0" * 64})},
        {"autoencoder": manifest.autoencoder.model_copy(update={"weights_sha256": "0" * 64})},
        {"crop": Crop(size=8)},
        {"class_names": [*manifest.class_names[1:], "ten"]},
        {"faults": {"cmyk": {"convert": 1}}},
        {"quarantined": [Quarantined(file="shard.parquet", rows=1, reason="lost")]},
    ]
    digests = {manifest.digest, *(manifest.model_copy(update=change).digest for change in changes)}
    assert len(digests) == 1 + len(changes)


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
    # Each shard's hash is taken before it gets its name.
    assert len(list(folder.glob("*.parquet"))) == interrupted_at - 1
    with pytest.raises(UserError, match=re.escape(f"{folder} has no _manifest.json")):
        Manifest.read(folder)
    manifest = ensure_digits(folder)
    assert open_shards(folder).usable.rows == 1797
    assert set(files_of(folder)) == {
        "_manifest.json",
        ".huggingface.yaml",
        *(shard.file for shard in manifest.shards),
    }


def test_an_interruption_while_the_manifest_is_written(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder / "digits"

    def stop(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    write_digits(folder)
    manifest = Manifest.read(folder)
    (folder / "_manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            manifest.write(folder)
    with pytest.raises(UserError, match=r"has no _manifest\.json"):
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
    assert set(files_of(folder)) == {
        "_manifest.json",
        ".huggingface.yaml",
        *(shard.file for shard in manifest.shards),
    }
