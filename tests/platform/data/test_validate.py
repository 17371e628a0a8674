"""Shards that are not what their manifest says are refused, with the file's name and a way out."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from causalfusion import PRESETS
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Rows
from causalfusion_platform.data.validate import check_draws, check_model_fits, open_shards, shard_fault

SHARD = "shard-00001-of-00004.parquet"
STRANGE: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, math.inf, -math.inf, math.nan, "", "\0", "x" * 5000),
    *([], {}, [[]], [None] * 1000, json.loads("[" * 900 + "]" * 900)),
]
"""Values that no field of a manifest is meant to have."""
MANIFESTS: dict[Path, str] = {}
"""Manifests as they were before the first change."""


@pytest.fixture
def folder(digits_folder: Path, own_folder: Path) -> Path:
    """Return a copy of the digits, to be damaged."""
    return Path(shutil.copytree(digits_folder, own_folder / "digits"))


def refusal(folder: Path) -> str:
    """Return why the folder is refused; the refusal says how to make it anew."""
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    message = str(caught.value)
    assert f"causalfusion data digits {folder}" in message
    assert f"causalfusion data encode IMAGES {folder}" in message
    return message


def shard_refusal(folder: Path) -> str:
    """Return what is wrong with the shard; the refusal names it alone, and says what to do."""
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    message = str(caught.value)
    assert message.startswith(f"shard {folder / SHARD} does not match its manifest: ")
    assert message.count("shard-0") == 1
    assert f"causalfusion data verify {folder} --quarantine" in message
    return message


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "_manifest.json"
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
    checked = open_shards(folder)
    assert (checked.manifest.rows, checked.bad, checked.notice) == (1797, {}, "")
    assert checked.usable == checked.manifest == Manifest.read(folder)


def test_a_shard_rewritten_as_it_was_is_accepted(folder: Path) -> None:
    """What the tests below do to a shard is refused for their change, not for the rewriting."""
    rewrite(folder, lambda table: table, compression="none")
    assert open_shards(folder).bad == {}


# What an earlier look found


def test_an_earlier_verdict_is_taken_where_files_are_as_they_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(path: Path, *rest: Any) -> str | None:
        looked.append(path.name)
        return shard_fault(path, *rest)

    monkeypatch.setattr("causalfusion_platform.data.validate.shard_fault", look)
    (folder / SHARD).write_bytes(b"damaged")
    first = open_shards(folder, max_bad_rows=0.5)
    looked.clear()
    again = open_shards(folder, max_bad_rows=0.5, known=first)
    assert (again, looked) == (first, [])
    with pytest.raises(UserError, match="it has 7 bytes"):  # the limit is that of now
        open_shards(folder, known=first)
    assert looked == []

    other = next(shard.file for shard in first.manifest.shards if shard.file != SHARD)
    os.utime(folder / other, ns=(1, 1))
    (folder / SHARD).unlink()
    found = open_shards(folder, max_bad_rows=0.5, known=first)
    assert (sorted(looked), found.bad) == (sorted([SHARD, other]), {SHARD: "the file is missing"})


def test_a_verdict_without_hashes_or_of_another_manifest_is_not_taken(folder: Path) -> None:
    path = folder / SHARD
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    quick = open_shards(folder, hashes=False)
    assert open_shards(folder, hashes=False, known=quick).bad == {}
    with pytest.raises(UserError, match="its SHA-256 is"):
        open_shards(folder, known=quick)
    whole = dataclasses.replace(quick, hashes=True)
    assert open_shards(folder, known=whole).bad == {}
    change_manifest(folder, lambda tree: tree["source"].update(location="elsewhere"))
    with pytest.raises(UserError, match="its SHA-256 is"):
        open_shards(folder, known=whole)


# The folder and its manifest


def test_a_missing_folder(own_folder: Path) -> None:
    message = refusal(own_folder / "nowhere")
    assert str(own_folder / "nowhere") in message
    assert "does not exist" in message


def test_a_file_in_place_of_the_folder(own_folder: Path) -> None:
    (own_folder / "file").write_text("text")
    assert "is not a folder" in refusal(own_folder / "file")


def test_a_folder_without_a_manifest(folder: Path) -> None:
    (folder / "_manifest.json").unlink()
    assert f"{folder} has no _manifest.json" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b'{"rows": ', b"[]", b"null", b"\xff\xfe", b"{}", b'"text"'])
def test_a_manifest_that_cannot_be_read(folder: Path, content: bytes) -> None:
    (folder / "_manifest.json").write_bytes(content)
    assert f"{folder / '_manifest.json'} is not a shard manifest of version 2 or 3" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 1),
        ("version", 4),
        ("split", "restval"),
        ("dtype", "float32"),
        ("autoencoder.scale", 0),
        ("autoencoder.scale", math.inf),
        ("autoencoder.scale", math.nan),
        ("shape", [2**16, 2**16, 1]),
        ("source.items", 0),
        ("source.items", 2**80),
        ("crop", {"kind": "random"}),
        ("order", "sorted"),
        ("posterior", "half of them"),
        ("rows", 0),
        ("class_names", []),
        ("quarantined", [{"file": "lost.parquet"}]),
        ("unknown", 1),
    ],
)
def test_a_manifest_with_other_values(folder: Path, key: str, value: object) -> None:
    def change(tree: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for part in path:
            tree = tree[part]
        tree[last] = value

    change_manifest(folder, change)
    message = refusal(folder)
    assert str(folder / "_manifest.json") in message
    assert f"version 2 or 3: {key}" in message


@pytest.mark.parametrize("shape", [[2**40, 1, 1], [1, 8, 2**16 + 1], [0, 8, 8], [1, -8, 8], [1e300, 8, 8]])
def test_a_latent_of_a_size_that_none_has(folder: Path, shape: list[float]) -> None:
    """Refused before memory of that size is allocated."""
    change_manifest(folder, lambda tree: tree.update(shape=shape))
    assert "version 2 or 3: shape." in refusal(folder)


@pytest.mark.parametrize("row_groups", [[-1, 451], [0, 450], [10**30]])
def test_row_groups_of_a_size_that_none_has(folder: Path, row_groups: list[int]) -> None:
    change_manifest(folder, lambda tree: tree["shards"][1].update(row_groups=row_groups))
    assert any(reason in refusal(folder) for reason in ("version 2 or 3: shards.1.row_groups.0: ", "do not add up"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_manifest_is_refused_or_harmless(
    digits_folder: Path, folder: Path, data: st.DataObject
) -> None:
    """Values of other types, huge numbers and deep nesting end in one message, and never in a traceback."""
    path = folder / "_manifest.json"
    tree = json.loads(MANIFESTS.setdefault(path, path.read_text()))
    part, key = tree, data.draw(st.sampled_from(sorted(tree)))
    while isinstance(part[key], dict | list) and part[key] and data.draw(st.booleans()):
        part = part[key]
        key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
    part[key] = data.draw(st.sampled_from(STRANGE))
    text = json.dumps(tree)
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(text))))
    path.write_text(text[:cut])
    try:
        checked = open_shards(folder, max_bad_rows=0.999)
    except UserError as error:
        assert "\n  " in str(error)
    else:
        assert checked.usable.rows <= 1797


def test_a_manifest_of_the_first_version(folder: Path) -> None:
    """Its other keys are wrong too; what is said is that it is old."""
    entry = {"source": "s", "rows": 1, "shape": [1, 8, 8], "scale": 1.0, "autoencoder": "identity"}
    (folder / "_manifest.json").write_text(json.dumps({"version": 1, **entry, "class_names": ["a"], "shards": []}))
    assert "version 2 or 3: version: " in refusal(folder)


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
    assert f"{folder / '_manifest.json'}: the rows of its shards do not add up" in message


def test_the_same_shard_twice(folder: Path) -> None:
    """Its rows would come twice an epoch."""

    def change(tree: dict[str, Any]) -> None:
        tree["shards"][2] = tree["shards"][1]

    change_manifest(folder, change)
    assert "lists a shard twice" in refusal(folder)


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
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    for file in (SHARD, other.name):
        assert f"shard {folder / file} does not match its manifest: it" in str(caught.value)


def test_hashes_can_be_left_to_the_readers(folder: Path) -> None:
    """Then a changed byte of a page is not seen here, but everything else is."""
    content = bytearray((folder / SHARD).read_bytes())
    content[1000] ^= 1
    (folder / SHARD).write_bytes(content)
    assert open_shards(folder, hashes=False).bad == {}
    (folder / SHARD).write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"it has {len(content) - 1} bytes, not {len(content)}"):
        open_shards(folder, hashes=False)


@pytest.mark.parametrize("content", [b"not Parquet at all", b"PAR1PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_not_parquet(folder: Path, content: bytes) -> None:
    (folder / SHARD).write_bytes(content)
    rehash(folder)
    assert "it is not readable Parquet" in shard_refusal(folder)


def set_field(table: pa.Table, name: str, field: pa.Field) -> pa.Table:
    position = table.schema.names.index(name)
    return table.set_column(position, field, table.column(name).cast(field.type))


def as_other_shape(table: pa.Table) -> pa.Table:
    latents = table.column("mean").combine_chunks().to_numpy_ndarray().reshape(-1, 1, 4, 16)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(latents))
    return table.set_column(3, pa.field("mean", column.type, nullable=False), column)


def as_plain_lists(table: pa.Table) -> pa.Table:
    column = table.column("mean").combine_chunks().storage
    return table.set_column(3, pa.field("mean", column.type, nullable=False), column)


SCHEMAS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a column more": lambda t: t.append_column(pa.field("x", pa.int64(), nullable=False), t.column("label")),
    "a column less": lambda t: t.drop_columns(["row_id"]),
    "columns in another order": lambda t: t.select(["label", "row_id", "key", "mean"]),
    "another type of label": lambda t: set_field(t, "label", pa.field("label", pa.int32(), nullable=False)),
    "labels that may be missing": lambda t: set_field(t, "label", pa.field("label", pa.int64())),
    "keys as bytes": lambda t: set_field(t, "key", pa.field("key", pa.binary(), nullable=False)),
    "a posterior": lambda t: t.append_column(t.schema.field("mean").with_name("std"), t.column("mean")),
    "a column of another name": lambda t: t.rename_columns(["row_id", "label", "key", "latent"]),
    "a note": lambda t: t.replace_schema_metadata({"made": "by hand"}),
    "another shape": as_other_shape,
    "lists in place of tensors": as_plain_lists,
}


@pytest.mark.parametrize("change", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_another_schema(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    rewrite(folder, change)
    assert "its schema is not that of the manifest, row_id, label, key, mean for (1, 8, 8)" in shard_refusal(folder)


def test_another_promise_of_the_manifest(folder: Path) -> None:
    """Shards whose manifest promises mirrored images, and that have none, are all bad."""
    change_manifest(folder, lambda tree: tree.update(flip=True))
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    wanted = "its schema is not that of the manifest, row_id, label, key, mean, mean_flip for (1, 8, 8)"
    assert str(caught.value).count(wanted) == 4


def test_two_schemas_in_one_file(folder: Path) -> None:
    """The right one does not vouch for the other, which Arrow might take."""
    table = pq.read_table(folder / SHARD)
    right, other = (
        base64.b64encode(schema.serialize().to_pybytes()) for schema in (table.schema, table.schema.remove(2))
    )
    with pq.ParquetWriter(folder / SHARD, table.schema, store_schema=False) as writer:
        writer.add_key_value_metadata({b"ARROW:scheme": right, b"ARROW:schema": other})
        writer.write_table(table, row_group_size=128)
    content = (folder / SHARD).read_bytes().replace(b"ARROW:scheme", b"ARROW:schema")
    (folder / SHARD).write_bytes(content)
    rehash(folder)
    assert content.count(b"ARROW:schema") == 2
    assert "its schema is not that of the manifest" in shard_refusal(folder)


def test_columns_that_are_not_those_of_their_schema(folder: Path) -> None:
    """Arrow's schema lies in the file beside Parquet's own: columns of other types do not pass under it."""
    table = pq.read_table(folder / SHARD)
    named = pa.ipc.read_schema(pa.BufferReader(table.schema.serialize()))
    stored = set_field(table, "label", pa.field("label", pa.int32(), nullable=False))
    metadata = {b"ARROW:schema": base64.b64encode(named.serialize().to_pybytes())}
    with pq.ParquetWriter(folder / SHARD, stored.schema, store_schema=False) as writer:
        writer.add_key_value_metadata(metadata)
        writer.write_table(stored, row_group_size=128)
    rehash(folder)
    assert pq.read_metadata(folder / SHARD).metadata == metadata
    assert "its columns are not those of the manifest" in shard_refusal(folder)


def test_other_row_groups(folder: Path) -> None:
    change_manifest(folder, lambda tree: tree["shards"][1].update(row_groups=[66, 128, 128, 128]))
    assert "its row groups have [128, 128, 128, 66] rows, not [66, 128, 128, 128]" in shard_refusal(folder)


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_out_of_range(
    own_folder: Path, make_rows: Callable[..., Rows], write_rows: Callable[..., Manifest], label: int
) -> None:
    labels = np.arange(20) % 3
    labels[13] = label
    folder = own_folder / "small"
    manifest = write_rows(make_rows(20, labels=labels), folder, rows_per_shard=10, rows_per_group=4)
    assert shard_fault(folder / manifest.shards[0].file, manifest.shards[0], manifest) is None
    fault = shard_fault(folder / manifest.shards[1].file, manifest.shards[1], manifest)
    assert fault is not None
    assert "a label is out of range" in fault
    assert str(label) in fault
    assert "allowed is 0…2" in fault


def test_labels_that_cannot_be_checked(folder: Path) -> None:
    rewrite(folder, lambda table: table, write_statistics=False)
    assert "labels are unknown, allowed is 0…9" in shard_refusal(folder)


# The model and the draws


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


@pytest.mark.parametrize("flip", [None, False, True])
@pytest.mark.parametrize("held", [False, True])
def test_mirrored_images_that_are_not_there(digits_folder: Path, flip: bool | None, held: bool) -> None:
    manifest = Manifest.read(digits_folder).model_copy(update={"flip": held})
    if flip and not held:
        with pytest.raises(UserError, match=re.escape(f"data.flip=true, but the shards in {digits_folder}")):
            check_draws(manifest, flip, digits_folder)
    else:
        check_draws(manifest, flip, digits_folder)
