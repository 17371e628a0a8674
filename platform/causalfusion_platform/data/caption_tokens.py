"""Tokens of captions: the tokenizer of a data set, and the drawing of one caption for each row."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from causalfusion import TextConfig, draws
from causalfusion.text.tokenizer import SMALLEST_BPE, Tokenizer, train_bpe
from causalfusion.weights.folder import check_tokenizer

from ..config.commands import command
from ..config.errors import UserError
from ..storage.atomic import write_atomically
from .manifest import Manifest
from .read import Columns
from .shard_file import open_parquet, read_parquet
from .shards import parquet_path, tokenizer_file

logger = logging.getLogger(__name__)

CAPTIONS, TOKENS, LENGTHS, CUT = "captions", "tokens", "lengths", "cut"
_SHOWN = 5


@dataclass(frozen=True)
class DrawCaptions:
    """Transform of rows: captions become the tokens of one of them, drawn by the seed and the row's position."""

    tokenizer: Tokenizer
    max_tokens: int
    seed: int

    def __call__(self, rows: Columns, positions: range) -> Columns:
        """Replace `captions` by tokens (B, max_tokens), lengths (B,) and `cut` (B,), 1 for a caption cut short.

        Raises:
            UserError: a row has no caption.
        """
        captions = rows[CAPTIONS]
        chosen = []
        for row, seed in enumerate(draws.sample_seeds(self.seed, "caption", positions)):
            texts = captions[row]
            if not len(texts):
                raise UserError(f"the row with row_id {rows['row_id'][row]} has no caption")
            chosen.append(str(texts[seed % len(texts)]))
        encoded = self.tokenizer.encode_rows(chosen, self.max_tokens)
        others = {name: column for name, column in rows.items() if name != CAPTIONS}
        return others | {TOKENS: encoded.tokens, LENGTHS: encoded.lengths, CUT: encoded.cut.astype(np.int32)}


def open_tokenizer(folder: Path, manifest: Manifest, text: TextConfig, given: Path | None) -> Tokenizer:
    """Return the tokenizer of a run: the one given, or a byte-level BPE trained on the captions of the shards.

    The trained one is kept beside the shards. It is the same on every machine, so that any process may train it.

    Args:
        folder: the shards.
        manifest: all of the shards, so that the tokenizer does not depend on those that a run leaves out.
        text: the model's text, whose table must be large enough.
        given: a tokenizer.json, or its folder. None: train one.

    Raises:
        UserError: it cannot be read, or does not fit the model. A shard is damaged.
    """
    tokenizer = find_tokenizer(folder, manifest, text, given)
    if tokenizer is not None:
        return tokenizer
    try:
        tokenizer = train_bpe(captions_of(folder, manifest), vocabulary=text.vocabulary)
    except ValueError as error:
        raise _refused(error) from error
    _check(text, tokenizer, f"the tokenizer of the captions in {folder}")
    try:
        kept = _kept(folder, manifest, text)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, tokenizer.json.encode())
    except OSError as error:  # such as shards that are read-only
        logger.info(f"the tokenizer of {folder} is not kept ({error.strerror or error}): others train it again")
    return tokenizer


def find_tokenizer(folder: Path, manifest: Manifest, text: TextConfig, given: Path | None) -> Tokenizer | None:
    """Return the tokenizer of `open_tokenizer` if it is there. None: it has yet to be trained.

    Nothing is trained or written.

    Raises:
        UserError: it cannot be read, or does not fit the model.
    """
    if given is not None:
        return read_tokenizer(given, text)
    if text.vocabulary < SMALLEST_BPE:
        raise UserError(
            f"model.text.vocabulary={text.vocabulary} is too small for a byte-level BPE, which needs at least "
            f"{SMALLEST_BPE}\n  set model.text.vocabulary, or data.tokenizer to a tokenizer.json"
        )
    path = _kept(folder, manifest, text)
    try:
        tokenizer = Tokenizer.read(path)
    except ValueError:  # missing, or damaged: it is trained again
        return None
    _check(text, tokenizer, str(path))
    return tokenizer


def read_tokenizer(path: Path, text: TextConfig) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder, for a model of text.

    Raises:
        UserError: it cannot be read, or does not fit the model.
    """
    try:
        tokenizer = Tokenizer.read(path)
    except ValueError as error:
        raise _refused(error) from error
    _check(text, tokenizer, str(path))
    return tokenizer


def captions_of(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield all captions of the shards, row by row.

    Raises:
        UserError: a shard cannot be read.
    """
    for shard in manifest.shards:
        for texts in _read(folder, shard.file, CAPTIONS).to_pylist():
            yield from texts


def check_captions(folder: Path, manifest: Manifest) -> None:
    """Check that every row has a caption, and nothing else in its list.

    Only the footers of complete shards are read, so that a launch does not read millions of captions.

    Raises:
        UserError: some have none. The message tells how many and names the first.
    """
    missing, first = 0, list[str]()
    for shard in manifest.shards:
        if _places_without_text(folder, shard.file) == 0:
            continue
        lists = _read(folder, shard.file, CAPTIONS).combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        with_null = lists.value_parent_indices().filter(lists.flatten().is_null())
        rows = np.union1d(np.flatnonzero(lengths == 0), with_null.to_numpy(zero_copy_only=False))
        missing += len(rows)
        if len(rows) and len(first) < _SHOWN:
            keys = _read(folder, shard.file, "key").take(pa.array(rows[: _SHOWN - len(first)])).to_pylist()
            first += keys
    if missing:
        raise UserError(
            f"{missing:,} of {manifest.rows:,} images in {folder} have no caption: {', '.join(first)}"
            f"{' …' if missing > len(first) else ''}\n"
            f"  give them captions, or leave them out: {command('data', 'encode')} --help"
        )


def _places_without_text(folder: Path, file: str) -> int | None:
    """Return the number of empty lists and of nulls in lists, by a shard's footer. None: it does not tell.

    Parquet counts both as nulls of the column of texts.

    Raises:
        UserError: the shard cannot be read.
    """
    try:
        footer = open_parquet(folder / file, checksums=False).metadata
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(folder, file, error) from error
    total = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        columns = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
        column = columns.get(parquet_path(CAPTIONS))
        if column is None or column.statistics is None or not column.statistics.has_null_count:
            return None
        total += column.statistics.null_count
    return total


def _read(folder: Path, file: str, column: str) -> pa.ChunkedArray:
    try:
        return read_parquet(folder / file, [column]).column(column)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _unreadable(folder, file, error) from error


def _unreadable(folder: Path, file: str, error: Exception) -> UserError:
    return UserError(
        f"shard {folder / file} cannot be read: {error}\n  see what is wrong: {command('data', 'verify', folder)}"
    )


def _check(text: TextConfig, tokenizer: Tokenizer, source: str) -> None:
    try:
        check_tokenizer(text, tokenizer, source)
    except ValueError as error:
        raise _refused(error) from error


def _refused(error: ValueError) -> UserError:
    return UserError(f"{error}\n  set data.tokenizer to a tokenizer.json, or model.text.vocabulary")


def _kept(folder: Path, manifest: Manifest, text: TextConfig) -> Path:
    identity = hashlib.sha256(json.dumps([manifest.digest, text.vocabulary]).encode()).hexdigest()
    return tokenizer_file(folder, identity)
