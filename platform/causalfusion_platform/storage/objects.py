"""Objects of an S3 store: URLs, reading, writing, and puts that succeed only on the expected state.

AWS's own settings apply: `AWS_ENDPOINT_URL` for another store than AWS, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID` and the
others. No setting of the platform holds a secret, and no message shows one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import MachineError, UserError
from .atomic import replacing

SCHEME = "s3"
TRIES = 8
"""Attempts of a request. Pauses between them grow to 20 seconds, about 35 seconds in all."""
CONNECT_SECONDS = 10
READ_SECONDS = 60

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/{1,2})(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_CREDENTIALS = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run on a machine with a role\n"
    "  for another store than AWS, also set AWS_ENDPOINT_URL"
)
_REFUSED_KEYS = (
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)
_OTHER_REGION = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect")


class NotThere(FileNotFoundError):
    """An object does not exist. The message names it."""


class Conflict(Exception):
    """A conditional put found another state than expected: somebody else has written or deleted the object."""


class Unavailable(MachineError, OSError):
    """The store did not answer, or answered with an error of its own, in all attempts."""


@dataclass(frozen=True)
class ObjectUrl:
    """Address of an object, or of all objects below a prefix: `s3://BUCKET/KEY`."""

    bucket: str
    """Name of the bucket."""
    key: str = ""
    """Key without a slash at its ends. Empty: the whole bucket."""

    def __post_init__(self) -> None:
        """Check bucket and key.

        Raises:
            ValueError: one of them cannot be.
        """
        if not _BUCKET.fullmatch(self.bucket):
            raise ValueError("a bucket has 3 to 63 letters, digits, dots and hyphens")
        if self.key and any(part in ("", ".", "..") for part in self.key.split("/")):
            raise ValueError("the parts of a key are not empty, '.' or '..'")
        if any(not char.isprintable() or char in "?#\\" for char in self.key):
            raise ValueError("a key has no '?', '#', backslash or control characters")

    @classmethod
    def parse(cls, text: str | Path) -> ObjectUrl:
        """Read an address. A path from `pathlib`, which has one slash after the scheme, is read too.

        Raises:
            UserError: it is not such an address. The message leaves out a part that may be a password.
        """
        match = _URL.fullmatch(str(text))
        if match is None or match[1].lower() != SCHEME:
            raise UserError(
                f"{without_login(str(text))} is not an address of object storage\n  give {SCHEME}://BUCKET/KEY"
            )
        bucket, _, key = match[3].partition("/")
        if "@" in bucket:
            raise UserError(
                f"{without_login(str(text))} has a user or a password, which belong in AWS's own settings\n"
                f"  {_CREDENTIALS}"
            )
        try:
            return cls(bucket, key.strip("/"))
        except ValueError as error:
            raise UserError(f"{text}: {error}\n  give {SCHEME}://BUCKET/KEY") from error

    def __truediv__(self, part: str) -> ObjectUrl:
        """Return the address of a part below this one."""
        return ObjectUrl(self.bucket, f"{self.key}/{part}" if self.key else part)

    def __str__(self) -> str:
        """Return `s3://BUCKET/KEY`."""
        return f"{SCHEME}://{self.bucket}/{self.key}" if self.key else f"{SCHEME}://{self.bucket}"

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectUrl:
        """Address above this one. That of a whole bucket is its own."""
        return ObjectUrl(self.bucket, self.key.rpartition("/")[0])


def is_object_url(text: str | Path) -> bool:
    """Return True for `s3://…` and False for a path on disk.

    Raises:
        UserError: it is an address of another scheme, which would name a folder by mistake.
    """
    match = _URL.fullmatch(str(text))
    # A path from `pathlib` has one slash left. A folder whose name ends with a colon is named by ./NAME:/…
    if match is None:
        return False
    if match[1].lower() != SCHEME:
        raise UserError(
            f"{without_login(str(text))}: {match[1]}:// is not supported here\n"
            f"  give a path on disk, or {SCHEME}://BUCKET/KEY. AWS_ENDPOINT_URL names another store than AWS"
        )
    return True


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a store."""

    key: str
    """Key below the store's address."""
    size: int
    """Bytes."""
    etag: str
    """Tag of its content, as conditional puts expect it."""


