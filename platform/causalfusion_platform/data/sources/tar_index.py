"""Where the members of a tar lie, without unpacking it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import NamedTuple

from pyarrow import fs

from ...config.errors import UserError

# Headers and small members (labels) that follow each other are read at once.
_BUFFER = 16 * 1024
_BLOCK = 512


class TarMember(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    """First byte of its content in the tar."""
    size: int
    text: bytes | None
    """Its content, where it was asked for."""


def index_tar(filesystem: fs.FileSystem, path: str, name: str, wants: Callable[[str], bool]) -> list[TarMember]:
    """Return the files of a tar in their order there.

    Args:
        filesystem: where the tar is.
        path: its path there.
        name: what to call it in messages.
        wants: says of a member's name whether its content is to be read, too.

    Raises:
        UserError: it is damaged, cut off, or holds something that is neither file nor folder.
        OSError: it cannot be read.
    """
    members = []
    mend = "copy the tar again, or make it anew"
    with io.BufferedReader(filesystem.open_input_file(path), _BUFFER) as file:
        try:
            tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="strict")
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
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
            raise UserError(f"{name} is damaged or no tar: {error}\n  {mend}") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}: the name of a member is not UTF-8: {error.object!r}\n  make it anew"
            ) from error
        # tarfile takes a header that is cut off or damaged for the end; a whole tar ends in blocks of zeros.
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(
                f"{name} is cut off or damaged after {len(members)} files, at byte {tar.offset}\n  {mend}"
            )
    return members
