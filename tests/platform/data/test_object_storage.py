"""Shards on object storage: the same batches as from disk, and damage that is named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.object_store import SERVER_ERROR, THROTTLED, FaultyServer
from typer.testing import CliRunner

from causalfusion_platform.cli.main import app
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import DataConfig
from causalfusion_platform.data.in_memory import batches_in_memory
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.overlap import ShardsOf, shared_latents
from causalfusion_platform.data.passes import read_group
from causalfusion_platform.data.read import Dataset, local_batches, read_all
from causalfusion_platform.data.shards import Rows, tokenizer_file
from causalfusion_platform.data.stream import _ReadWindows
from causalfusion_platform.data.upload import upload_shards
from causalfusion_platform.data.validate import open_shards
from causalfusion_platform.storage.object_path import ObjectPath, Unreadable, as_path
from causalfusion_platform.storage.objects import Unavailable, open_store

WriteSmall = Callable[..., tuple[Path, Rows, Manifest]]
Copied = tuple[Path, ObjectPath, Manifest]


@pytest.fixture
def copied(write_small: WriteSmall, s3_bucket: str) -> Copied:
    """Three shards on disk, and the same on object storage."""
    folder, _, manifest = write_small(23, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    address = as_path(f"{s3_bucket}/shards/small")
    assert isinstance(address, ObjectPath)
    assert upload_shards(folder, address) == manifest
    return folder, address, manifest


def test_batches_are_those_of_the_folder_on_disk(copied: Copied) -> None:
    """In one process, in the memory of two workers, and by the tasks of Ray Data, which get a pickled data set."""
    on_disk, on_s3 = (Dataset(place, copied[2], 2, 9, True, True) for place in copied[:2])
    expected = list(local_batches(on_disk, batch_size=7, start=3, stop=40))
    found = list(local_batches(on_s3, batch_size=7, start=3, stop=40))
    assert len(found) == len(expected) == 6
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("row_ids", "latents", "labels"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
    for rank in range(2):
        parts = [
            list(batches_in_memory(data, batch_size=7, start=3, stop=40, rank=rank, num_workers=2))
            for data in (on_s3, on_disk)
        ]
        assert all(torch.equal(ours.latents, theirs.latents) for ours, theirs in zip(*parts, strict=True))
    windows = list(on_disk.windows(3, 40))
    tasks = [pickle.loads(pickle.dumps(_ReadWindows(data, windows))) for data in (on_s3, on_disk)]
    tables = [list(task({"window": np.arange(len(windows))})) for task in tasks]
    assert all(ours.equals(theirs) for ours, theirs in zip(*tables, strict=True))
    assert torch.equal(read_all(copied[1], copied[2]).latents, read_all(copied[0], copied[2]).latents)


@pytest.mark.parametrize("hashes", [True, False], ids=["hash", "quick"])
def test_sound_shards_pass_and_are_not_read_again(copied: Copied, hashes: bool, s3_server: FaultyServer) -> None:
    checked = open_shards(copied[1], hashes=hashes)
    assert (checked.bad, checked.manifest, checked.folder) == ({}, copied[2], copied[1])
    before = len(s3_server.requests)
    assert open_shards(copied[1], hashes=hashes, known=checked).bad == {}
    assert not any(".parquet" in request for request in s3_server.requests[before:])
    overlap = shared_latents(ShardsOf(copied[0], copied[2]), ShardsOf(copied[1], copied[2]))
    assert len(overlap.keys) == 23


def test_damaged_and_missing_objects_are_named(copied: Copied) -> None:
    _, address, manifest = copied
    first, second, third = (shard.file for shard in manifest.shards)
    store = open_store(address.url)
    damaged = bytearray(store.read(first))
    for place in range(100, len(damaged) // 2, 50):
        damaged[place] ^= 1
    store.write(first, bytes(damaged))
    store.write(second, store.read(second)[:-1])
    store.delete(third)
    with pytest.raises(UserError) as told:
        open_shards(address)
    text = str(told.value)
    assert f"shard {address}/{first} does not match its manifest: its SHA-256 is" in text
    assert f"shard {address}/{second} does not match its manifest: it has " in text
    assert f"shard {address}/{third} does not match its manifest: the file is missing" in text
    assert f"copy sound shards there: causalfusion data upload FOLDER {address}" in text
    with pytest.raises(UserError, match=rf"shard {address}/{third} cannot be read: .* does not exist"):
        read_group(address, manifest.shards[2], 0, ["label"])
    with pytest.raises(UserError, match=rf"shard {address}/{first} cannot be read: row group "):
        list(
            local_batches(
                Dataset(address, manifest.without([second, third]), 2, 100), batch_size=9, start=0, stop=9
            )
        )


def test_a_change_after_the_check_is_seen(copied: Copied) -> None:
    checked = open_shards(copied[1])
    file = copied[2].shards[1].file
    store = open_store(copied[1].url)
    content = store.read(file)
    store.write(file, content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(UserError, match=rf"{file} does not match its manifest: its SHA-256"):
        open_shards(copied[1], known=checked)


@pytest.mark.parametrize("fault", [SERVER_ERROR, THROTTLED], ids=["500", "throttled"])
def test_checks_and_reading_survive_faults_of_the_server(
    copied: Copied, fault: tuple[str, str], s3_server: FaultyServer, no_pauses: None
) -> None:
    s3_server.fail("GET", 6, fault)
    s3_server.fail("HEAD", 6, fault)
    assert open_shards(copied[1]).bad == {}
    assert s3_server.faults_left == 0
    s3_server.fail("GET", 3, fault)
    assert len(list(local_batches(Dataset(copied[1], copied[2], 2, 9), batch_size=23, start=0, stop=23))) == 1
    assert s3_server.faults_left == 0


def test_a_store_that_stays_away_is_not_a_damaged_shard(
    copied: Copied, s3_server: FaultyServer, no_pauses: None
) -> None:
    s3_server.fail("GET", 100, SERVER_ERROR)
    try:
        with pytest.raises(Unreadable, match=rf"^{copied[1]}/shard-.* cannot be read: .*\n  give the same"):
            list(local_batches(Dataset(copied[1], copied[2], 2, 9), batch_size=23, start=0, stop=23))
    finally:
        s3_server.recover()


def test_an_empty_address_and_a_missing_bucket_are_told(s3_bucket: str) -> None:
    with pytest.raises(UserError, match=rf"{s3_bucket}/none has no _manifest.json.*\n  copy shards there"):
        open_shards(as_path(f"{s3_bucket}/none"))
    with pytest.raises(UserError, match="has no bucket no-such-bucket"):
        open_shards(as_path("s3://no-such-bucket/x"))


def test_a_copy_is_whole_or_not_there(copied: Copied, s3_server: FaultyServer, no_pauses: None) -> None:
    folder, address, manifest = copied
    s3_server.fail("PUT", 8, SERVER_ERROR)
    with pytest.raises(Unavailable):
        upload_shards(folder, address)
    s3_server.recover()
    with pytest.raises(UserError, match=r"has no _manifest\.json"):
        Manifest.read(address)
    upload_shards(folder, address)
    assert Manifest.read(address) == manifest


def test_other_objects_are_not_replaced(copied: Copied, tmp_path: Path) -> None:
    _, address, manifest = copied
    open_store(address.parent.url).write("other/run.json", b"")
    with pytest.raises(UserError, match=r"other holds 1 other objects, such as run.json\n  name another prefix"):
        upload_shards(copied[0], ObjectPath(f"{address.parent}/other"))
    (tmp_path / "damaged").mkdir()
    for path in copied[0].iterdir():
        (tmp_path / "damaged" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "damaged" / manifest.shards[0].file).unlink()
    with pytest.raises(UserError, match="the file is missing"):
        upload_shards(tmp_path / "damaged", ObjectPath(f"{address.parent}/new"))


def test_the_commands_take_addresses(copied: Copied, tmp_path: Path) -> None:
    folder, address, manifest = copied

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, UserError):
            return str(result.exception)
        return result.output

    assert "23 rows in 3 shards" in run("data", "upload", folder, f"{address}-again")
    assert Manifest.read(ObjectPath(f"{address}-again")) == manifest
    assert str(address) in run("data", "verify", address)
    assert "moves files" in run("data", "verify", address, "--quarantine")
    assert run("data", "stats", address) == run("data", "stats", folder).replace(str(folder), str(address))
    assert "3 of" in run("data", "subset", address, tmp_path / "few", "--per-class", "1")
    for arguments in (("digits", address), ("encode", folder, address, "--vae", "identity")):
        assert "copy it there: causalfusion data upload" in run("data", *arguments)
    assert "is a path on disk" in run("data", "upload", folder, tmp_path / "x")
    assert "hdfs:// is not supported here" in run("data", "verify", "hdfs://host/x")
    assert not any(path.name.startswith("s3:") for path in Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": "gs://bucket/x"}, "gs:// is not supported here"),
        ({"path": "s3://b"}, "a bucket has 3 to 63"),
        ({"validation": "s3://bucket/a//b"}, "parts of a key"),
        ({"tokenizer": "s3://bucket/tokenizer.json"}, "cannot be given here: give a path on disk"),
        ({"tokenizer": "https://host/tokenizer.json"}, "https:// is not supported here: give a path on disk"),
        ({"path": "s3://bucket/x", "prepare": True}, "prepare and subset write"),
        (
            {"path": "s3://bucket/x", "subset": {"of": "a", "per_class": 1}},
            "prepare and subset write",
        ),
    ],
)
def test_wrong_addresses_in_a_configuration_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig.model_validate(given)


def test_what_belongs_to_shards_is_kept_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAUSALFUSION_HOME", str(tmp_path))
    assert tokenizer_file(as_path("s3://bucket/x"), "0" * 64).is_relative_to(tmp_path)
    assert DataConfig.model_validate({"path": "s3://bucket/x"}).model_dump(mode="json")["path"] == "s3://bucket/x"
