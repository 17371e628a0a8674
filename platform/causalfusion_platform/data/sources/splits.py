"""Splits of a data set, such as train and test, that names of folders or files tell apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from ...config.errors import UserError
from ..manifest import Split
from .files import SourceFiles, list_files
from .listing import Kind
from .pattern import has_wildcard, inside_location, split_pattern
from .selection import EARLIER_RULES, Selection

ALL = "all"
"""Choice of every split of tars, Parquet or IDX files together."""

# The words of Hugging Face's `datasets`, and trainval.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "trainval": ("trainval",),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
# Splits of names → those of shards. `restval` is Karpathy's: images of val2014 that are trained on.
_OF_SHARDS: dict[str | None, Split] = {"validation": "val", "test": "test"}
# MNIST's word for test, in names of IDX files alone.
_T10K = re.compile(r"(?<![a-z0-9])t10k(?![a-z0-9])(?=[^/]*(?:images|labels)[-.]idx)")
# Words beside a split in the name of its folder: training_set, val2017, train_64x64.
_FILLERS = frozenset(("set", "data", "split", "image", "images", "img", "imgs", "x"))


def choose_split(files: SourceFiles, kind: Kind, wanted: str | None) -> SourceFiles:
    """Return the files of one split.

    Args:
        wanted: a split, or `ALL`. None: every file, unless names tell several splits apart.

    Raises:
        UserError: there are several splits and none is wanted, or the wanted one is not there.
    """
    if wanted is None and (kind == "flat" or files.selection.rules == EARLIER_RULES):
        return files
    if kind == "flat":
        assert wanted is not None
        if wanted.lower() not in _SPLITS:
            raise UserError(
                f"--split {wanted}: the file of labels chooses the images, and --split says which split they are\n"
                f"  allowed: train, val, test, or leave it out"
            )
        return _named_by_user(files, wanted)
    return _choose_folder(files, wanted) if kind == "folders" else _choose_files(files, wanted)


def split_of_shards(location: str, selection: Selection) -> Split:
    """Return the split of the shards of a source: that of the chosen names, or of the location's own name.

    Names that tell no split count as `train`. So do Karpathy's `restval`, and several splits with one of these.

    Args:
        location: location of the listing.
        selection: part of it that was listed.
    """
    if selection.rules == EARLIER_RULES:
        return "train"
    if selection.split is not None:
        names = selection.split.split("+")
    else:
        names = list(selection.splits) or [_own_name(location)]
    found = {_OF_SHARDS.get(_folder_split(name) or file_split(name), "train") for name in names}
    return "train" if "train" in found else min(found, key=("val", "test").index)


def _own_name(location: str) -> str:
    """Return the last part of a location if it is named as a split, or an empty text."""
    name = split_pattern(location)[1] if has_wildcard(location) else _last_part(location)
    is_file = has_wildcard(location) or name.lower().endswith((".tar", ".parquet", ".pq"))
    return name if (file_split(name) if is_file else _folder_split(name)) else ""


def _last_part(location: str) -> str:
    return location.partition("?")[0].rstrip("/").rpartition("/")[2]


def _named_by_user(files: SourceFiles, wanted: str) -> SourceFiles:
    """Return all files, as those of the split that the user names where their names tell none.

    Raises:
        UserError: the location is named as another split, or that is not a split.
    """
    named = _SPLITS.get(wanted.lower())
    if named is None:
        raise _no_split(files, wanted, {})
    own = _own_name(files.location)
    if own and (_folder_split(own) or file_split(own)) != named:
        raise UserError(
            f"{files.location} is named as another split than --split {wanted}\n  leave out --split, or rename it"
        )
    return replace(files, selection=replace(files.selection, split=wanted))


def _choose_folder(files: SourceFiles, wanted: str | None) -> SourceFiles:
    """Return class folders of one split: DIR/split/class, DIR/wrapper/split/class or DIR/class/split."""
    while (level := _split_level(files)) is not None:
        found = Counter(_part(name, level) for name in files.names)
        found.update(dict.fromkeys(files.folders if level == 0 else [], 0))
        counts = {name: found[name] for name in sorted(found, key=_order) if _folder_split(name)}
        if wanted is None or wanted == ALL:
            raise UserError(
                f"{files.location} is not clear: it holds the splits {_named(counts, '/')}, which are not classes\n"
                f"  name one: --split {next(iter(counts))}, or name its folder in place of {files.location}"
            )
        name = wanted if level == 0 and wanted in files.folders else _match(files, wanted, counts)
        selection = replace(files.selection, splits=counts, split=name)
        if level and len(files.folders) > 1:
            kept = [_part(key, level) == name for key in files.names]
            return replace(_filtered(files, kept), selection=selection)
        inner = name if level == 0 else f"{files.folders[0]}/{name}"
        inside = list_files(inside_location(files.location, inner), files.selection.rules)
        files = replace(inside, selection=replace(selection, left_out=inside.selection.left_out))
    return _named_by_user(files, wanted) if wanted is not None and files.selection.split is None else files


def _split_level(files: SourceFiles) -> int | None:
    """Return the depth of the folders that are splits, or None without. One split among classes is a class."""
    top = {_folder_split(name) for name in files.folders}
    if len(top - {None}) > 1 or (top and None not in top):
        return 0
    second = {_folder_split(folder) for folder in {_part(name, 1) for name in files.names}}
    return 1 if len(second - {None}) > 1 else None


def _choose_files(files: SourceFiles, wanted: str | None) -> SourceFiles:
    splits = [file_split(name) for name in files.names]
    found = Counter(split for split in splits if split)
    counts = {split: found[split] for split in _WORDS if split in found}
    selection = replace(files.selection, splits=counts, split=wanted)
    if wanted is None:
        given = _splits_in(split_pattern(files.location)[1]) if files.given == "pattern" else []
        if len(counts) > 1 and not set(counts) <= set(given):
            raise UserError(
                f"{files.location} is not clear: it holds the splits {_named(counts)}\n"
                f"  name one: --split {next(iter(counts))}, or encode them together: --split {ALL}"
            )
    elif wanted != ALL:
        chosen = _SPLITS.get(wanted.lower(), wanted.lower())
        kept = [split == chosen or chosen in _words(name) for split, name in zip(splits, files.names, strict=True)]
        if not any(kept) and not counts:
            return _named_by_user(files, wanted)
        if not any(kept):
            raise _no_split(files, wanted, counts)
        files = _filtered(files, kept)
    return replace(files, selection=selection)


def _match(files: SourceFiles, wanted: str, names: Collection[str]) -> str:
    """Return the folder that is the wanted split, by its name or by a word of the same split."""
    split = _folder_split(wanted)
    found = [name for name in names if name == wanted] or [
        name for name in names if split and _folder_split(name) == split
    ]
    if len(found) != 1:
        raise _no_split(files, wanted, dict.fromkeys(names, 0))
    return found[0]


def _no_split(files: SourceFiles, wanted: str, counts: Mapping[str, int]) -> UserError:
    there = f"only {', '.join(counts)}" if counts else "its names tell no splits apart"
    advice = f"name one of them: --split {next(iter(counts))}" if counts else "leave out --split"
    return UserError(f"{files.location} has no split {wanted!r}: {there}\n  {advice}")


def _named(counts: Mapping[str, int], slash: str = "") -> str:
    return ", ".join(
        f"{name}{slash} ({number:,} file{'' if number == 1 else 's'})" for name, number in counts.items()
    )


def _filtered(files: SourceFiles, kept: list[bool]) -> SourceFiles:
    pairs = [pair for pair, keep in zip(zip(files.names, files.sizes, strict=True), kept, strict=True) if keep]
    return replace(files, names=[name for name, _ in pairs], sizes=[size for _, size in pairs])


def _order(folder: str) -> tuple[int, str]:
    """Return the place of a folder of a split in messages: train, validation, test."""
    split = _folder_split(folder)
    return list(_WORDS).index(split) if split else len(_WORDS), folder


def _part(name: str, level: int) -> str:
    """Return a folder of a file's path, counted from the root, or an empty text without it."""
    folders = name.split("/")[:-1]
    return folders[level] if level < len(folders) else ""


def _words(name: str) -> list[str]:
    return [word for word in re.split("[^a-z]+", _T10K.sub("test", name.lower())) if word]


def _splits_in(name: str) -> list[str]:
    return [_SPLITS[word] for word in _words(name) if word in _SPLITS]


def file_split(name: str) -> str | None:
    """Return the split that a path names last: train/a.tar, data/test-00000-of-00001.parquet."""
    found = _splits_in(name)
    return found[-1] if found else None


def _folder_split(name: str) -> str | None:
    """Return the split that a folder is by its whole name, so that a class `test_tube` is none."""
    words = [word for word in _words(name) if word not in _FILLERS]
    return _SPLITS.get(words[0]) if len(words) == 1 else None
