"""Objects of an S3 store: conditional puts, faults of the server that pass, and messages without secrets."""

from __future__ import annotations

import builtins
import pickle
import re
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.object_store import SECRET, SERVER_ERROR, THROTTLED, FaultyServer

from causalfusion_platform.errors import UserError
from causalfusion_platform.storage import objects
from causalfusion_platform.storage.objects import (
    Conflict,
    NotThere,
    ObjectUrl,
    Unavailable,
    is_object_url,
    open_store,
)

pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://bucket/a/b", "bucket", "a/b"),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/a/", "bucket", "a"),
        (Path("s3://bucket/a b/ü"), "bucket", "a b/ü"),
    ],
)
def test_an_address_is_read(text: str | Path, bucket: str, key: str) -> None:
    assert is_object_url(text)
    url = ObjectUrl.parse(text)
    assert (url.bucket, url.key) == (bucket, key)
    assert ObjectUrl.parse(str(url)) == url
    assert str(url / "c.parquet") == f"s3://{bucket}/{key}/c.parquet".replace(f"{bucket}//", f"{bucket}/")


@pytest.mark.parametrize("path", ["runs", "/tmp/x", Path("a/b"), "./gs:/x", "a:b", "~/runs"])
def test_a_path_on_disk_is_not_an_address(path: str | Path) -> None:
    assert not is_object_url(path)


@pytest.mark.parametrize("text", ["gs://bucket/x", "http://host/x", "hdfs://a/b", Path("gcs://bucket/x"), "S4://b"])
def test_other_schemes_are_refused_by_name(text: str | Path) -> None:
    with pytest.raises(
        UserError, match=r"(?i)^\w+:.*(gs|http|hdfs|gcs|S4):// is not supported here\n.*s3://BUCKET"
    ):
        is_object_url(text)


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3://a/b", "s3://bucket/a//b", "s3://bucket/../a", "s3://bucket/a?region=x", "s3://bu cket/a"],
)
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"give s3://BUCKET/KEY"):
        ObjectUrl.parse(text)


@pytest.mark.parametrize("text", [f"s3://AKIA:{SECRET}@bucket/x", f"gs://AKIA:{SECRET}@bucket/x"])
def test_a_password_in_an_address_is_refused_and_not_shown(text: str) -> None:
    for read in (ObjectUrl.parse, is_object_url):
        if read is is_object_url and text.startswith("s3"):
            continue
        with pytest.raises(UserError) as refused:
            read(text)
        assert SECRET not in str(refused.value)


