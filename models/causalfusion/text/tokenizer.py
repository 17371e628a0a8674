"""Tokenizer of captions and prompts: a Hugging Face tokenizer.json, or a byte-level BPE trained on captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Models of classes work where neither numpy nor tokenizers is installed, so each is imported at its use.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FILE = "tokenizer.json"
# Of LLaMA-3, of LLaMA-2 and SentencePiece, of CLIP, of Gemma.
_BEGIN_END = (
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<s>", "</s>"),
    ("<|startoftext|>", "<|endoftext|>"),
    ("<bos>", "<eos>"),
)
SMALLEST_BPE = 256 + 2
"""Ids of the smallest byte-level BPE: all bytes, BOS and EOS."""


@dataclass(frozen=True)
class EncodedRows:
    """Token ids of several texts (paper, Section 4.3: at most 35 a caption)."""

    tokens: NDArray[np.int32]
    """(B, max_tokens) ids, with zeros after the end of a text."""
    lengths: NDArray[np.int32]
    """(B,) number of ids, BOS and EOS included."""
    cut: NDArray[np.bool_]
    """(B,) True for a text of more ids, which lost its end and its EOS."""


class Tokenizer:
    """Tokenizer of one tokenizer.json. Every text becomes BOS, the ids of the text, EOS.

    Post-processor, truncation and padding of the file are not applied. Strings of special tokens inside a text are
    plain text. Pickling keeps the JSON alone.

    Args:
        json_text: content of a tokenizer.json.

    Raises:
        ValueError: the text is not a tokenizer.json, lacks BOS or EOS, or encodes at random (BPE dropout).
    """

    json: str
    """Content of the tokenizer.json, as given."""
    digest: str
    """SHA-256 of `json` in UTF-8, in hexadecimal."""
    size: int
    """Largest id + 1: rows of the embedding table."""
    begin: int
    """Id of BOS, which begins every text."""
    end: int
    """Id of EOS, which ends every text."""

    def __init__(self, json_text: str) -> None:
        import tokenizers

        try:
            encoder = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(
                f"the text of {len(json_text):,} characters is not a {_FILE} of Hugging Face: {error}"
            ) from error
        if getattr(encoder.model, "dropout", None):
            raise ValueError(
                f"the {_FILE} encodes at random: model.dropout is {encoder.model.dropout:g}; set it to null"
            )
        encoder.no_truncation()
        encoder.no_padding()
        encoder.encode_special_tokens = True
        added = encoder.get_added_tokens_decoder()
        special = {token.content: index for index, token in added.items() if token.special}
        self._encoder = encoder
        self._special = {index: content for content, index in special.items()}
        self.begin, self.end = _begin_end(special)
        self.json = json_text
        self.digest = hashlib.sha256(json_text.encode()).hexdigest()
        self.size = max(encoder.get_vocab().values()) + 1

    @classmethod
    def read(cls, path: Path | str) -> Tokenizer:
        """Read a tokenizer.json, or the one in a folder.

        Raises:
            ValueError: the file is missing, unreadable or damaged, or `Tokenizer` refuses it.
        """
        path = Path(path)
        file = path / _FILE if path.is_dir() else path
        try:
            return cls(file.read_bytes().decode())
        except FileNotFoundError as error:
            raise ValueError(
                f"there is no tokenizer at {file}: name a {_FILE} of Hugging Face, or a folder that holds one "
                f"(transformers writes it with AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER))"
            ) from error
        except (OSError, ValueError) as error:
            raise ValueError(f"the tokenizer {file} cannot be used: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text: BOS, the text's own, EOS.

        Raises:
            ValueError: the text holds half of a surrogate pair, or a word that the tokenizer has no id for.
        """
        return [self.begin, *self._plain(text), self.end]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids up to the first EOS. Special tokens are left out.

        Raises:
            ValueError: an id is negative or not below `size`.
        """
        taken: list[int] = []
        for value in ids:
            index = int(value)
            if not 0 <= index < self.size:
                raise ValueError(f"id {index} is not of this tokenizer; allowed: 0 … {self.size - 1}")
            if index == self.end:
                break
            taken.append(index)
        return self._encoder.decode(taken, skip_special_tokens=True)

    def encode_rows(self, texts: Sequence[str], max_tokens: int) -> EncodedRows:
        """Encode texts into rows of one length. A longer text is cut at its end, without EOS.

        Args:
            max_tokens: ids in a row, BOS and EOS included.

        Raises:
            ValueError: `max_tokens` is below 2, or `encode` refuses a text.
        """
        import numpy as np

        if max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, for BOS and EOS, got {max_tokens}")
        tokens = np.zeros((len(texts), max_tokens), np.int32)
        lengths = np.zeros(len(texts), np.int32)
        cut = np.zeros(len(texts), np.bool_)
        # One at a time: the library's batches take threads of their own, beside those of the reading tasks.
        for row, text in enumerate(texts):
            ids = self.encode(text)
            lengths[row] = min(len(ids), max_tokens)
            tokens[row, : lengths[row]] = ids[:max_tokens]
            cut[row] = len(ids) > max_tokens
        return EncodedRows(tokens, lengths, cut)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        return type(self), (self.json,)

    def __repr__(self) -> str:
        return f"Tokenizer(size={self.size}, begin={self.begin}, end={self.end}, digest={self.digest[:12]})"

    def _plain(self, text: str) -> list[int]:
        """Return the ids of a text without BOS and EOS."""
        try:
            encoding = self._encoder.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"the tokenizer cannot encode {text[:80]!a}: {error}") from error
        ids = encoding.ids
        # Unigram and WordLevel models hold special tokens in their vocabulary, and find them in a text too.
        for index, (start, stop) in zip(ids, encoding.offsets, strict=True):
            if stop - start > 1 and text[start:stop] == self._special.get(index):
                return self._plain(text[: start + 1]) + self._plain(text[start + 1 :])
        return ids


def train_bpe(captions: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE on captions. It encodes any text and gives it back unchanged.

    The result has the same bytes whatever the order of the captions. Ties between merges are broken by id.

    Args:
        captions: texts. One that occurs twice counts twice.
        vocabulary: largest number of ids: BOS, EOS, 256 bytes, and merges that occur at least twice.

    Raises:
        ValueError: `vocabulary` has no room for the bytes, captions are missing, or one is not Unicode.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < SMALLEST_BPE:
        raise ValueError(f"vocabulary must be at least {SMALLEST_BPE} (256 bytes, BOS and EOS), got {vocabulary}")
    encoder = tokenizers.Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(_BEGIN_END[0]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    seen = 0

    def checked() -> Iterable[str]:
        nonlocal seen
        for caption in captions:
            try:
                caption.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"caption {caption[:80]!a} holds half of a surrogate pair") from error
            seen += 1
            yield caption

    encoder.train_from_iterator(checked(), trainer=trainer)
    if not seen:
        raise ValueError("there are no captions to train a tokenizer on")
    return Tokenizer(encoder.to_str())


def _begin_end(special: dict[str, int]) -> tuple[int, int]:
    """Return the ids of BOS and EOS among the special tokens of a file."""
    for begin, end in _BEGIN_END:
        if begin in special and end in special:
            return special[begin], special[end]
    looked = ", ".join(f"{begin} with {end}" for begin, end in _BEGIN_END)
    there = ", ".join(sorted(special)[:10]) or "none"
    raise ValueError(
        f"the {_FILE} has no known pair of BOS and EOS among its special tokens (added_tokens with special: true); "
        f"looked for: {looked}; there are {len(special)}: {there}"
    )
