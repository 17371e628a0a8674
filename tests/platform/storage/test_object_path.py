"""Paths of object storage: like other paths where they are read, and refused where a name on disk is needed."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.object_store import SECRET, SERVER_ERROR, THROTTLED, FaultyServer

from causalfusion_platform.errors import UserError
from causalfusion_platform.storage.object_path import ObjectPath, as_path
from causalfusion_platform.storage.objects import NotThere, open_store


@pytest.mark.parametrize("text", ["s3://bucket/a/b", "s3://bucket/a/b/", Path("s3://bucket/a/b")])
def test_a_path_behaves_as_other_paths_do(text: str | Path) -> None:
    path = as_path(text)
    assert isinstance(path, ObjectPath)
    assert str(path) == f"{path}" == "s3://bucket/a/b"
    assert str(path / "c.parquet") == "s3://bucket/a/b/c.parquet"
    assert (path.name, str(path.parent), (path / "c.parquet").suffix) == ("b", "s3://bucket/a", ".parquet")
    assert path == as_path("s3://bucket/a/b") != as_path("s3://bucket/a")
    assert hash(path) == hash(as_path("s3://bucket/a/b"))
    assert pickle.loads(pickle.dumps(path / "c")) == path / "c"
    assert isinstance(pickle.loads(pickle.dumps(path / "c")), ObjectPath)
    assert Path("/home/user") / path == path.absolute() == path.resolve() == path
    assert isinstance(path.parent, ObjectPath)
    assert isinstance(path.with_name("c"), ObjectPath)


def test_a_path_on_disk_stays_one() -> None:
    assert type(as_path("a/b")) is type(as_path(Path("a/b"))) is type(Path())


@pytest.mark.parametrize("work", ["mkdir", "iterdir", "open", "touch", "write", "unlink", "builtin", "subprocess"])
def test_uses_as_a_name_on_disk_are_refused(work: str, own_folder: Path) -> None:
    path = as_path("s3://bucket/a")
    works: dict[str, Callable[[], object]] = {
        "mkdir": lambda: path.mkdir(parents=True, exist_ok=True),
        "iterdir": lambda: list(path.iterdir()),
        "open": lambda: path.open("wb"),
        "touch": path.touch,
        "write": lambda: path.write_bytes(b""),
        "unlink": path.unlink,
        "builtin": lambda: open(path, "rb"),  # noqa: PTH123, SIM115
        "subprocess": lambda: subprocess.run(["true", path], check=False),
    }
    with pytest.raises(UserError, match=r"^s3://bucket/a is on object storage, .*\n  copy it: aws s3 sync"):
        works[work]()
    assert list(own_folder.iterdir()) == []


def test_an_object_is_read(s3_bucket: str) -> None:
    content = bytes(range(256)) * 80_000  # more than two blocks
    open_store(s3_bucket).write("a/file", content)
    path = as_path(s3_bucket) / "a" / "file"
    assert path.read_bytes() == content
    assert path.stat().st_size == len(content)
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(content).digest()
        assert file.seek(-10, 2) == len(content) - 10
        assert file.read() == content[-10:]
    assert [name.is_file() for name in (path, path.parent, path / "b", as_path(s3_bucket))] == [
        True,
        False,
        False,
        False,
    ]
    assert [name.is_dir() for name in (path, path.parent, path / "b", as_path(s3_bucket))] == [
        False,
        True,
        False,
        True,
    ]
    assert path.exists()
    assert not (path.parent / "fil").exists()
    assert isinstance(path, ObjectPath)
    assert list(ObjectPath(str(path.parent)).objects()) == ["file"]
    missing = path.parent / "none"
    for read in (missing.read_bytes, missing.stat, lambda: missing.open("rb")):
        with pytest.raises(FileNotFoundError, match="none"):
            read()
    with pytest.raises(NotThere):
        missing.read_bytes()


@pytest.mark.parametrize("fault", [SERVER_ERROR, THROTTLED], ids=["500", "throttled"])
@pytest.mark.parametrize("size", [7, 9_000], ids=["shorter than the error", "longer"])
def test_reads_survive_faults_of_the_server(
    size: int, fault: tuple[str, str], s3_server: FaultyServer, s3_bucket: str
) -> None:
    open_store(s3_bucket).write("file", b"x" * size)
    path = as_path(f"{s3_bucket}/file")
    s3_server.fail("HEAD", 2, fault)
    s3_server.fail("GET", 2, fault)
    with path.open("rb") as file:
        assert file.read() == b"x" * size
    assert s3_server.faults_left == 0


def test_a_path_is_pickled_without_credentials(s3_bucket: str) -> None:
    assert SECRET.encode() not in pickle.dumps(as_path(s3_bucket))
