"""Images in class folders as in ImageNet: DIR/class/**/file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from ...config.errors import UserError
from ..faults import Policies
from .files import SourceFiles
from .filesystem import read_patiently, read_whole
from .listing import Listing, leave_out, make_listing, utf8
from .selection import EARLIER_RULES

_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True)
class FileReader:
    """Reader of images that are files."""

    filesystem: fs.FileSystem

    def read(self, items: pa.Table) -> Iterator[bytes | OSError]:
        """Yield the content of each row's file, or the error of reading it."""
        for path in items["file"].to_pylist():
            yield read_patiently(partial(read_whole, self.filesystem, path))


def file_columns(files: SourceFiles, names: pa.Array, labels: pa.Array, found: pa.Array) -> dict[str, pa.Array]:
    """Return key, label, file and size of the files that are `found`, for `make_listing`."""
    keys = names.filter(found)
    return {
        "key": keys,
        "label": labels.filter(found),
        "file": pc.binary_join_element_wise(pa.scalar(files.path("")), keys, ""),
        "size": pa.array(files.sizes, pa.int64()).filter(found),
    }


@dataclass(frozen=True)
class ClassFolders:
    """Folder with one folder per class.

    Every file below a class folder counts as an image. Files of other kinds are reported when they are decoded.
    Files beside the class folders do not have a label.
    """

    files: SourceFiles
    policies: Policies

    def listing(self) -> Listing:
        """List the images. Classes are the folders, including empty ones: sorted bytewise, or by number."""
        files = self.files
        class_names = _class_names(files)
        if not class_names:
            raise UserError(
                f"{files.location} has no class folders\n"
                f"  images without folders need a file of labels: --labels FILE.csv"
            )
        names = utf8(files.names, files.location)
        heads = pa.array([name.partition("/")[0] if "/" in name else None for name in files.names], pa.string())
        labels = pc.index_in(heads, value_set=utf8(class_names, files.location))
        found = labels.is_valid()
        stray = [(name, "lies in no class folder") for name in names.filter(pc.invert(found)).to_pylist()]
        columns = file_columns(files, names, labels, found)
        findings = leave_out("unlabelled", stray, self.policies)
        return make_listing("folders", files.location, class_names, columns, findings, files.selection)

    def reader(self) -> FileReader:
        """Return the reader of the images."""
        return FileReader(self.files.filesystem)


def _class_names(files: SourceFiles) -> list[str]:
    names = sorted({name for name in files.folders if not name.startswith(".")})
    if files.selection.rules != EARLIER_RULES and all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=int)  # 2 before 10, as for labels that are integers
    return names
