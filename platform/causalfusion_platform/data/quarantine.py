"""Quarantine of bad shards, so that the rest of a folder can be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..config.commands import command
from ..config.errors import UserError
from ..storage.object_path import ObjectPath
from .layout import names_in
from .manifest import Manifest, Quarantined
from .mnist import KIND, mnist_command
from .scan import look_at_shard
from .split_digits import digits_command


def quarantine_shards(folder: Path, manifest: Manifest, bad: Mapping[str, str]) -> Manifest:
    """Move bad shards (file → fault) into `_quarantine/`, and return the manifest of `folder` without them.

    Missing shards are only removed from the manifest. The manifest is written after the moves. If a call is killed
    in between, the next call removes the moved shards from the manifest.

    Raises:
        UserError: every shard is bad and nothing was moved, or a file cannot be moved.
    """
    if len(bad) == len(manifest.shards):
        raise UserError(
            f"all {len(bad)} shards in {folder} are bad; none was moved\n  {restore_advice(folder, manifest)}"
        )
    aside = folder / names_in(folder).quarantine
    entries = []
    for shard in manifest.shards:
        if shard.file not in bad:
            continue
        path, reason = folder / shard.file, bad[shard.file]
        if path.is_file():
            _move(path, aside)
        elif (aside / shard.file).is_file():  # an interrupted call has moved it
            fault = look_at_shard(aside / shard.file, shard, manifest)
            reason = f"it was in {aside.name}/ already: {fault if isinstance(fault, str) else reason}"
        entries.append(Quarantined(file=shard.file, rows=shard.rows, reason=reason))
    rest = manifest.without(bad).model_copy(update={"quarantined": [*manifest.quarantined, *entries]})
    rest.write(folder)
    return rest


def restore_advice(folder: Path, manifest: Manifest) -> str:
    """Return the advice for making bad or missing shards again."""
    if isinstance(folder, ObjectPath):
        return f"copy sound shards there: {command('data', 'upload', 'FOLDER', folder)}"
    if manifest.source.kind == "bundled":
        return f"make them anew: {digits_command(folder, manifest)}"
    if manifest.source.kind == KIND:
        return f"make them anew: {mnist_command(folder, manifest)}"
    return (
        f"make them anew: the same command as before, "
        f"{command('data', 'encode', manifest.source.location, folder)} …, makes the shards that are missing"
    )


def _move(path: Path, aside: Path) -> None:
    target, number = aside / path.name, 1
    while target.exists():  # an earlier copy of the shard was set aside too
        number += 1
        target = aside / f"{path.name}.{number}"
    try:
        aside.mkdir(exist_ok=True)
        path.rename(target)
    except OSError as error:
        raise UserError(f"{path} cannot be moved to {aside}: {error.strerror or error}") from error
