"""Images in WebDataset tars, where the members of a sample share their name up to its first dot."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ...config.errors import UserError
from ..faults import Policies
from .files import SourceFiles
from .labels import NO_LABELS, as_labels, no_classes, number_labels, read_label
from .listing import Listing, leave_out, make_listing, utf8
from .selection import EARLIER_RULES
from .system_files import system_part
from .tar_index import TarMember, index_tar
from .tar_reader import TarReader

IMAGE_SUFFIXES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif", "tga", "ico"),
    ]
)
_THREADS = 16
_DOTS = "has several dots, and WebDataset ends the name of a sample at the first one"


class _Label(NamedTuple):
    """Label of a sample."""

    value: int | str | None
    why: str = ""
    """Reason of a missing value."""
    absent: bool = False
    """True if the sample has no place of a label."""


@dataclass
class _Samples:
    """Samples of the tars, column by column."""

    keys: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[_Label] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    unlabelled: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    dotted: list[str] = field(default_factory=list)
    """A caption that is not found, because its name has several dots."""
    system: set[str] = field(default_factory=set)
    """System files and folders inside tars, which are left out."""


@dataclass(frozen=True)
class Tars:
    """Tars of samples: an image (.jpg, .png, …) with its label (.cls, or a key of .json).

    A sample without an image, or without a label, is left out and reported.
    """

    files: SourceFiles
    policies: Policies
    image_column: str = "auto"
    """Extension of the images. auto: that of any image format."""
    label_column: str = "auto"
    """`cls`, or a key of .json. auto: `cls` if present, else the key `label`. `NO_LABELS`: without classes."""
    caption_column: str | None = None
    """`txt`, or a key of .json."""

    def listing(self) -> Listing:
        """List the samples, reading the tars' headers and labels but not the images."""
        files = self.files
        samples = _Samples()
        with ThreadPoolExecutor(_THREADS) as pool:
            for name, members in zip(files.names, pool.map(self._index, files.names), strict=True):
                self._add(samples, name, members)
        if self._is_without_labels(samples):
            numbered = no_classes(len(samples.keys))
        else:
            values = as_labels([label.value for label in samples.labels])
            numbered = number_labels(
                values, files.location, place_of=samples.keys.__getitem__, rules=files.selection.rules
            )
        found = pa.array(numbered.labels >= 0)
        unlabelled = samples.unlabelled + [
            (samples.keys[row], samples.labels[row].why) for row in np.flatnonzero(numbered.labels < 0)
        ]
        findings = leave_out("unlabelled", unlabelled, self.policies)
        findings += leave_out("missing", samples.missing, self.policies)
        columns = {
            "key": utf8(samples.keys, files.location).filter(found),
            "label": pa.array(numbered.labels).filter(found),
            "file": pa.array(samples.files, pa.string()).filter(found),
            "offset": pa.array(samples.offsets, pa.int64()).filter(found),
            "size": pa.array(samples.sizes, pa.int64()).filter(found),
        }
        if self.caption_column is not None:
            if not any(samples.captions):
                dots = f": {samples.dotted[0]} {_DOTS}" if samples.dotted else ""
                raise UserError(
                    f"no sample of {files.location} has the caption {self.caption_column!r}{dots}\n"
                    f"  name txt or a key of the samples' .json: --caption-column"
                )
            columns["captions"] = pa.array(samples.captions, pa.list_(pa.string())).filter(found)
        left_out = tuple(sorted({*files.selection.left_out, *samples.system}))
        selection = replace(files.selection, left_out=left_out)
        return make_listing("webdataset", files.location, numbered.class_names, columns, findings, selection)

    def reader(self) -> TarReader:
        """Return the reader of the images."""
        return TarReader(self.files.filesystem)

    def _index(self, name: str) -> list[TarMember]:
        wanted = {"auto": {"cls", "json"}, "cls": {"cls"}, NO_LABELS: set()}.get(self.label_column, {"json"})
        if self.caption_column is not None:
            wanted |= {"txt"} if self.caption_column == "txt" else {"json"}
        files = self.files
        try:
            return index_tar(files.filesystem, files.path(name), name, lambda member: _split(member)[1] in wanted)
        except OSError as error:
            raise UserError(f"{name} in {files.location} cannot be read: {error}\n  mend or remove it") from error

    def _add(self, samples: _Samples, tar: str, members: list[TarMember]) -> None:
        groups: dict[str, dict[str, TarMember]] = {}
        for member in members:
            system = None if self.files.selection.rules == EARLIER_RULES else system_part(member.name)
            if system is not None:
                samples.system.add(f"{tar}/{system}")
                continue
            stem, extension = _split(member.name)
            group = groups.setdefault(stem, {})
            if extension in group:
                raise UserError(
                    f"{tar} holds {member.name} twice, once as {group[extension].name}\n"
                    f"  make it anew with one of them"
                )
            group[extension] = member
        path = self.files.path(tar)
        for stem, group in groups.items():
            image = self._choose_image(tar, group)
            label = self._label(group)
            if image is None:
                held = ", ".join(sorted(f".{extension}" for extension in group))
                left_out = samples.missing if label.value is not None else samples.unlabelled
                left_out.append((f"{tar}/{stem}", f"the sample has no image, only {held}"))
                continue
            key = f"{tar}/{image.name}"
            samples.keys.append(key)
            samples.files.append(path)
            samples.offsets.append(image.offset)
            samples.sizes.append(image.size)
            samples.labels.append(label)
            if self.caption_column is not None:
                samples.captions.append(self._captions(key, group))
                samples.dotted += _dotted(group, ".txt")[: not samples.dotted]

    def _is_without_labels(self, samples: _Samples) -> bool:
        """Return True for images without classes: as asked for, or because the samples have captions alone."""
        if self.label_column == NO_LABELS:
            return True
        if self.label_column != "auto" or not samples.labels or not all(label.absent for label in samples.labels):
            return False
        if self.caption_column is None:
            raise UserError(
                f"no sample of {self.files.location} has a label, such as {samples.keys[0]}: there is neither .cls "
                f"nor a key 'label' of .json\n"
                f"  name the key: --label-column KEY. Or take images without classes: --label-column {NO_LABELS}"
            )
        return True

    def _choose_image(self, tar: str, group: dict[str, TarMember]) -> TarMember | None:
        if self.image_column != "auto":
            return group.get(self.image_column.lower().removeprefix("."))
        images = [group[extension] for extension in group if extension in IMAGE_SUFFIXES]
        if not images:  # the name has more dots: photo.v2.jpg
            images = [group[extension] for extension in group if extension.rpartition(".")[2] in IMAGE_SUFFIXES]
        if len(images) > 1:
            first, second = images[0].name, images[1].name
            extension = _split(first)[1]
            dots, rename = "", ""
            if "." in extension:
                dots = f": {first} {_DOTS}"
                rename = f"make the tar anew with other names, such as {_without_dots(first)}. Or "
            raise UserError(
                f"{tar}: {first} and {second} are images of one sample{dots}\n"
                f"  {rename}name the extension of the right ones: --image-column {extension}"
            )
        return images[0] if images else None

    def _label(self, group: dict[str, TarMember]) -> _Label:
        absent = False
        if "cls" in group and self.label_column in ("auto", "cls"):
            text = (group["cls"].text or b"").decode(errors="replace")
            number = read_label(text)
            value: object = number if isinstance(number, int) else None
            shown = f"its .cls holds {text[:40]!r}, no class number"
        elif "json" in group and self.label_column != "cls":
            column = "label" if self.label_column == "auto" else self.label_column
            tree = _json(group["json"])
            value, absent = tree.get(column), column not in tree
            if isinstance(value, str) and self.files.selection.rules != EARLIER_RULES:
                value = read_label(value)
            shown = f"its .json has no integer or name {column!r}"
        else:
            value, shown, absent = None, "the sample has no label", True
        dotted = _dotted(group, ".cls", ".json")
        if absent and dotted:
            shown, absent = f"{shown}: {dotted[0]} {_DOTS}", False
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            return _Label(None, shown, absent)
        return _Label(None, "its label is negative") if isinstance(value, int) and value < 0 else _Label(value)

    def _captions(self, key: str, group: dict[str, TarMember]) -> list[str]:
        if self.caption_column == "txt":
            if "txt" not in group:
                return []
            try:
                captions: object = (group["txt"].text or b"").decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{key}: its .txt is not UTF-8: {error}\n  write it in UTF-8") from error
        else:
            captions = _json(group["json"]).get(str(self.caption_column)) if "json" in group else None
        captions = [captions] if isinstance(captions, str) else captions or []
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise UserError(
                f"{key}: the caption {self.caption_column!r} is neither text nor a list of texts\n"
                f"  name another: --caption-column"
            )
        return [caption for caption in captions if caption]


def _split(name: str) -> tuple[str, str]:
    """Return a member's sample and its extension in lower case, which follows the first dot."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and dot else (name, "")


def _dotted(group: dict[str, TarMember], *suffixes: str) -> list[str]:
    """Return the members whose extension ends in one of the suffixes but is longer, as that of a.v2.txt."""
    return [member.name for extension, member in group.items() if extension.endswith(suffixes)]


def _without_dots(name: str) -> str:
    """Return a member's name with a single dot in its last part."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return f"{folder}{slash}{stem.replace('.', '_')}{dot}{suffix}"


def _json(member: TarMember) -> dict[str, object]:
    try:
        content = json.loads(member.text or b"")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
