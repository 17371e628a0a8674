"""Encoding and decoding against the merges themselves, and every kind of file that is read or refused."""

import hashlib
import json
import pickle
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from causalfusion.text.tokenizer import Tokenizer, train_bpe

CAPTIONS = [
    f"a {ink} {name} leaning {side}"
    for ink in ("thin", "medium", "bold")
    for name in ("zero", "one", "two", "three", "seven", "nine")
    for side in ("left", "right")
]
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TRAINED = train_bpe(CAPTIONS, vocabulary=300)


def llama_3() -> tokenizers.Tokenizer:
    """A tokenizer.json in the form of LLaMA-3's: special tokens after the vocabulary, and a template with BOS."""
    tree = json.loads(TRAINED.json)["model"]
    words = [word for word in tree["vocab"] if word not in (BEGIN, END)]
    merges = [tuple(pair) for pair in tree["merges"]]
    model = models.BPE({word: index for index, word in enumerate(words)}, merges, ignore_merges=True)
    made = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA_3_WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([BEGIN, END, *(f"<|reserved_special_token_{index}|>" for index in range(6))])
    begin = made.token_to_id(BEGIN)
    template = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B:1", special_tokens=[(BEGIN, begin)]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return made


def unigram() -> tokenizers.Tokenizer:
    """A SentencePiece-like model, whose vocabulary holds its special tokens."""
    pieces = ["<unk>", "<s>", "</s>", "a", "b", "▁", "<", "/", "s", ">"]
    made = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def words(special: list[str], **options: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, **options))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(special)
    return made


def merged_by_hand(text: str, tree: dict[str, Any]) -> list[int]:
    """The ids of words between single spaces: the earliest merge of the list first, as often as one applies."""
    rank = {tuple(pair): index for index, pair in enumerate(tree["merges"])}
    ids = []
    for word in re.findall(" ?[a-z]+", text):
        parts = list(word.replace(" ", "Ġ"))
        while pairs := [pair for pair in pairwise(parts) if pair in rank]:
            at = list(pairwise(parts)).index(min(pairs, key=rank.__getitem__))
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        ids += [tree["vocab"][part] for part in parts]
    return ids


def trained_by_hand(captions: list[str], merges: int, ids: dict[str, int]) -> list[list[str]]:
    """The merges of BPE: the most frequent pair, then the one of the smallest ids. Each occurs at least twice."""
    ids = dict(ids)
    corpus = [list(word.replace(" ", "Ġ")) for caption in captions for word in re.findall(" ?[a-z]+", caption)]
    found: list[list[str]] = []
    while len(found) < merges:
        counts = Counter(pair for word in corpus for pair in pairwise(word))
        (first, second), count = min(counts.items(), key=lambda item: (-item[1], [ids[part] for part in item[0]]))
        if count < 2:
            break
        ids.setdefault(first + second, len(ids))
        found.append([first, second])
        for word in corpus:
            at = 0
            while at < len(word) - 1:
                if word[at : at + 2] == [first, second]:
                    word[at : at + 2] = [first + second]
                at += 1
    return found


