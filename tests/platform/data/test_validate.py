"""Shards that are not what their manifest says are refused, with the file's name and a way out."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from causalfusion import PRESETS
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Latents, write_shards
from causalfusion_platform.data.validate import check_model_fits, open_shards

SHARD = "shard-00001-of-00004.parquet"


@pytest.fixture
def folder(digits_folder: Path, own_folder: Path) -> Path:
    """Return a copy of the digits, to be damaged."""
    return Path(shutil.copytree(digits_folder, own_folder / "digits"))


def refusal(folder: Path) -> str:
    """Return why the folder is refused; every refusal says what to do."""
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    message = str(caught.value)
    assert f"causalfusion data digits {folder}" in message
    return message


def shard_refusal(folder: Path) -> str:
    message = refusal(folder)
    assert str(folder / SHARD) in message
    return message


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the shard's size and hash, as one who forges shards would."""
    content = (folder / SHARD).read_bytes()

    def change(tree: dict[str, Any]) -> None:
        entry = next(shard for shard in tree["shards"] if shard["file"] == SHARD)
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    change_manifest(folder, change)


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Replace the shard by a changed one that the manifest hashes."""
    table = change(pq.read_table(folder / SHARD))
    pq.write_table(table, folder / SHARD, row_group_size=128, **options)
    rehash(folder)


def test_an_untouched_copy_is_accepted(folder: Path) -> None:
    assert open_shards(folder).rows == 1797


def test_a_shard_rewritten_as_it_was_is_accepted(folder: Path) -> None:
    """What the tests below do to a shard is refused for their change, not for the rewriting."""
    rewrite(folder, lambda table: table, compression="none")
    assert open_shards(folder).rows == 1797


# The folder and its manifest


def test_a_missing_folder(own_folder: Path) -> None:
    message = refusal(own_folder / "nowhere")
    assert str(own_folder / "nowhere") in message
    assert "does not exist" in message


def test_a_file_in_place_of_the_folder(own_folder: Path) -> None:
    (own_folder / "file").write_text("text")
    assert "is not a folder" in refusal(own_folder / "file")


def test_a_folder_without_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert f"{folder} has no manifest.json" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b'{"rows": ', b"[]", b"null", b"\xff\xfe", b"{}", b'"text"'])
def test_a_manifest_that_cannot_be_read(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert f"{folder / 'manifest.json'} is not a shard manifest of version 1" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 2), ("dtype", "float32"), ("scale", 0), ("rows", 0), ("class_names", []), ("unknown", 1)],
)
def test_a_manifest_with_other_values(folder: Path, key: str, value: object) -> None:
    change_manifest(folder, lambda tree: tree.update({key: value}))
    message = refusal(folder)
    assert str(folder / "manifest.json") in message
    assert f"version 1: {key}: " in message


@pytest.mark.parametrize(
    "file",
    [
        "../digits/shard-00001-of-00004.parquet",
        "/etc/shard.parquet",
        "inner/shard.parquet",
        "..\\shard.parquet",
        "..parquet",
        ".shard.parquet",
        "shard.parquet\n",
        "shard\x00.parquet",
        "shard.txt",
        "",
    ],
)
def test_a_shard_cannot_lie_outside_the_folder(folder: Path, file: str) -> None:
    change_manifest(folder, lambda tree: tree["shards"][1].update(file=file))
    assert "shards.1.file: " in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(rows=1798),
        lambda tree: tree["shards"][1].update(rows=451),
        lambda tree: tree["shards"][1].update(row_groups=[128, 128, 128, 65]),
        lambda tree: tree["shards"].pop(),
    ],
)
def test_rows_that_do_not_add_up(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change_manifest(folder, change)
    message = refusal(folder)
    assert f"{folder / 'manifest.json'}: the rows of its shards do not add up" in message


def test_the_same_shard_twice(folder: Path) -> None:
    """Its rows would come twice an epoch."""

    def change(tree: dict[str, Any]) -> None:
        tree["shards"][2] = tree["shards"][1]

    change_manifest(folder, change)
    refusal(folder)


# The shards


def test_a_missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert "the file is missing" in shard_refusal(folder)


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_a_truncated_shard(folder: Path, keep: int) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:keep])
    assert f"it has {len(content[:keep])} bytes, not {len(content)}" in shard_refusal(folder)


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_flipped_byte(folder: Path, place: int) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[place] ^= 1
    (folder / SHARD).write_bytes(content)
    found = hashlib.sha256(content).hexdigest()[:12]
    assert f"its SHA-256 is {found}…" in shard_refusal(folder)


def test_two_shards_in_each_others_place(folder: Path) -> None:
    other = folder / "shard-00002-of-00004.parquet"
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(other.read_bytes())
    other.write_bytes(content)
    shard_refusal(folder)


@pytest.mark.parametrize("content", [b"not Parquet at all", b"PAR1PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_not_parquet(folder: Path, content: bytes) -> None:
    (folder / SHARD).write_bytes(content)
    rehash(folder)
    assert "it is not readable Parquet" in shard_refusal(folder)


def set_field(table: pa.Table, name: str, field: pa.Field) -> pa.Table:
    position = table.schema.names.index(name)
    return table.set_column(position, field, table.column(name).cast(field.type))


def as_other_shape(table: pa.Table) -> pa.Table:
    latents = table.column("latent").combine_chunks().to_numpy_ndarray().reshape(-1, 1, 4, 16)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(latents))
    return table.set_column(2, pa.field("latent", column.type, nullable=False), column)


def as_plain_lists(table: pa.Table) -> pa.Table:
    column = table.column("latent").combine_chunks().storage
    return table.set_column(2, pa.field("latent", column.type, nullable=False), column)


SCHEMAS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a column more": lambda t: t.append_column(pa.field("x", pa.int64(), nullable=False), t.column("label")),
    "a column less": lambda t: t.drop_columns(["row_id"]),
    "columns in another order": lambda t: t.select(["label", "row_id", "latent"]),
    "another type of label": lambda t: set_field(t, "label", pa.field("label", pa.int32(), nullable=False)),
    "labels that may be missing": lambda t: set_field(t, "label", pa.field("label", pa.int64())),
    "another shape": as_other_shape,
    "lists in place of tensors": as_plain_lists,
}


@pytest.mark.parametrize("change", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_another_schema(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    rewrite(folder, change)
    assert "not the shard schema" in shard_refusal(folder)


def test_other_row_groups(folder: Path) -> None:
    change_manifest(folder, lambda tree: tree["shards"][1].update(row_groups=[66, 128, 128, 128]))
    assert "its row groups have [128, 128, 128, 66] rows, not [66, 128, 128, 128]" in shard_refusal(folder)


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_out_of_range(own_folder: Path, make_latents: Callable[..., Latents], label: int) -> None:
    labels = np.arange(20) % 3
    labels[13] = label
    folder = own_folder / "small"
    write_shards(make_latents(20, labels=labels), folder, rows_per_shard=10, rows_per_group=4)
    message = refusal(folder)
    assert str(folder / "shard-00001-of-00002.parquet") in message
    assert "a label is out of range" in message
    assert str(label) in message
    assert "allowed is 0…2" in message


def test_labels_that_cannot_be_checked(folder: Path) -> None:
    rewrite(folder, lambda table: table, write_statistics=False)
    assert "labels are unknown, allowed is 0…9" in shard_refusal(folder)


# The model


def test_the_digits_fit_their_model(digits_folder: Path) -> None:
    check_model_fits(Manifest.read(digits_folder), PRESETS["tiny"], digits_folder)


@pytest.mark.parametrize(
    ("shape", "classes", "parts"),
    [
        ((4, 32, 32), 10, ["(4, 32, 32)", "(1, 8, 8)", "model.in_channels=4 model.input_size=32"]),
        ((1, 16, 16), 10, ["(1, 16, 16)", "(1, 8, 8)", "model.in_channels=1 model.input_size=16"]),
        ((1, 8, 4), 10, ["(1, 8, 4)", "(1, 8, 8)"]),
        ((1, 8, 8), 3, ["3 classes", "model.num_classes is 10", "model.num_classes=3"]),
    ],
)
def test_a_model_that_does_not_fit(
    digits_folder: Path, shape: tuple[int, int, int], classes: int, parts: list[str]
) -> None:
    names = [str(number) for number in range(classes)]
    manifest = Manifest.read(digits_folder).model_copy(update={"shape": shape, "class_names": names})
    with pytest.raises(UserError, match=re.escape(str(digits_folder))) as caught:
        check_model_fits(manifest, PRESETS["tiny"], digits_folder)
    for part in [*parts, "data.path"]:
        assert part in str(caught.value)
