"""Files of a location: one file, a folder, or a pattern."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pyarrow import fs

from ...config.errors import UserError
from ...storage.home import expanded
from .filesystem import is_url, locate
from .pattern import expand_braces, has_wildcard, matcher, split_pattern
from .selection import EARLIER_RULES, RULES, Selection
from .system_files import system_part

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
    selection: Selection = field(default_factory=Selection)

    def path(self, name: str) -> str:
        """Return the path of a file in the filesystem."""
        return _join(self.root, name)

    def ending_in(self, *suffixes: str) -> list[str]:
        """Return the names with one of the suffixes, case-insensitively, sorted bytewise."""
        return sorted(name for name in self.names if name.lower().endswith(suffixes))


class Found(NamedTuple):
    """Content of a folder."""

    names: list[str]
    sizes: list[int]
    folders: list[str]
    """Folders directly in it."""
    left_out: list[str]
    """System files and folders."""


def list_files(location: str, rules: int = RULES) -> SourceFiles:
    """List a file, everything below a folder, or the matches of a pattern (`part-{000..003}.tar`, `*.parquet`).

    System files are left out, except a file that the location names.

    Args:
        rules: version of the rules of listing.

    Raises:
        UserError: the location is empty or missing, or cannot be listed.
    """
    try:
        if has_wildcard(location) and (is_url(location) or not expanded(location).exists()):
            return _list_pattern(location, rules)
        filesystem, path = locate(location)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{location} does not exist\n  check the path; relative ones start from {Path.cwd()}")
        if info.type == fs.FileType.Directory:
            found = list_folder(filesystem, path, rules)
            if not found.names:
                only = f" but system files, such as {found.left_out[0]}" if found.left_out else ""
                raise UserError(f"{location} holds no file{only}\n  name a folder that does")
            names, sizes, folders, left_out = found
            selection = Selection(rules, tuple(left_out))
            return SourceFiles(location, "folder", filesystem, path, names, sizes, folders, selection)
        root, _, name = path.rpartition("/")
        root = root or ("/" if path.startswith("/") else "")
        return SourceFiles(location, "file", filesystem, root, [name], [_size(info)], [], Selection(rules))
    except (OSError, UnicodeError) as error:
        raise UserError(f"{location} cannot be listed: {error}\n  check its permissions and links") from error


def _list_pattern(location: str, rules: int) -> SourceFiles:
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
    left_out: list[str] = []
    if wild:
        if filesystem.get_file_info(root).type != fs.FileType.Directory:
            raise UserError(f"{location}: there is no folder {root_location}\n  mend the pattern")
        deep = any("/" in name or "**" in name for name in patterns)
        there = list_folder(filesystem, root, rules, deep=deep)
        left_out = [
            name for name in there.left_out if (deep and name.endswith("/")) or any(match(name) for match in wild)
        ]
        for name, size in zip(there.names, there.sizes, strict=True):
            if any(match(name) for match in wild):
                found[name] = size
    if not found:
        raise UserError(f"{location} matches no file\n  mend the pattern, in quotes so that the shell keeps it")
    selection = Selection(rules, tuple(left_out))
    return SourceFiles(location, "pattern", filesystem, root, list(found), list(found.values()), [], selection)


def list_folder(filesystem: fs.FileSystem, root: str, rules: int = RULES, *, deep: bool = True) -> Found:
    """Return the files in a folder (`deep`: below it). System folders are not opened.

    Raises:
        OSError: a folder cannot be read.
        UserError: a link leads to a folder above it, or an entry is neither file nor folder.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        return _list_local(root, rules, deep)
    found = Found([], [], [], [])
    prefix = len(_join(root, ""))
    for info in filesystem.get_file_info(fs.FileSelector(root, recursive=deep)):
        name, is_folder = info.path[prefix:], info.type == fs.FileType.Directory
        system = _system_part(f"{name}/" if is_folder else name, rules)
        if system is not None:
            found.left_out.append(system)
        elif not is_folder:
            found.names.append(name)
            found.sizes.append(_size(info))
        elif "/" not in name:
            found.folders.append(name)
    return found._replace(left_out=sorted(set(found.left_out)))


def _list_local(root: str, rules: int, deep: bool) -> Found:
    # Arrow's own listing follows a link to a folder above it 40 times.
    names: list[str] = []
    sizes: list[int] = []
    left_out: list[str] = []
    top: list[str] | None = None
    level = [""]
    with ThreadPoolExecutor(_THREADS) as pool:
        while level:
            below: list[str] = []
            for found in pool.map(lambda folder: _scan(root, folder, rules), level):
                names += found.names
                sizes += found.sizes
                below += found.folders
                left_out += found.left_out
            top = below if top is None else top
            level = below if deep else []
    return Found(names, sizes, top or [], sorted(left_out))


def _scan(root: str, folder: str, rules: int) -> Found:
    """Return what lies directly in a folder, with names that start from the root."""
    names, sizes, folders, left_out = found = Found([], [], [], [])
    with os.scandir(_join(root, folder)) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if _system_part(entry.name, rules) is not None:
                left_out.append(f"{name}/" if entry.is_dir() else name)
                continue
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
    return found


def _system_part(name: str, rules: int) -> str | None:
    return None if rules == EARLIER_RULES else system_part(name)


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
