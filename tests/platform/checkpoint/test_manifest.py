"""The checkpoint manifest: a checkpoint is trusted only when every file is there and unchanged."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.platform.checkpoint.made import facts, hash_files

from causalfusion_platform.checkpoint.manifest import (
    BadCheckpoint,
    FileRecord,
    check,
    config_digest,
    write_manifest,
)
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment

FILES = {"engine/state/rank-0.pt": b"one", "ema/rank-00000.safetensors": b"two" * 99_999, "empty": b""}


@pytest.fixture
def folder(own_folder: Path) -> Path:
    """Return a complete checkpoint."""
    folder = own_folder / "checkpoint"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, facts(896, step=7, world_size=2), hash_files(folder))
    return folder


def fault(folder: Path, **how: bool) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        check(folder, **how)
    return str(caught.value)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON."""
    tree = json.loads((folder / "checkpoint.json").read_text())
    edit(tree)
    (folder / "checkpoint.json").write_text(json.dumps(tree))


def test_a_complete_checkpoint(folder: Path) -> None:
    manifest = check(folder)
    assert (manifest.version, manifest.step, manifest.images_seen, manifest.world_size) == (2, 7, 896, 2)
    assert manifest.files == {
        name: FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in FILES.items()
    }
    assert manifest.bytes == 3 + 3 * 99_999
    assert timedelta(0) <= datetime.now(UTC) - manifest.created < timedelta(minutes=5)
    assert {path.name for path in folder.iterdir()} == {"engine", "ema", "empty", "checkpoint.json"}


def test_everything_is_read_again_as_it_was_written(folder: Path) -> None:
    """Also numbers that JSON has no name for."""
    said = facts(
        64,
        order=3,
        metrics={"loss": math.inf, "mse": 0.1},
        grad_norms=[0.1, 1e-30, math.inf],
        averages=["ema-0.9999", "power-0.10"],
        versions={"torch": "2.13.0"},
        mlflow_run_id="abc",
    )
    write_manifest(folder, said, hash_files(folder))
    assert facts(64, **{name: getattr(check(folder), name) for name in type(said).model_fields}) == said
    write_manifest(folder, facts(64, metrics={"loss": math.nan}), hash_files(folder))
    assert math.isnan(check(folder).metrics["loss"])


def test_a_checkpoint_can_be_moved(folder: Path, own_folder: Path) -> None:
    before = check(folder)
    assert check(folder.rename(own_folder / "elsewhere")) == before


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert fault(folder) == fault(folder, hashes=False) == f"{name} is missing"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit(folder: Path, name: str) -> None:
    if FILES[name]:
        content = bytearray(FILES[name])
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        found, wanted = (hashlib.sha256(data).hexdigest()[:12] for data in (content, FILES[name]))
        assert fault(folder) == f"{name} has changed: its SHA-256 is {found}…, not {wanted}…"
        assert check(folder, hashes=False)
    else:
        (folder / name).write_bytes(b"\0")
        assert fault(folder) == f"{name} has 1 of 0 bytes"


def test_a_truncated_file(folder: Path) -> None:
    os.truncate(folder / "ema/rank-00000.safetensors", 1234)
    assert fault(folder, hashes=False) == "ema/rank-00000.safetensors has 1,234 of 299,997 bytes"


def test_sizes_are_looked_at_before_hashes(folder: Path) -> None:
    """Which takes no time: the last file's size is wrong, and the hash of another."""
    (folder / "ema/rank-00000.safetensors").write_bytes(b"owt" * 99_999)
    (folder / "engine/state/rank-0.pt").write_bytes(b"on")
    assert fault(folder) == "engine/state/rank-0.pt has 2 of 3 bytes"


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert fault(folder) == "empty is missing"


def test_a_file_too_many_does_no_harm(folder: Path) -> None:
    """Such as a note, or what a network file system leaves behind."""
    (folder / "note.txt").write_text("good one")
    assert check(folder)


def test_no_manifest(folder: Path, own_folder: Path) -> None:
    (folder / "checkpoint.json").unlink()
    for place in (folder, own_folder / "nowhere"):
        assert fault(place) == "no checkpoint.json, which is written last"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"version": 2}', b'{"version": "new"}'])
def test_a_manifest_that_cannot_be_read(folder: Path, content: bytes) -> None:
    (folder / "checkpoint.json").write_bytes(content)
    assert fault(folder).startswith("checkpoint.json cannot be read: ")


@pytest.mark.parametrize("name", ["/etc/hostname", "../other", "engine/../../x", "./empty", "", "checkpoint.json"])
def test_a_manifest_that_names_files_elsewhere(folder: Path, name: str) -> None:
    change(folder, lambda tree: tree["files"].update({name: tree["files"]["empty"]}))
    assert "is not the name of a file inside a checkpoint" in fault(folder)


def test_a_manifest_of_nothing(folder: Path) -> None:
    change(folder, lambda tree: tree.update(files={}))
    assert "files" in fault(folder)


@pytest.mark.parametrize(("version", "whose"), [(3, "newer code"), (1, "an older development version")])
def test_a_manifest_of_another_version_is_no_damage(folder: Path, version: int, whose: str) -> None:
    """It may hold anything; it must not be set aside, and the person is told."""
    (folder / "checkpoint.json").write_text(json.dumps({"version": version, "what": "ever"}))
    with pytest.raises(UserError) as caught:
        check(folder)
    message = str(caught.value)
    assert f"{folder} was written by {whose}: its manifest has version {version}, this code reads 2" in (
        message.replace("\n", " ")
    )
    assert "name=…" in message


def test_the_manifest_comes_whole_or_not_at_all(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    (own_folder / "file").write_text("content")
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(own_folder, facts(1), hash_files(own_folder))
    assert fault(own_folder).startswith("no checkpoint.json")


def test_the_digest_of_a_configuration(make_experiment: Callable[..., Experiment]) -> None:
    """By hand: keys sorted, no spaces. Any change of the experiment changes it."""
    experiment = make_experiment()
    tree = json.loads(experiment.model_dump_json())
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    assert config_digest(experiment) == hashlib.sha256(text.encode()).hexdigest()
    assert config_digest(make_experiment(seed=1)) != config_digest(experiment)
