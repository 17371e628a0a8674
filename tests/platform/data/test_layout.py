"""A folder of shards as other programs open it, and folders with the names of earlier versions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
from tests.platform.conftest import description_of, small_rows
from tests.platform.data.damage import put, rewrite

from causalfusion_platform.data.layout import CARD_FILE, EARLIER_NAMES, NAMES, names_in
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.quarantine import quarantine_shards
from causalfusion_platform.data.scan import scan_shards
from causalfusion_platform.data.shards import Rows, is_replaceable, write_shards


@pytest.fixture
def rows() -> Rows:
    return dataclasses.replace(small_rows(30, posterior=True, flip=True), captions=[["a", "b"], ["c"], []] * 10)


@pytest.fixture
def folder(own_folder: Path, rows: Rows) -> Path:
    """Three shards with everything that lies beside them: a record, a table of faults, a shard set aside."""
    description = description_of(rows).model_copy(update={"captions": True})
    write_shards(rows, description, own_folder / "small", rows_per_shard=10, rows_per_group=4)
    folder = own_folder / "small"
    for name in (NAMES.records, NAMES.quarantine):
        (folder / name).mkdir()
    (folder / NAMES.records / "lock").touch()
    (folder / NAMES.records / "shard-00000.json").write_text("{}")
    (folder / NAMES.faults).write_text("key,kind,action,detail\n")
    (folder / NAMES.quarantine / "shard-00000-of-00003.parquet").write_bytes(b"damaged")
    (folder / ".classifier-0123").mkdir()
    return folder


def test_pyarrow_and_pandas_open_the_folder(folder: Path, rows: Rows) -> None:
    table = pq.read_table(folder)
    assert table["row_id"].to_pylist() == list(range(30))
    assert np.array_equal(table["mean"].combine_chunks().to_numpy_ndarray(), rows.mean)
    assert pq.read_table(folder, columns=["captions"], filters=[("label", "=", 0)]).num_rows == 10
    frame = pd.read_parquet(folder)
    assert frame["label"].tolist() == rows.labels.tolist()
    assert np.array_equal(np.stack(frame["std_flip"].to_list()), np.reshape(rows.std_flip, (30, -1)))  # type: ignore[arg-type]


def test_the_card_has_every_column_as_hugging_face_takes_it(folder: Path, rows: Rows) -> None:
    """Arrow's tensors are not known there. Their storage, lists of a fixed length, is."""
    card = json.loads((folder / CARD_FILE).read_text())
    assert card["configs"] == [{"config_name": "default", "data_files": "shard-*.parquet"}]
    features = {feature["name"]: feature for feature in card["dataset_info"]["features"]}
    schema = pq.read_schema(folder / "shard-00000-of-00003.parquet")
    assert list(features) == schema.names
    for name in ("mean", "std", "mean_flip", "std_flip"):
        storage = schema.field(name).type.storage_type
        assert (features[name]["sequence"], features[name]["length"]) == ("float16", storage.list_size)
    assert features["label"]["dtype"] == {"class_label": {"names": {"0": "zero", "1": "one", "2": "two"}}}
    assert (features["row_id"]["dtype"], features["key"]["dtype"]) == ("int64", "string")
    assert features["captions"]["sequence"] == "string"


def test_a_folder_keeps_its_earlier_names(folder: Path) -> None:
    digest = Manifest.read(folder).digest
    for name, earlier in zip(NAMES, EARLIER_NAMES, strict=True):
        (folder / name).rename(folder / earlier)
    (folder / CARD_FILE).unlink()
    assert names_in(folder) == EARLIER_NAMES
    assert Manifest.read(folder).digest == digest
    file = rewrite(folder, 1, put("mean", 5, np.nan))
    checked = scan_shards(folder).checked
    quarantine_shards(folder, checked.manifest, checked.bad)
    assert (folder / "quarantine" / file).is_file()
    assert Manifest.read(folder).rows == 20
    assert not {path.name for path in folder.iterdir()} & {*NAMES, CARD_FILE}


def test_data_written_anew_has_the_present_names(folder: Path, rows: Rows) -> None:
    (folder / NAMES.manifest).rename(folder / EARLIER_NAMES.manifest)
    (folder / NAMES.quarantine).rename(folder / EARLIER_NAMES.quarantine)
    (folder / NAMES.records).rename(folder.parent / "elsewhere")
    assert names_in(folder) == EARLIER_NAMES
    write_shards(small_rows(4), description_of(small_rows(4)), folder, rows_per_shard=4, rows_per_group=4)
    assert names_in(folder) == NAMES
    assert pq.read_table(folder).num_rows == 4
    assert not (folder / EARLIER_NAMES.quarantine).exists()


def test_a_card_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text("configs: []")
    assert not is_replaceable(tmp_path)
