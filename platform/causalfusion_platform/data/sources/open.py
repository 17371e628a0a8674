"""Opening of a source of images, with detection of its kind."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Literal, get_args

from ...config.errors import UserError
from ..faults import Policies
from .caption_file import CaptionFile, read_caption_file
from .captioned import Captioned
from .files import SourceFiles, list_files
from .filesystem import locate
from .flat import FlatFolder, UnlabelledFolder
from .folders import ClassFolders
from .idx import IDX_ENDS, PACKED, IdxFiles, without_packed_twins
from .label_file import LabelColumns
from .listing import Kind, Source
from .parquet import ParquetFiles
from .selection import EARLIER_RULES, RULES
from .splits import choose_split
from .webdataset import IMAGE_SUFFIXES, Tars

_TAR = (".tar",)
_PARQUET = (".parquet", ".pq")
_COMPRESSED_TAR = tuple(
    ending for kind in ("gz", "bz2", "xz", "zst", "lz4", "z") for ending in (f".tar.{kind}", f".t{kind}")
)
_IMAGES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
_KINDS = (
    "allowed: a folder of class folders (folders), a folder with --labels FILE (flat), tars (webdataset), "
    "Parquet files (parquet), MNIST's IDX files (idx)"
)


def open_source(
    location: str,
    *,
    kind: Literal["auto"] | Kind = "auto",
    labels: str | None = None,
    image_column: str = "auto",
    label_column: str = "auto",
    caption_column: str | None = None,
    captions: str | None = None,
    split: str | None = None,
    policies: Policies,
    rules: int = RULES,
) -> Source:
    """Open a source of images.

    Args:
        location: a folder, a file, or a pattern of files, as a local path or a URL of PyArrow or fsspec.
        kind: `folders`, `flat`, `webdataset`, `parquet` or `idx`. `auto`: detected from the files' names.
        labels: path or URL of a file of labels (.csv, .json or .txt), for `flat`.
        image_column: column of the file's name (CSV file of labels), column of the image (Parquet), or extension of
            the image (tars).
        label_column: column of the label. For tars `cls` or a key of .json.
        caption_column: column of the caption. For tars `txt` or a key of .json.
        captions: path or URL of a file of captions, for images in folders.
        split: split to take where names or captions tell several apart, such as `train`. Otherwise the split that
            all images are. `all`: every tar, Parquet or IDX file, or split of the captions.
        policies: actions for images without labels or captions, and labels without images.
        rules: version of the rules of listing, of which a folder that was begun keeps its own.

    Raises:
        UserError: the location is missing or empty, its kind is not clear, or options do not fit the kind.
    """
    if kind not in ("auto", *get_args(Kind)):
        raise UserError(f"{kind!r} is not a kind of source\n  name one: --kind auto, {', '.join(get_args(Kind))}")
    files = list_files(location, rules)
    columns = LabelColumns(image_column, label_column, caption_column)
    if captions is not None:
        file = read_caption_file(captions, split)
        return _open_captioned(files, kind, labels, columns, file, split, policies)
    if kind == "auto":
        kind = "flat" if labels is not None else _tell(files)
    _check_labels(files, kind, labels)
    if kind == "folders":
        return _open_classes(choose_split(files, kind, split), columns, policies)
    if kind == "flat":
        if labels is None:
            raise UserError(
                f"{location} needs a file of labels\n"
                f"  name it: --labels FILE.csv (or .json, .txt), or captions without labels: --captions FILE"
            )
        return FlatFolder(choose_split(files, kind, split), labels, columns, policies)
    if kind == "idx":
        return _open_idx(files, columns, split)
    if kind == "webdataset":
        _refuse_compressed_tars(files)
        files = choose_split(_only(files, _TAR), kind, split)
        return Tars(files, policies, image_column, label_column, caption_column)
    files = choose_split(_only(files, _PARQUET), kind, split)
    return ParquetFiles(files, policies, image_column, label_column, caption_column)


def open_images(location: str) -> Source:
    """Open a folder of images, all of one class. Images below it count too. Other files do not.

    Raises:
        UserError: the location is missing, is not a folder, or holds no image.
    """
    files = list_files(location)
    if files.given != "folder":
        raise UserError(f"{location} is a {files.given}, not a folder\n  name a folder of images")
    if not files.ending_in(*_IMAGES):
        raise UserError(f"{location} holds no image\n  name a folder of images, such as val2014")
    return UnlabelledFolder(_only(files, _IMAGES))


def _check_labels(files: SourceFiles, kind: Kind, labels: str | None) -> None:
    if labels is not None and kind != "flat":
        raise UserError(f"{kind} sources have their labels inside\n  leave out --labels, or use --kind flat")
    if kind in ("folders", "flat") and files.given != "folder":
        raise UserError(f"{files.location} is a {files.given}, not a folder, so it cannot be {kind!r}\n  {_KINDS}")


def _open_classes(files: SourceFiles, columns: LabelColumns, policies: Policies) -> ClassFolders:
    if columns != LabelColumns():
        raise UserError("class folders have no columns\n  leave out the options that name columns")
    return ClassFolders(files, policies)


def _open_idx(files: SourceFiles, columns: LabelColumns, split: str | None) -> IdxFiles:
    if columns != LabelColumns():
        raise UserError("IDX files have no columns\n  leave out the options that name columns")
    named = files.ending_in(*IDX_ENDS)
    others = sorted({*files.names} - {*named})
    if others and (files.given != "folder" or not named):
        raise UserError(
            f"{files.location}: {others[0]} is not named as an IDX file\n"
            f"  allowed: names that end in images-idx3-ubyte or images.idx3-ubyte, labels-idx1-ubyte or "
            f"labels.idx1-ubyte"
        )
    files = without_packed_twins(_only(files, IDX_ENDS))
    if split is None:
        _refuse_compressed_idx(files)  # one message for all of them, before the choice of a split
    files = choose_split(files, "idx", split)
    _refuse_compressed_idx(files)
    return IdxFiles(files)


def _open_captioned(
    files: SourceFiles,
    kind: Literal["auto"] | Kind,
    labels: str | None,
    columns: LabelColumns,
    captions: CaptionFile,
    split: str | None,
    policies: Policies,
) -> Captioned:
    if columns.caption is not None:
        raise UserError("captions are of a file or of a column\n  leave out --captions or --caption-column")
    if kind == "auto":
        kind = "flat" if labels is not None else _tell_captioned(_apart_from(files, captions.location), captions)
    _check_labels(files, kind, labels)
    if kind == "idx":
        raise UserError("IDX files are not named in a file of captions\n  leave out --captions")
    if kind not in ("folders", "flat"):
        raise UserError(f"{kind} sources have their captions inside\n  name them: --caption-column, not --captions")
    if split is not None and not captions.splits:  # Karpathy's file has splits of its own
        files = choose_split(files, "flat" if labels is not None else "folders", split)
    elif kind == "folders" and not captions.splits:
        files = choose_split(files, kind, None)
    files = _apart_from(files, captions.location)
    if kind == "folders":
        return Captioned(_open_classes(files, columns, policies), captions, policies)
    if labels is not None:
        return Captioned(FlatFolder(files, labels, columns, policies), captions, policies)
    return Captioned(UnlabelledFolder(files), captions, policies)


def _tell_captioned(files: SourceFiles, captions: CaptionFile) -> Kind:
    """Return the kind of a source with a file of captions. COCO's images have no classes."""
    if files.ending_in(*_TAR, *_PARQUET, *IDX_ENDS) or files.given != "folder":
        return _tell(files)
    has_classes = any(not folder.startswith(".") for folder in files.folders)
    beside = any("/" not in name for name in files.ending_in(*_IMAGES))
    return _tell(files) if captions.form == "JSONL" and has_classes and not beside else "flat"


