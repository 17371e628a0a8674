"""Checkpoints of a run on object storage.

* `images-000000051200/VERSION/…` are the files of one save. A version is never written twice.
* `images-000000051200/VERSION/checkpoint.json` is put last. A version counts from then on.
* `images-000000051200/VERSION/reason.txt` says why a damaged version does not count any more.

So a save that is cut short, or that comes late from a lost worker, changes no other checkpoint.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..config.errors import UserError
from ..data.manifest import sha256_of
from ..storage.fence import Fence
from ..storage.objects import NotThere, ObjectInfo, ObjectStore, ObjectUrl
from .manifest import MANIFEST_FILE, BadCheckpoint, CheckpointManifest, Facts, FileRecord, check, parse
from .parts import Abandoned, PartRecord
from .storage import Found, OnBad, Partial
from .store import REASON_FILE, WEIGHTS_FOLDER, Retention, checkpoint_name, kept

log = logging.getLogger(__name__)

_NAME = re.compile(r"images-\d{12,}/[A-Za-z0-9_.-]+")
_PARTS = "parts"
_TRANSFERS = 8
"""Files that are downloaded at once."""
_CONFIG = ".config"
"""Folder of the configuration of the newest weights."""
_WEIGHTS = ".weights"
"""Folder of weights that were downloaded without the rest of their checkpoints."""
_WHOLE = ".whole"
"""File of a downloaded checkpoint that names its version, written when all of its files are checked."""


class ObjectCheckpoints:
    """Checkpoints below an address of object storage. Threads may share it.

    Args:
        store: the objects below the run's folder of checkpoints.
        here: folder on this machine for downloaded checkpoints. Processes of one machine share it.
    """

    poll_seconds = 0.5
    shared = False

    def __init__(self, store: ObjectStore, here: Path) -> None:
        self.store, self.here = store, here
        self._manifests: dict[str, CheckpointManifest] = {}

    def partial(self, images_seen: int, writer: str, number: int) -> Partial:
        """Return a version without a manifest."""
        return _PartialVersion(self.store, f"{checkpoint_name(images_seen)}/{writer}-{number}")

    def remove_leftovers(self, writer: str, number: int) -> None:
        """Remove versions of this attempt that have no manifest."""
        for name, files in self._listed().items():
            version, _, last = name.rpartition("/")[2].rpartition("-")
            if version == writer and int(last) < number and not {MANIFEST_FILE, REASON_FILE} & files.keys():
                self._remove(name, files)

    def clear_partial(self) -> None:
        """Remove all versions that have no manifest."""
        for name, files in self._listed().items():
            if not {MANIFEST_FILE, REASON_FILE} & files.keys():
                self._remove(name, files)

    def prune(self, retention: Retention, fence: Fence) -> None:
        """Remove the checkpoints that `retention` does not keep, each manifest first. Only sizes are checked."""
        listed = self._listed()
        found = []
        for name, files in listed.items():
            try:
                manifest = self._manifest(name, files)
                _check_sizes(manifest, files)
            except (BadCheckpoint, UserError):
                continue
            found.append((name, manifest))
        keep = kept(found, retention)
        for name, _ in found:
            if name not in keep:
                fence.check()
                self._remove(name, listed[name])

    def latest(self, on_bad: OnBad, *, set_aside: bool = False) -> Found | None:
        """Return the newest whole checkpoint, which is downloaded and checked, or None."""
        listed = self._listed()
        for name in self._newest_first(listed):
            try:
                manifest = self._manifest(name, listed[name])
                _check_sizes(manifest, listed[name])
                found = Found(name, manifest)
                self.folder_here(found)
            except BadCheckpoint as bad:
                on_bad(name, str(bad))
                if set_aside:
                    line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {bad}\n"
                    self.store.write(f"{name}/{REASON_FILE}", line.encode())
            else:
                return found
        return None

    def newest_images(self) -> int:
        """Return the images in the name of the newest one, or 0."""
        newest = next(iter(self._newest_first(self._listed())), None)
        return _images(newest) if newest else 0

    def newest_weights(self) -> ObjectUrl | None:
        """Return the address of the newest one's weights, or None."""
        newest = next(iter(self._newest_first(self._listed())), None)
        return self.store.url / f"{newest}/{WEIGHTS_FOLDER}" if newest else None

    def written_stage(self) -> int | None:
        """Return the ZeRO stage in the newest manifest that can be read, or None."""
        listed = self._listed()
        for name in self._newest_first(listed):
            try:
                return self._manifest(name, listed[name]).zero_stage
            except BadCheckpoint:
                continue
        return None

    def newest_config(self) -> Path | None:
        """Download the small files beside the newest weights, and return their folder, or None."""
        listed = self._listed()
        newest = next(iter(self._newest_first(listed)), None)
        if newest is None:
            return None
        folder = self.here / _CONFIG
        folder.mkdir(parents=True, exist_ok=True)
        for file in listed[newest]:
            place, _, name = file.rpartition("/")
            if place == WEIGHTS_FOLDER and not name.endswith(".safetensors"):
                self.store.download(f"{newest}/{file}", folder / name)
        return folder

    def weights_here(self) -> Path | None:
        """Download the newest whole weights alone, and return their folder, or None."""
        listed = self._listed()
        for name in self._newest_first(listed):
            try:
                manifest = self._manifest(name, listed[name])
                _check_sizes(manifest, listed[name])
                folder = self.here / _WEIGHTS / checkpoint_name(manifest.images_seen)
                self._download_weights(name, manifest, folder)
            except BadCheckpoint as bad:
                log.warning("checkpoint %s is passed over: %s", self.store.url / name, bad)
            else:
                return folder / WEIGHTS_FOLDER
        return None

    def sizes(self) -> dict[str, int]:
        """Return name → bytes of the complete checkpoints in the order of images."""
        listed = self._listed()
        names = sorted(self._newest_first(listed), key=_images)
        return {name: sum(info.size for info in listed[name].values()) for name in names}

    def set_aside(self) -> list[str]:
        """Return the names of damaged checkpoints."""
        return [name for name, files in self._listed().items() if REASON_FILE in files]

    def folder_here(self, found: Found) -> Path:
        """Return the folder on this machine, downloaded and checked by the first process that asks for it."""
        with self._alone():
            folder = self.here / checkpoint_name(found.manifest.images_seen)
            if _read_or_empty(folder / _WHOLE) != found.name:
                self._download(found, folder)
                (folder / _WHOLE).write_text(found.name, encoding="utf-8")
        return folder

    @contextmanager
    def first_here(self, task: str) -> Iterator[bool]:
        """Yield True to the first process of this machine. Others wait for its end, and get False."""
        with self._alone():
            done = self.here / f".{task}"
            first = not done.exists()
            yield first
            if first:
                done.touch()

    def release(self) -> None:
        """Remove all that was downloaded."""
        shutil.rmtree(self.here, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the folder of downloads, for which the other processes of this machine wait."""
        self.here.mkdir(parents=True, exist_ok=True)
        file = os.open(self.here / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _download(self, found: Found, folder: Path) -> None:
        """Download a checkpoint and check every hash.

        Raises:
            BadCheckpoint: a file is missing, or has another content than was written.
        """
        shutil.rmtree(folder, ignore_errors=True)
        names = [*found.manifest.files, MANIFEST_FILE]
        for parent in {(folder / name).parent for name in names}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            try:
                list(pool.map(lambda name: self.store.download(f"{found.name}/{name}", folder / name), names))
            except NotThere as error:
                raise BadCheckpoint(str(error)) from error
        try:
            check(folder)
        except BadCheckpoint:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _download_weights(self, name: str, manifest: CheckpointManifest, folder: Path) -> None:
        for file, record in manifest.files.items():
            path = folder / file
            if file.startswith(f"{WEIGHTS_FOLDER}/") and not (path.is_file() and sha256_of(path) == record.sha256):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.store.download(f"{name}/{file}", path)
                if sha256_of(path) != record.sha256:
                    raise BadCheckpoint(f"{file} has another SHA-256 than was written")

    def _listed(self) -> dict[str, dict[str, ObjectInfo]]:
        """Return name → file → object of all versions."""
        listed: defaultdict[str, dict[str, ObjectInfo]] = defaultdict(dict)
        for info in self.store.list():
            name = "/".join(info.key.split("/")[:2])
            if _NAME.fullmatch(name):
                listed[name][info.key[len(name) + 1 :]] = info
        return dict(listed)

    def _newest_first(self, listed: Mapping[str, Mapping[str, ObjectInfo]]) -> list[str]:
        def age(name: str) -> tuple[float, int, float]:
            try:
                manifest = self._manifest(name, listed[name])
            except BadCheckpoint:
                return math.inf, _images(name), math.inf  # first, so that it is checked and reported
            return manifest.order, manifest.images_seen, manifest.created.timestamp()

        complete = [name for name, files in listed.items() if MANIFEST_FILE in files and REASON_FILE not in files]
        return sorted(complete, key=age, reverse=True)

    def _manifest(self, name: str, files: Mapping[str, ObjectInfo]) -> CheckpointManifest:
        if MANIFEST_FILE not in files or REASON_FILE in files:
            raise BadCheckpoint(f"no {MANIFEST_FILE}, which is written last")
        if name not in self._manifests:  # a version is never written twice
            try:
                content = self.store.read(f"{name}/{MANIFEST_FILE}")
            except NotThere:
                raise BadCheckpoint(f"no {MANIFEST_FILE}, which is written last") from None
            self._manifests[name] = parse(content, self.store.url / name)
        return self._manifests[name]

    def _remove(self, name: str, files: Mapping[str, ObjectInfo]) -> None:
        for file in sorted(files, key=lambda file: file != MANIFEST_FILE):
            self.store.delete(f"{name}/{file}")


@dataclass(frozen=True)
class _PartialVersion:
    store: ObjectStore
    name: str

    def begin(self) -> None:
        """Objects need no folder."""

    def put(self, source: Path, stopped: Callable[[], bool]) -> dict[str, FileRecord]:
        files: dict[str, FileRecord] = {}
        for path in sorted(source.rglob("*")):
            if not path.is_file():
                continue
            if stopped():
                raise Abandoned
            name = path.relative_to(source).as_posix()
            files[name] = FileRecord(size=path.stat().st_size, sha256=sha256_of(path))
            self.store.upload(path, f"{self.name}/{name}")
            path.unlink()
        return files

    def write_record(self, rank: int, record: PartRecord) -> None:
        self.store.write(self._record(rank), record.model_dump_json().encode())

    def read_record(self, rank: int) -> PartRecord | None:
        try:
            return PartRecord.model_validate_json(self.store.read(self._record(rank)))
        except NotThere:
            return None

    def complete(self, facts: Facts, files: Mapping[str, FileRecord], fence: Fence) -> ObjectUrl:
        manifest = CheckpointManifest(**facts.model_dump(), files=dict(files))
        fence.check()
        self.store.write(f"{self.name}/{MANIFEST_FILE}", (manifest.model_dump_json(indent=2) + "\n").encode())
        return self.store.url / self.name

    def discard(self) -> None:
        self.store.delete(f"{self.name}/{MANIFEST_FILE}")
        for info in self.store.list(f"{self.name}/"):
            self.store.delete(info.key)

    def _record(self, rank: int) -> str:
        return f"{self.name}/{_PARTS}/rank-{rank:05d}.json"


def _check_sizes(manifest: CheckpointManifest, files: Mapping[str, ObjectInfo]) -> None:
    for name, record in manifest.files.items():
        if name not in files:
            raise BadCheckpoint(f"{name} is missing")
        if (size := files[name].size) != record.size:
            raise BadCheckpoint(f"{name} has {size:,} of {record.size:,} bytes")


def _images(name: str) -> int:
    return int(name.partition("/")[0].removeprefix("images-"))


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
