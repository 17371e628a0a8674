"""Files of a location: one file, a folder, or a pattern."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import fs

from ...config.errors import UserError
from .filesystem import is_url, locate
from .pattern import expand_braces, has_wildcard, matcher, split_pattern

# Folders that are listed in parallel: on network storage each one waits for the server.
_THREADS = 16


@dataclass(frozen=True)
class SourceFiles:
    """Files under one root."""

    location: str
    """Location as given by the user."""
    given: Literal["file", "folder", "pattern"]
    filesystem: fs.FileSystem
    root: str
    """Path of the base folder of names."""
    names: list[str]
    sizes: list[int]
    """Bytes of each file. −1: unknown, such as for a dangling link."""
    folders: list[str]
    """Folders directly under the root, including empty ones."""

    def path(self, name: str) -> str:
        """Return the path of a file in the filesystem."""
        return _join(self.root, name)

    def ending_in(self, *suffixes: str) -> list[str]:
        """Return the names with one of the suffixes, case-insensitively, sorted bytewise."""
        return sorted(name for name in self.names if name.lower().endswith(suffixes))


def list_files(location: str) -> SourceFiles:
    """List a file, everything below a folder, or the matches of a pattern (`part-{000..003}.tar`, `*.parquet`).

    Raises:
        UserError: the location is empty or missing, or cannot be listed.
    """
    try:
        if has_wildcard(location) and (is_url(location) or not Path(location).expanduser().exists()):
            return _list_pattern(location)
        filesystem, path = locate(location)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{location} does not exist\n  check the path; relative ones start from {Path.cwd()}")
        if info.type == fs.FileType.Directory:
            names, sizes, folders = list_folder(filesystem, path)
            if not names:
                raise UserError(f"{location} holds no file\n  name a folder that does")
            return SourceFiles(location, "folder", filesystem, path, names, sizes, folders)
        root, _, name = path.rpartition("/")
        return SourceFiles(
            location, "file", filesystem, root or ("/" if path.startswith("/") else ""), [name], [_size(info)], []
        )
    except (OSError, UnicodeError) as error:
        raise UserError(f"{location} cannot be listed: {error}\n  check its permissions and links") from error


def _list_pattern(location: str) -> SourceFiles:
    root_location, pattern = split_pattern(location)
    filesystem, root = locate(root_location)
    patterns = expand_braces(pattern)
    exact = [name for name in patterns if not has_wildcard(name)]
    infos = filesystem.get_file_info([_join(root, name) for name in exact])
    found = {name: _size(info) for name, info in zip(exact, infos, strict=True) if info.type == fs.FileType.File}
    if len(found) < len(exact):
        missing = [name for name in exact if name not in found]
        raise UserError(
            f"{location}: {len(missing)} of {len(exact)} files are not there, such as {missing[0]}\n"
            f"  mend the pattern or fetch the files"
        )
    wild = [matcher(name) for name in patterns if has_wildcard(name)]
    if wild:
        if filesystem.get_file_info(root).type != fs.FileType.Directory:
            raise UserError(f"{location}: there is no folder {root_location}\n  mend the pattern")
        deep = any("/" in name or "**" in name for name in patterns)
        for name, size in zip(*list_folder(filesystem, root, deep=deep)[:2], strict=True):
            if any(match(name) for match in wild):
                found[name] = size
    if not found:
        raise UserError(f"{location} matches no file\n  mend the pattern, in quotes so that the shell keeps it")
    return SourceFiles(location, "pattern", filesystem, root, list(found), list(found.values()), [])


def list_folder(
    filesystem: fs.FileSystem, root: str, *, deep: bool = True
) -> tuple[list[str], list[int], list[str]]:
    """Return names and sizes of the files in a folder (`deep`: below it), and the folders directly in it.

    Raises:
        OSError: a folder cannot be read.
        UserError: a link leads to a folder above it, or an entry is neither file nor folder.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        return _list_local(root, deep)
    names, sizes, folders = [], [], []
    prefix = len(_join(root, ""))
    for info in filesystem.get_file_info(fs.FileSelector(root, recursive=deep)):
        name = info.path[prefix:]
        if info.type != fs.FileType.Directory:
            names.append(name)
            sizes.append(_size(info))
        elif "/" not in name:
            folders.append(name)
    return names, sizes, folders


def _list_local(root: str, deep: bool) -> tuple[list[str], list[int], list[str]]:
    # Arrow's own listing follows a link to a folder above it 40 times.
    names: list[str] = []
    sizes: list[int] = []
    top: list[str] | None = None
    level = [""]
    with ThreadPoolExecutor(_THREADS) as pool:
        while level:
            below: list[str] = []
            for found, found_sizes, folders in pool.map(lambda folder: _scan(root, folder), level):
                names += found
                sizes += found_sizes
                below += folders
            top = below if top is None else top
            level = below if deep else []
    return names, sizes, top or []


def _scan(root: str, folder: str) -> tuple[list[str], list[int], list[str]]:
    names, sizes, folders = [], [], []
    with os.scandir(_join(root, folder)) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
                continue
            try:
                status = entry.stat()
            except OSError:  # a dangling link, which is reported on reading
                names.append(name)
                sizes.append(-1)
                continue
            if stat.S_ISDIR(status.st_mode):
                _refuse_loop(root, name)
                folders.append(name)
            elif stat.S_ISREG(status.st_mode):
                names.append(name)
                sizes.append(status.st_size)
            else:
                raise UserError(f"{_join(root, name)} is neither a file nor a folder\n  remove it")
    return names, sizes, folders


def _refuse_loop(root: str, link: str) -> None:
    parts = link.split("/")
    target = Path(root, link).resolve()
    for depth in range(len(parts)):
        if Path(root, *parts[:depth]).resolve() == target:
            raise UserError(f"{_join(root, link)} is a link to a folder that it lies in\n  remove the link")


def _join(root: str, name: str) -> str:
    return f"{root}/{name}" if root and root != "/" else f"{root}{name}"


def _size(info: fs.FileInfo) -> int:
    return -1 if info.size is None else info.size