def test_objects_are_written_listed_read_and_removed(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{s3_bucket}/runs/a")
    tag = store.write("run.json", b"{}")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 40_000)  # above 8 MiB: in parts
    store.upload(tmp_path / "file", "checkpoints/1/part")
    open_store(f"{s3_bucket}/runs").write("ab", b"beside")

    assert store.read_tagged("run.json") == (b"{}", tag)
    assert [(info.key, info.size) for info in store.list()] == [("checkpoints/1/part", 10_240_000), ("run.json", 2)]
    assert [info.key for info in store.list("checkpoints/")] == ["checkpoints/1/part"]
    assert store.info("run.json").etag == store.list("run")[0].etag == tag
    store.download("checkpoints/1/part", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()

    store.delete("run.json")
    store.delete("run.json")
    for read in (store.read, store.info, lambda key: store.download(key, tmp_path / "none")):
        with pytest.raises(NotThere, match=re.escape(f"{s3_bucket}/runs/a/run.json does not exist")):
            read("run.json")
    assert not (tmp_path / "none").exists()
    assert open_store(s3_bucket).read("runs/ab") == b"beside"


def test_more_objects_than_a_page_are_listed(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    keys = [f"{number:04}" for number in range(7)]
    for key in keys:
        store.write(key, b"")
    events = store._client.meta.events
    events.register("before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=3))
    assert [info.key for info in store.list()] == keys


def test_a_conditional_put_needs_the_expected_state(s3_bucket: str) -> None:
    store = open_store(f"{s3_bucket}/lock")
    first = store.write_if("owner", b"one", None)
    with pytest.raises(Conflict, match=r"lock/owner was not written: another process has changed it"):
        store.write_if("owner", b"two", None)
    second = store.write_if("owner", b"three", first)
    with pytest.raises(Conflict):
        store.write_if("owner", b"four", first)
    assert store.read_tagged("owner") == (b"three", second)
    store.delete("owner")
    with pytest.raises(Conflict):
        store.write_if("owner", b"five", second)
    assert store.list() == []


def test_one_of_many_writers_wins(s3_bucket: str) -> None:
    def write(number: int) -> bool:
        try:
            open_store(s3_bucket).write_if("owner", b"the same for all", None)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(write, range(8))) == 1


@pytest.mark.parametrize("fault", [SERVER_ERROR, THROTTLED], ids=["500", "throttled"])
def test_faults_of_the_server_pass(
    fault: tuple[str, str], s3_server: FaultyServer, s3_bucket: str, tmp_path: Path
) -> None:
    store = open_store(s3_bucket)
    works: dict[str, Callable[[], object]] = {
        "PUT": lambda: store.write("a", b"1"),
        "GET": lambda: store.read("a"),
        "HEAD": lambda: store.info("a"),
        "DELETE": lambda: store.delete("b"),
    }
    for method, work in works.items():
        s3_server.fail(method, 3, fault)
        work()
        assert s3_server.faults_left == 0
    s3_server.fail("GET", 3, fault)
    store.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_lost_answer_to_a_conditional_put_is_a_success(s3_server: FaultyServer, s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    s3_server.fail("PUT", 1, SERVER_ERROR, lose_answer=True)
    tag = store.write_if("owner", b"writer 1", None)
    assert store.read_tagged("owner") == (b"writer 1", tag)
    s3_server.fail("PUT", 1, SERVER_ERROR)
    with pytest.raises(Conflict):
        store.write_if("owner", b"writer 2", None)


def test_a_server_that_stays_away_is_told(s3_server: FaultyServer, s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(s3_bucket)
    (tmp_path / "file").write_bytes(b"1")
    for work in (lambda: store.write("a", b"1"), lambda: store.upload(tmp_path / "file", "a")):
        s3_server.fail("PUT", objects.TRIES, THROTTLED)
        with pytest.raises(Unavailable, match=rf"written: {s3_server.url} answered 503 SlowDown, and 8"):
            work()
        assert s3_server.faults_left == 0


def test_no_answer_is_told(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"cannot be read: no answer from http://127.0.0.1:9 .EndpointConnection"):
        open_store(s3_bucket).read("a")


def test_a_password_in_the_endpoint_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, s3_bucket: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"AWS_ENDPOINT_URL .*has a user or a password.*\n  set AWS_PROFILE"
    ) as told:
        open_store(s3_bucket)
    assert SECRET not in "".join(traceback.format_exception(told.value))


def test_a_missing_bucket_is_told(s3_server: FaultyServer, tmp_path: Path) -> None:
    store = open_store("s3://not-a-bucket/x")
    (tmp_path / "file").touch()
    for work in (
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.upload(tmp_path / "file", "a"),
        store.list,
    ):
        with pytest.raises(UserError, match=r"has no bucket not-a-bucket\n  name another .*: aws s3 mb"):
            work()


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken"])
def test_refused_credentials_are_told_without_them(code: str, s3_server: FaultyServer, s3_bucket: str) -> None:
    s3_server.fail("GET", 1, ("403 Forbidden", code))
    with pytest.raises(UserError, match=rf"refuses these credentials \({code}\)\n  set AWS_PROFILE") as told:
        open_store(s3_bucket).read("a")
    text = "".join(traceback.format_exception(told.value))
    assert SECRET not in text
    assert "AKIA" not in text


def test_another_region_is_told(s3_server: FaultyServer, s3_bucket: str) -> None:
    s3_server.fail("GET", 1, ("400 Bad Request", "AuthorizationHeaderMalformed"))
    with pytest.raises(UserError, match=r"is not in region us-east-1 .*\n  set AWS_REGION"):
        open_store(s3_bucket).read("a")


def test_missing_credentials_are_told(s3_server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"^s3://bucket/x: no credentials .*\n  set AWS_PROFILE, or AWS"):
        open_store("s3://bucket/x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="no credentials"):
        open_store("s3://bucket/x")


def test_boto3_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "boto3":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"^s3://bucket/x .* needs the package boto3\n  pip install"):
        open_store("s3://bucket/x")


def test_a_store_can_be_pickled_without_credentials(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    store.write("a", b"1")
    packed = pickle.dumps(store)
    assert SECRET.encode() not in packed
    assert pickle.loads(packed).read("a") == b"1"