def test_training_finds_the_merges_of_a_loop_over_all_pairs() -> None:
    tree = json.loads(TRAINED.json)["model"]
    single = {word: index for word, index in tree["vocab"].items() if index < 258}
    assert len(single) == 258
    assert tree["merges"] == trained_by_hand(CAPTIONS, 300 - 258, single)
    assert TRAINED.size == 300 and (TRAINED.begin, TRAINED.end) == (0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_training_does_not_depend_on_the_order_of_captions(seed: int) -> None:
    shuffled = random.Random(seed).sample(CAPTIONS, len(CAPTIONS))
    assert train_bpe(iter(shuffled), vocabulary=300).json == TRAINED.json
    assert train_bpe(CAPTIONS[1:], vocabulary=300).json != TRAINED.json


def test_training_stops_where_no_pair_occurs_twice() -> None:
    assert train_bpe(["ab", "ab", "xyz"], vocabulary=1000).size == 258 + 1


@pytest.mark.parametrize("caption", CAPTIONS[::7])
def test_ids_are_those_of_the_merges(caption: str) -> None:
    tree = json.loads(TRAINED.json)["model"]
    assert TRAINED.encode(caption) == [TRAINED.begin, *merged_by_hand(caption, tree), TRAINED.end]


@pytest.mark.parametrize("tokenizer", [TRAINED, Tokenizer(llama_3().to_str())], ids=["trained", "LLaMA-3"])
@given(text=st.text() | st.lists(st.sampled_from([BEGIN, END, " ", "\r\n", "\0", "é", "👩‍👩‍👧", "a"])).map("".join))
def test_any_text_comes_back_and_has_no_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (tokenizer.begin, tokenizer.end)
    assert not {tokenizer.begin, tokenizer.end} & set(ids[1:-1])
    assert tokenizer.decode(ids) == text
    assert (tokenizer.decode(ids[1:-1]) == text) and max(ids) < tokenizer.size


def test_a_template_of_the_file_adds_no_second_begin() -> None:
    library = llama_3()
    tokenizer = Tokenizer(library.to_str())
    own = library.encode("a bold seven").ids
    assert own[0] == tokenizer.begin == library.token_to_id(BEGIN)  # so the template is at work
    assert tokenizer.encode("a bold seven") == [*own, tokenizer.end]
    assert tokenizer.end == library.token_to_id(END)
    assert tokenizer.size == library.get_vocab_size() == 298 + 8


def test_truncation_and_padding_of_the_file_change_nothing() -> None:
    library = llama_3()
    plain = Tokenizer(library.to_str()).encode("a bold seven leaning left")
    library.enable_truncation(3)
    library.enable_padding(length=64)
    assert Tokenizer(library.to_str()).encode("a bold seven leaning left") == plain


def test_special_tokens_in_the_vocabulary_of_the_model_are_plain_text() -> None:
    library = unigram()
    library.encode_special_tokens = True
    assert library.token_to_id("</s>") in library.encode("a</s>b").ids  # the library alone finds it
    tokenizer = Tokenizer(library.to_str())
    assert tokenizer.encode("ab")[1:-1] == [library.token_to_id(piece) for piece in "▁ab"]
    for text in ("a</s>b", "</s>", "<s><s>", "<unk>a"):
        ids = tokenizer.encode(text)
        assert not {tokenizer.begin, tokenizer.end} & set(ids[1:-1])
    assert tokenizer.decode(tokenizer.encode("a</s>b")).replace(" ", "") == "a</s>b"


def test_an_unknown_character_is_the_unknown_token_of_the_file() -> None:
    tokenizer = Tokenizer(unigram().to_str())
    assert tokenizer.encode("aé")[1:-1] == [5, 3, 0]
    assert tokenizer.decode(tokenizer.encode("aé")) == "a"


def test_rows_are_cut_at_the_end_without_eos() -> None:
    texts = ["a bold seven leaning left", "", "a", BEGIN]
    longest = len(TRAINED.encode(texts[0]))
    rows = TRAINED.encode_rows(texts, longest)
    assert rows.tokens.dtype == rows.lengths.dtype == np.int32 and rows.cut.dtype == np.bool_
    for row, text in enumerate(texts):
        length = rows.lengths[row]
        assert rows.tokens[row, :length].tolist() == TRAINED.encode(text)[:longest]
        assert not rows.tokens[row, length:].any()
    assert not rows.cut[:3].any()
    short = TRAINED.encode_rows(texts, longest - 1)
    assert short.cut[:3].tolist() == [True, False, False]
    assert short.tokens[0].tolist() == TRAINED.encode(texts[0])[:-1] and short.lengths[0] == longest - 1
    assert TRAINED.encode_rows([], 5).tokens.shape == (0, 5)
    with pytest.raises(ValueError, match="max_tokens must be at least 2, for BOS and EOS, got 1"):
        TRAINED.encode_rows(["a"], 1)


def test_decoding_ends_at_the_first_eos() -> None:
    ids = TRAINED.encode("a bold one")
    assert TRAINED.decode([*ids, *TRAINED.encode("and more")]) == "a bold one"
    assert TRAINED.decode(np.array(ids)) == "a bold one"
    assert TRAINED.decode([]) == ""
    for wrong in (-1, TRAINED.size):
        with pytest.raises(ValueError, match=f"id {wrong} is not of this tokenizer; allowed: 0 … 299"):
            TRAINED.decode([wrong])


def test_a_pickle_is_the_json() -> None:
    again = pickle.loads(pickle.dumps(TRAINED))
    assert (again.json, again.digest) == (TRAINED.json, TRAINED.digest)
    assert again.encode(CAPTIONS[0]) == TRAINED.encode(CAPTIONS[0])
    assert TRAINED.digest == hashlib.sha256(TRAINED.json.encode()).hexdigest()


@pytest.mark.parametrize(
    "pair", [(BEGIN, END), ("<s>", "</s>"), ("<|startoftext|>", "<|endoftext|>"), ("<bos>", "<eos>")]
)
def test_begin_and_end_have_one_of_the_known_names(pair: tuple[str, str]) -> None:
    tokenizer = Tokenizer(words(["<pad>", pair[1], pair[0], "<unk>"], unk_token="<unk>").to_str())
    assert (tokenizer.end, tokenizer.begin, tokenizer.size) == (3, 4, 6)


def test_other_names_are_refused_with_those_looked_for() -> None:
    with pytest.raises(
        ValueError, match=re.escape("looked for: <|begin_of_text|> with <|end_of_text|>, <s>")
    ) as told:
        Tokenizer(words(["<|endoftext|>"]).to_str())  # GPT-2: one token for both
    assert "there are 1: <|endoftext|>" in str(told.value)
    plain = words([])
    plain.add_tokens(["<s>", "</s>"])  # not special: they would be found inside captions
    with pytest.raises(ValueError, match="there are 0: none"):
        Tokenizer(plain.to_str())


def test_files_and_folders_are_read(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    llama_3().save(str(file))
    assert Tokenizer.read(file).json == Tokenizer.read(str(tmp_path)).json == file.read_text()


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match=re.escape(f"there is no tokenizer at {file}: name a tokenizer.json")):
        Tokenizer.read(tmp_path)
    whole = TRAINED.json
    no_vocabulary = json.dumps({**json.loads(whole), "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}})
    for damaged in (b"", whole[:-100].encode(), b"[]", b"\xff\xfe", no_vocabulary.encode()):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(f"the tokenizer {file} cannot be used: ")):
            Tokenizer.read(file)


def test_dropout_of_merges_is_refused() -> None:
    tree = json.loads(TRAINED.json)
    tree["model"]["dropout"] = 0.1
    with pytest.raises(ValueError, match=re.escape("encodes at random: model.dropout is 0.1; set it to null")):
        Tokenizer(json.dumps(tree))


def test_texts_that_cannot_be_encoded_are_named() -> None:
    with pytest.raises(ValueError, match=re.escape(r"cannot encode 'a \ud800'")):
        TRAINED.encode("a \ud800")
    with pytest.raises(ValueError, match=re.escape("cannot encode 'a seven': WordLevel error: Missing [UNK]")):
        Tokenizer(words([BEGIN, END]).to_str()).encode("a seven")


def test_training_refuses_what_gives_no_tokenizer() -> None:
    with pytest.raises(ValueError, match="vocabulary must be at least 258"):
        train_bpe(CAPTIONS, vocabulary=257)
    with pytest.raises(ValueError, match="there are no captions"):
        train_bpe([], vocabulary=300)
    with pytest.raises(ValueError, match=re.escape(r"caption 'a \ud800' holds half")):
        train_bpe(["a \ud800"], vocabulary=300)
