"""Kinds of paths in a configuration: on disk, or on object storage too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidatorFunctionWrapHandler, WrapValidator

from ..errors import UserError
from ..storage.object_path import ObjectPath, as_path
from ..storage.objects import is_object_url


def _shards_folder(given: Any, on_disk: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(given, str | Path):
        return on_disk(given)
    try:
        path = as_path(given)
    except UserError as error:
        raise ValueError(str(error).replace("\n  ", ": ")) from error
    # As it was given: JSON has no paths, and a path is refused in the place of text there.
    return path if isinstance(path, ObjectPath) else on_disk(given)


def _on_disk(given: Any) -> Any:
    if not isinstance(given, str | Path):
        return given
    try:
        is_object = is_object_url(given)
    except UserError as error:
        raise ValueError(f"{str(error).partition(chr(10))[0]}: give a path on disk") from error
    if is_object:
        raise ValueError("an address of object storage cannot be given here: give a path on disk")
    return given


ShardsFolder = Annotated[Path, WrapValidator(_shards_folder)]
"""Folder of shards that are read: on disk, or s3://BUCKET/PREFIX on object storage."""
DiskPath = Annotated[Path, BeforeValidator(_on_disk)]
"""Path on disk. Addresses with `://` are refused, because they would silently name a folder."""
