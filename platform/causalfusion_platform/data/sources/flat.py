"""Images in any folders, with a label file or without classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from ...config.errors import UserError
from ..faults import Policies
from .files import SourceFiles
from .filesystem import locate
from .folders import FileReader, file_columns
from .label_file import LabelColumns, read_label_file
from .labels import as_labels, no_classes, number_labels
from .listing import Listing, leave_out, make_listing, utf8
from .selection import EARLIER_RULES
from .system_files import system_part


@dataclass(frozen=True)
class FlatFolder:
    """Folder of images and a label file, whose names are relative to the folder."""

    files: SourceFiles
    labels: str
    columns: LabelColumns
    policies: Policies

    def listing(self) -> Listing:
        """List the images that have a label."""
        files, rules = self.files, self.files.selection.rules
        entries = read_label_file(self.labels, self.columns, rules)
        filesystem, label_path = locate(self.labels)
        own = {name for name in files.names if files.path(name) == label_path and filesystem == files.filesystem}
        names = utf8(files.names, files.location)
        if entries.labels[0] is None:
            numbered = no_classes(len(entries.labels))
        else:
            values = as_labels(entries.labels)
            numbered = number_labels(values, self.labels, place_of=entries.places.__getitem__, rules=rules)
        listed = utf8(entries.names, self.labels)
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
        absent = listed.filter(pc.invert(pc.is_in(listed, value_set=names))).to_pylist()
        system = {name: part for name in absent if rules != EARLIER_RULES and (part := system_part(name))}
        missing = [(name, "has a label, but is not there") for name in absent if name not in system]
        columns = file_columns(files, names, labels, found)
        if entries.captions is not None:
            captions = pa.array(entries.captions, pa.list_(pa.string()))
            columns["captions"] = pc.take(captions, entry.filter(found))
        findings = leave_out("unlabelled", unlabelled, self.policies) + leave_out("missing", missing, self.policies)
        selection = files.selection
        selection = replace(selection, left_out=tuple(sorted({*selection.left_out, *system.values()})))
        return make_listing("flat", files.location, numbered.class_names, columns, findings, selection)

    def reader(self) -> FileReader:
        """Return the reader of the images."""
        return FileReader(self.files.filesystem)


@dataclass(frozen=True)
class UnlabelledFolder:
    """Folder of images without classes, all with label 0. Captions choose its images."""

    files: SourceFiles

    def listing(self) -> Listing:
        """List every file."""
        files = self.files
        names = utf8(files.names, files.location)
        numbered = no_classes(len(names))
        columns = file_columns(files, names, pa.array(numbered.labels), pa.array([True] * len(names)))
        return make_listing("flat", files.location, numbered.class_names, columns, [], files.selection)

    def reader(self) -> FileReader:
        """Return the reader of the images."""
        return FileReader(self.files.filesystem)
