"""A shard whose schema names a type that runs code when it is read is refused without reading it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import run_environment

SHARD = "shard-00001-of-00004.parquet"

# A type that this process knows: what it does with a file's metadata is its own affair.
OWN_TYPE = """
import pyarrow as pa

class Trap(pa.ExtensionType):
    def __init__(self, storage):
        super().__init__(storage, "trap")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        open("marker", "w").close()
        return cls(storage)

pa.register_extension_type(Trap(pa.list_(pa.float16(), 64)))
"""
# Ray's tensors: files of older versions hold their shape as a pickle, which newer ones load if a variable says so.
RAYS_TYPE = "import ray.data"

CHECK = """
import pathlib
import sys
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.validate import open_shards

marker = pathlib.Path("marker")
try:
    open_shards(pathlib.Path(sys.argv[1]))
except UserError as error:
    print(error)
print("ran" if marker.exists() else "did not run")

# The same file as anything else reads it.
import pyarrow.parquet as pq
try:
    pq.read_schema(pathlib.Path(sys.argv[1]) / sys.argv[2])
except Exception:
    pass
print("runs" if marker.exists() else "does not run")
"""


class _Touch:
    """Pickled, it is a call that makes the marker."""

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, ("marker", os.O_CREAT)


def forge(folder: Path, name: str, carried: bytes) -> None:
    """Give the shard's `mean` another extension type, in a file that the manifest hashes."""
    table = pq.read_table(folder / SHARD)
    storage = table["mean"].combine_chunks().storage
    storage = storage if name == "trap" else storage.cast(pa.list_(pa.float16()))
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": carried}
    plain = table.set_column(3, pa.field("mean", storage.type, nullable=False), storage)
    named = plain.schema.set(3, pa.field("mean", storage.type, nullable=False, metadata=metadata))
    with pq.ParquetWriter(folder / SHARD, plain.schema, store_schema=False) as writer:
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(named.serialize().to_pybytes())})
        writer.write_table(plain, row_group_size=128)
    content = (folder / SHARD).read_bytes()
    tree = json.loads((folder / "_manifest.json").read_text())
    tree["shards"][1] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "_manifest.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "carried", "types"),
    [("trap", b"", OWN_TYPE), ("ray.data.arrow_tensor", pickle.dumps(_Touch(), protocol=0), RAYS_TYPE)],
    ids=["trap", "ray"],
)
def test_code_in_a_schema_does_not_run(
    digits_folder: Path, own_folder: Path, name: str, carried: bytes, types: str
) -> None:
    folder = Path(shutil.copytree(digits_folder, own_folder / "digits"))
    forge(folder, name, carried)
    result = subprocess.run(
        [sys.executable, "-c", types + CHECK, str(folder), SHARD],
        cwd=own_folder,
        env={**run_environment(), "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert f"shard {folder / SHARD} does not match its manifest: its schema is not that of the manifest" in lines[0]
    assert lines[-2:] == ["did not run", "runs"]
