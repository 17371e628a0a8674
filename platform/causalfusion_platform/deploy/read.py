"""Read cluster files, with errors that name each fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from ..config.commands import command
from ..config.errors import UserError
from .cluster_file import ClusterFile

FOLDER = "cluster"
SUFFIX = ".yaml"
LARGEST = 1 << 20
"""Bytes above which a file is not a cluster file."""

_SECRET_KEY = re.compile(r"(token|password|passwd|secret_?key|access_?key|api_?key|credential)", re.IGNORECASE)
_MESSAGES = {"extra_forbidden": "unknown key", "missing": "is missing"}


def find_cluster_file(name: str) -> Path:
    """Return the path of a cluster file: a path, or a name of the folder `cluster/`."""
    path = Path(name)
    if path.suffix == SUFFIX or "/" in name:
        return path
    return Path(FOLDER) / f"{name}{SUFFIX}"


def read_cluster_file(name: str) -> ClusterFile:
    """Read a cluster file.

    Args:
        name: path, or name of a file of `cluster/` without its suffix.

    Raises:
        UserError: it does not exist, is not YAML, or has unknown keys, wrong values, or a secret in it.
    """
    path = find_cluster_file(name)
    schema = f"  all keys: {command('cluster', 'schema')}"
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, which is more than a cluster file has")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(file.stem for file in Path(FOLDER).glob(f"*{SUFFIX}"))) or "none"
        raise UserError(
            f"cluster file {path} does not exist\n  files of {FOLDER}/ here: {there}\n{schema}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cluster file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"cluster file {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"cluster file {path} is not a mapping of keys\n{schema}")
    faults = [f"  {fault}" for fault in _secrets(tree, ())]
    try:
        cluster = ClusterFile.model_validate(tree)
    except ValidationError as error:
        faults += [f"  {_where(one['loc'])}: {_message(one)}" for one in error.errors(include_input=False)]
    if faults:
        listed = "\n".join([f"cluster file {path} has {len(faults)} wrong value(s):", *faults, schema])
        raise UserError(listed)
    return cluster


def _secrets(tree: Any, place: tuple[Any, ...]) -> list[str]:
    """Return the faults of values that are secrets. Their values are not shown."""
    if isinstance(tree, dict):
        return [fault for key, value in tree.items() for fault in _secrets(value, (*place, key))]
    if isinstance(tree, list):
        return [fault for number, value in enumerate(tree) for fault in _secrets(value, (*place, number))]
    if not isinstance(tree, str):
        return []
    if place and isinstance(place[-1], str) and _SECRET_KEY.search(place[-1]):
        return [f"{_where(place)}: a secret in the file; put it into a Secret, and name that with the key `secret`"]
    if "://" in tree:
        try:
            given = "@" in urlsplit(tree).netloc
        except ValueError:
            return []
        if given:
            return [f"{_where(place)}: a user or password in an address; put it into a Secret, and name that"]
    return []


def _where(place: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in place) or "file"


def _message(fault: Any) -> str:
    return _MESSAGES.get(fault["type"], str(fault["msg"]).removeprefix("Value error, "))
