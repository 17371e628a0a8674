"""Files of prompts: one JSON object with a `caption` a line, as `causalfusion data prompts` writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from causalfusion import Prompts
from causalfusion.text.prompts import cut_prompts, encode_prompts
from causalfusion.text.tokenizer import Tokenizer

from ..config.errors import UserError
from ..storage.json_file import Damaged, parse_line, read_bounded

_LARGEST = 1 << 30
_FORM = 'allowed: one JSON object a line, such as {"caption": "a dog"}, as causalfusion data prompts writes it'


class PromptsId(BaseModel):
    """File of prompts of a sample set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: Path
    """The file when the set was begun. It may lie elsewhere by now."""
    sha256: str
    """SHA-256 of the file."""
    cut: int | None = Field(default=None, ge=0)
    """Prompts of the set that were cut at the end. Null: prompts longer than the model takes are refused."""


def read_captions(file: Path, sha256: str | None = None) -> tuple[list[str], str]:
    """Return the captions of a file in order, and its SHA-256.

    Args:
        file: the file.
        sha256: that of the file to expect. None: any.

    Raises:
        UserError: the file is missing, another one or malformed, or a caption is empty.
    """
    try:
        content = read_bounded(file, _LARGEST)
    except FileNotFoundError as error:
        raise UserError(f"prompts {file}: there is no such file\n  {_FORM}") from error
    except Damaged as error:
        raise UserError(f"prompts {error}\n  {_FORM}") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise UserError(
            f"prompts {file} is another file than when the samples were planned, or on the machine of a worker\n"
            f"  it must lie on storage that all nodes share, and stay as it is"
        )
    captions = []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            captions.append(_caption(line, f"prompts {file} line {number}"))
    if not captions:
        raise UserError(f"prompts {file} is empty\n  {_FORM}")
    return captions, found


def encode_captions(
    captions: list[str], tokenizer: Tokenizer, max_tokens: int, *, cut: bool, place: str
) -> tuple[Prompts, int]:
    """Return the prompts of captions, and how many of them were cut.

    Args:
        captions: texts with words.
        tokenizer: that of the model's training.
        max_tokens: tokens that the model takes.
        cut: cut longer ones at the end, as training does.
        place: the file, for messages.

    Raises:
        UserError: some are longer, and `cut` is False.
    """
    if cut:
        prompts, longer = cut_prompts(captions, tokenizer, max_tokens)
        return prompts, len(longer)
    try:
        return encode_prompts(captions, tokenizer, max_tokens), 0
    except ValueError as error:
        raise UserError(
            f"prompts {place}: {error}\n  cut long ones at the end, as training does: --cut-prompts"
        ) from error


def _caption(line: bytes, place: str) -> str:
    try:
        row = parse_line(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}\n  {_FORM}") from error
    caption = row.get("caption") if isinstance(row, dict) else None
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"{place} has no caption of text\n  {_FORM}")
    return caption
