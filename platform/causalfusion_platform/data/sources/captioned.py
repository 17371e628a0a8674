"""Images in folders, with captions from a file beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from ...config.errors import UserError
from ..faults import FaultStop, Finding, Policies
from .caption_file import CaptionFile
from .listing import CaptionsFound, Listing, Reader, Source, leave_out, make_listing
from .webdataset import IMAGE_SUFFIXES

_NAMED = 3
_KIND = "uncaptioned"


@dataclass(frozen=True)
class Captioned:
    """Images of a source, joined with captions by the name of the file.

    Names are compared as paths from the folder. If none is the path of an image, their last parts are compared.
    Images of splits that were not chosen are passed over. So are files that are neither captioned nor named as
    images.
    """

    images: Source
    file: CaptionFile
    policies: Policies

    def listing(self) -> Listing:
        """List the images that have captions."""
        listing, file = self.images.listing(), self.file
        keys: list[str] = listing.table["key"].to_pylist()
        names, by = _match(keys, listing.location, file)
        captions = [file.captions.get(name) if name is not None else None for name in names]
        without = [
            (key, "has no caption" if texts is None else "its captions are empty")
            for key, name, texts in zip(keys, names, captions, strict=True)
            if not texts and name not in file.other_splits and (texts is not None or _is_image(key))
        ]
        kept = pa.array([bool(texts) for texts in captions])
        self._refuse(without, kept.true_count + len(without))
        table = listing.table.filter(kept)
        columns = {name: table[name] for name in table.column_names}
        columns["captions"] = pa.array([texts for texts in captions if texts], pa.list_(pa.string()))
        absent = sorted(set(file.captions).difference(name for name in names if name is not None))
        selection = listing.selection
        if file.splits:
            selection = replace(selection, splits=file.splits, split=file.split)
        joined = make_listing(
            listing.kind,
            listing.location,
            listing.class_names,
            columns,
            listing.findings + leave_out(_KIND, without, self.policies),
            selection,
        )
        other_splits = sum(name in file.other_splits for name in names)
        found = CaptionsFound(
            location=file.location,
            form=file.form,
            keys=file.keys,
            by=by,
            captions=sum(len(texts) for texts in captions if texts),
            uncaptioned=len(without),
            absent=len(absent),
            first_absent=tuple(absent[:_NAMED]),
            other_splits=other_splits,
            other_files=len(keys) - table.num_rows - len(without) - other_splits,
        )
        return replace(joined, captions=found)

    def reader(self) -> Reader:
        """Return the reader of the images."""
        return self.images.reader()

    def _refuse(self, without: Sequence[tuple[str, str]], images: int) -> None:
        if without and self.policies[_KIND] == "stop":
            named = ", ".join(key for key, _ in without[:_NAMED]) + (", …" if len(without) > _NAMED else "")
            detail = f"{len(without):,} of {images:,} images are without: {named}"
            raise FaultStop(without[0][0], Finding(_KIND, "stop", detail))


def _match(keys: Sequence[str], location: str, file: CaptionFile) -> tuple[list[str | None], str]:
    """Return the file's own name of each image, or None without, and how names were compared."""
    known = file.captions.keys() | file.other_splits
    if any(key in known for key in keys):
        matched, by = [key if key in known else None for key in keys], "path"
    else:
        parts = {_last(name): name for name in sorted(known)}
        images = Counter(map(_last, keys))
        shared = {part for part, times in Counter(map(_last, known)).items() if times > 1}
        for key in keys:
            part = _last(key)
            if part in parts and (images[part] > 1 or part in shared):
                several = "images" if images[part] > 1 else "entries"
                raise UserError(
                    f"captions {file.location}: {part!r} is the name of several {several}, and no entry is the "
                    f"path of an image\n  write paths that start from {location}, such as {key}"
                )
        matched, by = [parts.get(_last(key)) for key in keys], "file name"
    if not any(name in file.captions for name in matched):
        first = next(iter(file.captions), None)
        of = f" of the split {file.split}" if file.split else ""
        raise UserError(
            f"captions {file.location}: no entry{of} names an image of {location}: the first entry is {first!r}, "
            f"the first image {min(keys)!r}\n  name the folder that holds the images of {file.location}"
        )
    return matched, by


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _is_image(key: str) -> bool:
    return key.rpartition(".")[2].lower() in IMAGE_SUFFIXES
