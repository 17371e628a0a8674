"""Images in WebDataset tars, where the members of a sample share their name up to its first dot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
from pyarrow import fs

from ...config.errors import UserError
from ..faults import Policies
from .files import SourceFiles
from .filesystem import read_patiently
from .labels import as_labels, number_labels
from .listing import Listing, leave_out, make_listing, utf8
from .tar_index import TarMember, index_tar

IMAGE_SUFFIXES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif", "tga", "ico"),
    ]
)
_THREADS = 16
_INTEGER = re.compile(r"\s*(-?[0-9]+)\s*")


@dataclass(frozen=True)
class TarReader:
    """Reader of images inside tars, by offset and size."""

    filesystem: fs.FileSystem

    def read(self, items: pa.Table) -> Iterator[bytes | OSError]:
        """Yield the content of each row's member, or the error of reading it."""
        file: pa.NativeFile | None = None
        opened = ""

        def read_member(path: str, offset: int, size: int) -> bytes:
            nonlocal file, opened
            try:
                if file is None or path != opened:
                    file, opened = self.filesystem.open_input_file(path), path
                content: bytes = file.read_at(size, offset)
            except Exception:
                file = None
                raise
            if len(content) < size:
                raise OSError(f"the tar ends {size - len(content)} bytes before its member")
            return content

        for place in zip(*(items[name].to_pylist() for name in ("file", "offset", "size")), strict=True):
            yield read_patiently(partial(read_member, *place))


@dataclass
class _Samples:
    """Samples of the tars, column by column."""

    keys: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    unlabelled: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


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
    """`cls`, or a key of .json. auto: `cls` if present, else the key `label`."""
    caption_column: str | None = None
    """`txt`, or a key of .json."""

    def listing(self) -> Listing:
        """List the samples, reading the tars' headers and labels but not the images."""
        files = self.files
        samples = _Samples()
        with ThreadPoolExecutor(_THREADS) as pool:
            for name, members in zip(files.names, pool.map(self._index, files.names), strict=True):
                self._add(samples, name, members)
        findings = leave_out("unlabelled", samples.unlabelled, self.policies)
        findings += leave_out("missing", samples.missing, self.policies)
        numbered = number_labels(as_labels(samples.labels, samples.keys), files.location)
        columns = {
            "key": utf8(samples.keys, files.location),
            "label": numbered.labels,
            "file": samples.files,
            "offset": samples.offsets,
            "size": samples.sizes,
        }
        if self.caption_column is not None:
            if not any(samples.captions):
                raise UserError(
                    f"no sample of {files.location} has the caption {self.caption_column!r}\n"
                    f"  name txt or a key of the samples' .json: --caption-column"
                )
            columns["captions"] = samples.captions
        return make_listing("webdataset", files.location, numbered.class_names, columns, findings)

    def reader(self) -> TarReader:
        """Return the reader of the images."""
        return TarReader(self.files.filesystem)

    def _index(self, name: str) -> list[TarMember]:
        wanted = {"cls", "json"} if self.label_column == "auto" else {self.label_column}
        wanted = wanted if wanted <= {"cls", "json"} else {"json"}
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
            label, why = self._label(group)
            if image is None:
                held = ", ".join(sorted(f".{extension}" for extension in group))
                left_out = samples.missing if label is not None else samples.unlabelled
                left_out.append((f"{tar}/{stem}", f"the sample has no image, only {held}"))
                continue
            key = f"{tar}/{image.name}"
            if label is None:
                samples.unlabelled.append((key, why))
                continue
            samples.keys.append(key)
            samples.files.append(path)
            samples.offsets.append(image.offset)
            samples.sizes.append(image.size)
            samples.labels.append(label)
            if self.caption_column is not None:
                samples.captions.append(self._captions(key, group))

    def _choose_image(self, tar: str, group: dict[str, TarMember]) -> TarMember | None:
        if self.image_column != "auto":
            return group.get(self.image_column.lower().removeprefix("."))
        images = [group[extension] for extension in group if extension in IMAGE_SUFFIXES]
        if not images:  # the name has more dots: photo.v2.jpg
            images = [group[extension] for extension in group if extension.rpartition(".")[2] in IMAGE_SUFFIXES]
        if len(images) > 1:
            raise UserError(
                f"{tar}: {images[0].name} and {images[1].name} are images of one sample\n"
                f"  name the extension of the right ones: --image-column {_split(images[0].name)[1]}"
            )
        return images[0] if images else None

    def _label(self, group: dict[str, TarMember]) -> tuple[int | str | None, str]:
        """Return the label and an empty text, or None and the reason of its absence."""
        if "cls" in group and self.label_column in ("auto", "cls"):
            text = (group["cls"].text or b"").decode(errors="replace")
            number = _INTEGER.fullmatch(text)
            value: object = int(number[1]) if number else None
            shown = f"its .cls holds {text[:40]!r}, no class number"
        elif "json" in group and self.label_column != "cls":
            column = "label" if self.label_column == "auto" else self.label_column
            value = _json(group["json"]).get(column)
            shown = f"its .json has no integer or name {column!r}"
        else:
            value, shown = None, "the sample has no label"
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            return None, shown
        return (None, "its label is negative") if isinstance(value, int) and value < 0 else (value, "")

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


def _json(member: TarMember) -> dict[str, object]:
    try:
        content = json.loads(member.text or b"")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