class ObjectStore:
    """Objects below one address. Keys are relative to it. Threads may share one, and it can be pickled.

    Requests are repeated after lost connections, errors of the server and throttling. Methods raise `Unavailable`
    when that does not help, and `UserError` for wrong credentials, a missing bucket or another region.
    """

    def __init__(self, url: ObjectUrl) -> None:
        self.url = url

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[ObjectUrl]]:
        return type(self), (self.url,)

    def read(self, key: str) -> bytes:
        """Return the content of an object.

        Raises:
            NotThere: it does not exist.
        """
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """Return the content of an object and its tag, which `write_if` compares.

        Raises:
            NotThere: it does not exist.
        """
        with self._told("read", key):
            answer = self._client.get_object(**self._of(key))
            with answer["Body"] as body:
                return body.read(), answer["ETag"]

    def info(self, key: str) -> ObjectInfo:
        """Return size and tag of an object.

        Raises:
            NotThere: it does not exist.
        """
        with self._told("looked up", key):
            answer = self._client.head_object(**self._of(key))
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"])

    def write(self, key: str, data: bytes) -> str:
        """Write an object, which is there whole or not at all. Return its tag."""
        with self._told("written", key):
            tag: str = self._client.put_object(**self._of(key), Body=data)["ETag"]
        return tag

    def write_if(self, key: str, data: bytes, etag: str | None) -> str:
        """Write an object if it is in the expected state. Return its new tag.

        The answer to a put may be lost, and its repetition then meets our own object. Data that names its writer
        tells that from another's object.

        Args:
            key: its key.
            data: its content.
            etag: tag of the object to replace. None: none exists yet.

        Raises:
            Conflict: it is in another state.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._told("written", key):
            try:
                tag: str = self._client.put_object(**self._of(key), Body=data, **condition)["ETag"]
            except self._errors.ClientError as error:
                if not _is_conflict(error):
                    raise
                if error.response["ResponseMetadata"].get("RetryAttempts", 0) and self._stored(key) == data:
                    return self.info(key).etag
                expected = "it did not exist" if etag is None else "it was as read before"
                raise Conflict(
                    f"{self.url / key} was not written: another process has changed it, and the write needed that "
                    f"{expected}"
                ) from None
        return tag

    def upload(self, path: Path, key: str) -> None:
        """Write an object with the content of a file, in parts if it is large."""
        with self._told("written", key):
            self._client.upload_file(str(path), self.url.bucket, (self.url / key).key)

    def download(self, key: str, path: Path) -> None:
        """Write a file with the content of an object. The file is there whole or not at all.

        Raises:
            NotThere: the object does not exist.
        """
        with self._told("read", key), replacing(path) as file:
            self._client.download_fileobj(self.url.bucket, (self.url / key).key, file)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Return the objects whose keys begin with a text, sorted by key."""
        base = f"{self.url.key}/" if self.url.key else ""
        found = []
        with self._told("listed", prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.url.bucket, Prefix=base + prefix):
                for item in page.get("Contents", ()):
                    found.append(ObjectInfo(item["Key"].removeprefix(base), item["Size"], item["ETag"]))
        return sorted(found, key=lambda info: info.key)

    def any(self) -> bool:
        """Say whether there is an object below the store's address."""
        prefix = f"{self.url.key}/" if self.url.key else ""
        with self._told("listed", ""):
            page = self._client.list_objects_v2(Bucket=self.url.bucket, Prefix=prefix, MaxKeys=1)
        return bool(page.get("Contents"))

    def delete(self, key: str) -> None:
        """Remove an object. One that does not exist counts as removed."""
        with self._told("removed", key):
            self._client.delete_object(**self._of(key))

    @property
    def endpoint(self) -> str:
        """Address of the server, such as https://s3.eu-central-1.amazonaws.com."""
        endpoint: str = self._client.meta.endpoint_url
        return endpoint

    @property
    def region(self) -> str:
        """Region of the requests."""
        region: str = self._client.meta.region_name
        return region

    @property
    def _client(self) -> Any:
        return _client(aws_settings())

    @property
    def _errors(self) -> Any:
        import botocore.exceptions

        return botocore.exceptions

    def _of(self, key: str) -> dict[str, str]:
        return {"Bucket": self.url.bucket, "Key": (self.url / key).key}

    def _stored(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except NotThere:
            return None

    @contextmanager
    def _told(self, done: str, key: str) -> Iterator[None]:
        """Turn errors of botocore into ours. Theirs may hold an address with a password, so none is chained."""
        try:
            yield
        except self._errors.ClientError as error:
            raise self._of_answer(error, done, key) from None
        except self._errors.BotoCoreError as error:
            raise self._of_client(error, done, key) from None
        except Exception as error:
            if type(error).__module__ != "boto3.exceptions":  # upload_file wraps botocore's errors
                raise
            raise self._of_transfer(error, done, key) from None

    def _of_transfer(self, error: Exception, done: str, key: str) -> Exception:
        cause = error.__context__
        if isinstance(cause, self._errors.ClientError):
            return self._of_answer(cause, done, key)
        return self._of_client(cause or error, done, key)

    def _of_answer(self, error: Any, done: str, key: str) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        where = self._named(key)
        if code == "NoSuchBucket":
            return UserError(
                f"{where} cannot be {done}: {self._server} has no bucket {self.url.bucket}\n"
                f"  name another bucket, or make it: aws s3 mb s3://{self.url.bucket}\n"
                f"  AWS_ENDPOINT_URL and AWS_PROFILE say which store is asked"
            )
        if code in ("NoSuchKey", "404", "NotFound"):
            return NotThere(f"{where} does not exist")
        if code in _OTHER_REGION or status == 301:
            return UserError(
                f"{where} cannot be {done}: the bucket is not in region {self.region} ({code or status})\n"
                f"  set AWS_REGION to its region: aws s3api get-bucket-location --bucket {self.url.bucket}"
            )
        if code in _REFUSED_KEYS or status in (401, 403):
            return UserError(
                f"{where} cannot be {done}: {self._server} refuses these credentials ({code or status})\n"
                f"  {_CREDENTIALS}\n  see who you are: aws sts get-caller-identity"
            )
        tries = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
        again = f", and {tries} attempts did not help" if tries > 1 else ""
        return Unavailable(f"{where} cannot be {done}: {self._server} answered {status} {code}{again}")

    def _of_client(self, error: BaseException, done: str, key: str) -> Exception:
        where = self._named(key)
        kind = type(error).__name__
        if "Credential" in kind or "SSO" in kind or "Token" in kind or "Login" in kind or "Profile" in kind:
            return no_credentials(where)
        if kind in ("ParamValidationError", "InvalidRegionError", "UnknownEndpointError"):
            return UserError(f"{where} cannot be {done}: {kind}\n  check AWS_REGION and AWS_ENDPOINT_URL")
        return Unavailable(f"{where} cannot be {done}: no answer from {self._server} ({kind}) in {TRIES} attempts")

    def _named(self, key: str) -> str:
        return str(self.url / key.strip("/")) if key.strip("/") else str(self.url)

    @property
    def _server(self) -> str:
        parts = urlsplit(self.endpoint)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def open_store(url: ObjectUrl | str | Path) -> ObjectStore:
    """Return the store of the objects below an address. Nothing is asked of it yet.

    Raises:
        UserError: the address is wrong, boto3 is not installed, or credentials are missing.
    """
    address = url if isinstance(url, ObjectUrl) else ObjectUrl.parse(url)
    try:
        import boto3
        import botocore.exceptions
    except ImportError:
        raise UserError(
            f"{address} is on object storage, which needs the package boto3\n"
            f"  pip install 'causalfusion-platform[s3]', or: pip install 'boto3>=1.40,<2'"
        ) from None
    try:
        found = boto3.Session().get_credentials()
    except botocore.exceptions.BotoCoreError:
        found = None
    if found is None:
        raise no_credentials(str(address))
    store = ObjectStore(address)
    if "@" in urlsplit(store.endpoint).netloc:
        raise UserError(
            f"{address}: AWS_ENDPOINT_URL or its profile has a user or a password, which is not supported\n"
            f"  {_CREDENTIALS}"
        )
    return store


def aws_settings() -> tuple[tuple[str, str], ...]:
    """Return AWS's environment variables, by which clients are kept."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


@lru_cache(maxsize=4)
def _client(_settings: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    import botocore.config

    session = boto3.Session()
    # AWS itself finds a bucket from here. Other stores do not care.
    region = session.region_name or "us-east-1"
    config = botocore.config.Config(
        retries={"mode": "adaptive", "total_max_attempts": TRIES},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
    )
    return session.client("s3", region_name=region, config=config)


def no_credentials(where: str) -> UserError:
    """Return the error of an address without credentials."""
    return UserError(f"{where}: no credentials of object storage are found\n  {_CREDENTIALS}")


def _is_conflict(error: Any) -> bool:
    """Return True if a conditional put was refused: changed (412), changing (409), or deleted (404)."""
    code = error.response.get("Error", {}).get("Code", "")
    return code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "NoSuchKey")


def without_login(text: str) -> str:
    """Return an address without a user and a password."""
    return re.sub(r"(?<=/)[^/@]*@", "…@", text)
