"""Copy of a folder of shards to object storage, the manifest last."""

from __future__ import annotations

from pathlib import Path

from ..config.errors import UserError
from ..storage.object_path import ObjectPath
from ..storage.objects import open_store
from .layout import CARD_FILE, manifest_path
from .manifest import Manifest
from .passes import ShowRows
from .validate import open_shards


def upload_shards(folder: Path, to: ObjectPath, show: ShowRows = lambda *_: None) -> Manifest:
    """Check every byte of the shards in a folder, and copy them. Readers see the copy once it is whole.

    Objects of the same size that an interrupted call has copied are copied again, because only a hash would tell
    whether they are the same.

    Args:
        folder: the shards, on disk.
        to: where they go. An earlier copy of the same shards is replaced.
        show: called with rows done and all rows.

    Returns:
        The manifest.

    Raises:
        UserError: the shards are damaged, or other data is there.
    """
    manifest = open_shards(folder).manifest
    _check_free(to, manifest)
    store, done = open_store(to.url), 0
    name = manifest_path(folder).name
    store.delete(name)  # an incomplete copy has no manifest
    for shard in manifest.shards:
        store.upload(folder / shard.file, shard.file)
        done += shard.rows
        show(done, manifest.rows)
    if (folder / CARD_FILE).is_file():
        store.upload(folder / CARD_FILE, CARD_FILE)
    store.upload(folder / name, name)
    return manifest


def _check_free(to: ObjectPath, manifest: Manifest) -> None:
    ours = {shard.file for shard in manifest.shards} | {CARD_FILE}
    others = sorted(set(to.objects()) - ours)
    if not others or _digest_of(to) == manifest.digest:
        return
    raise UserError(
        f"{to} holds {len(others)} other objects, such as {others[0]}\n"
        f"  name another prefix, or remove them: aws s3 rm --recursive {to}"
    )


def _digest_of(to: ObjectPath) -> str | None:
    try:
        return Manifest.read(to).digest
    except UserError:
        return None
