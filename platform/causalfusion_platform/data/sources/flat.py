"""Images in any folders, with a label file."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ...config.errors import UserError
from ..faults import Policies
from .files import SourceFiles
from .filesystem import locate
from .folders import FileReader, file_columns
from .label_file import LabelColumns, read_label_file
from .labels import as_labels, number_labels
from .listing import Listing, leave_out, make_listing, utf8


@dataclass(frozen=True)
class FlatFolder:
    """Folder of images and a label file, whose names are relative to the folder."""

    files: SourceFiles
    labels: str
    columns: LabelColumns
    policies: Policies

    def listing(self) -> Listing:
        """List the images that have a label."""
        files = self.files
        entries = read_label_file(self.labels, self.columns)
        filesystem, label_path = locate(self.labels)
        own = {name for name in files.names if files.path(name) == label_path and filesystem == files.filesystem}
        names = utf8(files.names, files.location)
        numbered = number_labels(as_labels(entries.labels, entries.places), self.labels)
        listed = pa.array(entries.names, pa.string())
        entry = pc.index_in(names, value_set=listed)
        if not entry.is_valid().true_count:
            raise UserError(
                f"{self.labels} names no file of {files.location}: its first entry is {entries.names[0]!r}, "
                f"the first file there {min(files.names)!r}\n"
                f"  name the folder that the names in {self.labels} start from"
            )
        labels = pc.take(pa.array(numbered.labels), entry)
        found = pc.fill_null(pc.greater_equal(labels, 0), False)
        unlabelled = [
            (name, "has no entry in the label file" if label is None else "its label is negative")
            for name, label in zip(
                *(part.filter(pc.invert(found)).to_pylist() for part in (names, labels)), strict=True
            )
            if name not in own
        ]
        there = pc.is_in(listed, value_set=names)
        missing = [(name, "has a label, but is not there") for name in listed.filter(pc.invert(there)).to_pylist()]
        columns = file_columns(files, names, labels, found)
        if entries.captions is not None:
            captions = pa.array(entries.captions, pa.list_(pa.string()))
            columns["captions"] = pc.take(captions, entry.filter(found))
        findings = leave_out("unlabelled", unlabelled, self.policies) + leave_out("missing", missing, self.policies)
        return make_listing("flat", files.location, numbered.class_names, columns, findings)

    def reader(self) -> FileReader:
        """Return the reader of the images."""
        return FileReader(self.files.filesystem)
