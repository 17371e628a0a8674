"""Index of the members of a tar, without unpacking it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import NamedTuple

from pyarrow import fs

from ...config.errors import UserError

# Consecutive headers and small members (labels) are read together.
_BUFFER = 16 * 1024
_BLOCK = 512


class TarMember(NamedTuple):
    """File inside a tar."""

    name: str
    offset: int
    """First byte of its content in the tar."""
    size: int
    text: bytes | None
    """Its content, if requested by `wants`."""


def index_tar(filesystem: fs.FileSystem, path: str, name: str, wants: Callable[[str], bool]) -> list[TarMember]:
    """Return the files of a tar in the order of the tar.

    Args:
        name: its name in messages.
        wants: returns True for the names of members whose content is to be read too.

    Raises:
        UserError: the tar is damaged, cut off, or holds a member that is neither file nor folder.
        OSError: the tar cannot be read.
    """
    members = []
    mend = "copy the tar again, or make it anew"
    with io.BufferedReader(filesystem.open_input_file(path), _BUFFER) as file:
        try:
            tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="strict")
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise it keeps all in memory
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise UserError(
                        f"{name}: member {member.name} is a link or another thing without content of its own\n"
                        f"  make the tar anew: tar --dereference --hard-dereference"
                    )
                text = None
                if wants(member.name):
                    file.seek(member.offset_data)
                    text = file.read(member.size)
                members.append(TarMember(member.name.removeprefix("./"), member.offset_data, member.size, text))
        except tarfile.TarError as error:
            raise UserError(f"{name} is damaged or not a tar: {error}\n  {mend}") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}: the name of a member is not UTF-8: {error.object!r}\n  make it anew"
            ) from error
        # tarfile takes a damaged header for the end, but a complete tar ends in blocks of zeros.
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(
                f"{name} is cut off or damaged after {len(members)} files, at byte {tar.offset}\n  {mend}"
            )
    return members
