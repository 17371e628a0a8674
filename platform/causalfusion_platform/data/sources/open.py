"""Opening of a source of images, with detection of its kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from ...config.errors import UserError
from ..faults import Policies
from .files import SourceFiles, list_files
from .flat import FlatFolder
from .folders import ClassFolders
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
    "Parquet files (parquet)"
)


def open_source(
    location: str,
    *,
    kind: Literal["auto"] | Kind = "auto",
    labels: str | None = None,
    image_column: str = "auto",
    label_column: str = "auto",
    caption_column: str | None = None,
    split: str | None = None,
    policies: Policies,
    rules: int = RULES,
) -> Source:
    """Open a source of images.

    Args:
        location: a folder, a file, or a pattern of files, as a local path or a URL of PyArrow or fsspec.
        kind: `folders`, `flat`, `webdataset` or `parquet`. `auto`: detected from the files' names.
        labels: path or URL of a file of labels (.csv or .json), for `flat`.
        image_column: column of the file's name (CSV file of labels), column of the image (Parquet), or extension of
            the image (tars).
        label_column: column of the label. For tars `cls` or a key of .json.
        caption_column: column of the caption. For tars `txt` or a key of .json.
        split: split to take where names tell several apart, such as `train`. `all`: every tar or Parquet file.
        policies: actions for images without labels and labels without images.
        rules: version of the rules of listing, of which a folder that was begun keeps its own.

    Raises:
        UserError: the location is missing or empty, its kind is not clear, or options do not fit the kind.
    """
    if kind not in ("auto", *get_args(Kind)):
        raise UserError(f"{kind!r} is not a kind of source\n  name one: --kind auto, {', '.join(get_args(Kind))}")
    files = list_files(location, rules)
    if kind == "auto":
        kind = "flat" if labels is not None else _tell(files)
    if labels is not None and kind != "flat":
        raise UserError(f"{kind} sources have their labels inside\n  leave out --labels, or use --kind flat")
    if kind in ("folders", "flat") and files.given != "folder":
        raise UserError(f"{location} is a {files.given}, not a folder, so it cannot be {kind!r}\n  {_KINDS}")
    if kind == "folders":
        if (image_column, label_column, caption_column) != ("auto", "auto", None):
            raise UserError("class folders have no columns\n  leave out the options that name columns")
        return ClassFolders(choose_split(files, kind, split), policies)
    if kind == "flat":
        if labels is None:
            raise UserError(f"{location} needs a file of labels\n  name it: --labels FILE.csv (or .json)")
        files = choose_split(files, kind, split)
        return FlatFolder(files, labels, LabelColumns(image_column, label_column, caption_column), policies)
    if kind == "webdataset":
        _refuse_compressed(files)
        files = choose_split(_only(files, _TAR), kind, split)
        return Tars(files, policies, image_column, label_column, caption_column)
    files = choose_split(_only(files, _PARQUET), kind, split)
    return ParquetFiles(files, policies, image_column, label_column, caption_column)


def _tell(files: SourceFiles) -> Kind:
    tars, parquet, images = (files.ending_in(*suffixes) for suffixes in (_TAR, _PARQUET, _IMAGES))
    if files.selection.rules != EARLIER_RULES:  # img2dataset writes a table of each tar beside it
        parquet = [name for name in parquet if f"{name.rpartition('.')[0]}.tar" not in tars]
    found = {"tars": tars, "Parquet files": parquet, "images": images}
    if sum(map(bool, found.values())) > 1:
        held = ", ".join(f"{len(names):,} {kind} ({names[0]})" for kind, names in found.items() if names)
        raise UserError(f"{files.location} is not clear: it holds {held}\n  name one: --kind; {_KINDS}")
    if tars:
        return "webdataset"
    if parquet:
        return "parquet"
    _refuse_compressed(files)
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


def _refuse_compressed(files: SourceFiles) -> None:
    compressed = files.ending_in(*_COMPRESSED_TAR)
    if compressed:
        raise UserError(
            f"{compressed[0]} is compressed, so images cannot be read out of its middle\n"
            f"  unpack it to a plain tar: gunzip, unzstd, unxz or bunzip2 {compressed[0]}"
        )