def _apart_from(files: SourceFiles, location: str) -> SourceFiles:
    """Return the files without one, which may lie among the images."""
    filesystem, path = locate(location)
    pairs = [
        (name, size)
        for name, size in zip(files.names, files.sizes, strict=True)
        if files.path(name) != path or filesystem != files.filesystem
    ]
    return replace(files, names=[name for name, _ in pairs], sizes=[size for _, size in pairs])


def _tell(files: SourceFiles) -> Kind:
    tars, parquet, images = (files.ending_in(*suffixes) for suffixes in (_TAR, _PARQUET, _IMAGES))
    if files.selection.rules != EARLIER_RULES:  # img2dataset writes a table of each tar beside it
        parquet = [name for name in parquet if f"{name.rpartition('.')[0]}.tar" not in tars]
    idx = files.ending_in(*IDX_ENDS) if files.selection.rules != EARLIER_RULES else []
    found = {"tars": tars, "Parquet files": parquet, "images": images, "IDX files": idx}
    if sum(map(bool, found.values())) > 1:
        held = ", ".join(f"{len(names):,} {kind} ({names[0]})" for kind, names in found.items() if names)
        raise UserError(f"{files.location} is not clear: it holds {held}\n  name one: --kind; {_KINDS}")
    if tars:
        return "webdataset"
    if parquet:
        return "parquet"
    if idx:
        return "idx"
    _refuse_compressed_tars(files)
    if files.given != "folder":
        raise UserError(f"{files.location}: {files.names[0]} is not a source of images\n  {_KINDS}")
    beside = [name for name in files.ending_in(".csv", ".json") if "/" not in name]
    if not any(folder for folder in files.folders if not folder.startswith(".")) or beside:
        example = f"{files.location.rstrip('/')}/{beside[0]}" if beside else "FILE.csv"
        raise UserError(
            f"{files.location} is not clear: it has {len(files.folders)} class folders and "
            f"{len(beside)} files that may hold labels\n"
            f"  name the labels: --labels {example}, or take its folders as classes: --kind folders"
        )
    return "folders"


def _only(files: SourceFiles, suffixes: tuple[str, ...]) -> SourceFiles:
    """Return a folder's files of one kind. Files that the user named are all kept."""
    if files.given != "folder":
        return files
    sizes = dict(zip(files.names, files.sizes, strict=True))
    names = files.ending_in(*suffixes)
    if not names:
        raise UserError(f"{files.location} holds no {' or '.join(suffixes)} file\n  {_KINDS}")
    left_out = tuple(name for name in files.selection.left_out if name.lower().endswith(("/", *suffixes)))
    selection = replace(files.selection, left_out=left_out)
    return replace(files, names=names, sizes=[sizes[name] for name in names], selection=selection)


def _refuse_compressed_tars(files: SourceFiles) -> None:
    compressed = files.ending_in(*_COMPRESSED_TAR)
    if compressed:
        raise UserError(
            f"{compressed[0]} is compressed, so images cannot be read out of its middle\n"
            f"  unpack it to a plain tar: gunzip, unzstd, unxz or bunzip2 {compressed[0]}"
        )


def _refuse_compressed_idx(files: SourceFiles) -> None:
    compressed = files.ending_in(PACKED)
    if compressed:
        command = shlex.join(["gunzip", *map(files.path, compressed)])
        raise UserError(
            f"{compressed[0]} is compressed, so images cannot be read out of its middle\n  unpack it: {command}"
        )
