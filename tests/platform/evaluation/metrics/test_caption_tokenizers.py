"""Words of captions: the built-in tokenizer by hand, and PTB's beside pycocoevalcap's output."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from causalfusion_platform.config.errors import MachineError, UserError
from causalfusion_platform.data.manifest import sha256_of
from causalfusion_platform.evaluation.metrics import caption_tokenizers
from causalfusion_platform.evaluation.metrics.caption_tokenizers import JAR, PTBTokenizer, WordTokenizer
from causalfusion_platform.evaluation.metrics.cider import cider_d

CAPTIONS = (
    "A man's dog don't sit, on (the) [mat].",
    "",
    "\"Quoted\" 'single' black-and-white; 10:30 -- $5 and 1,000!",
    "Café naïve “curly” it’s … 1 1/2",
    "tail?",
)
PTB_WORDS = (
    "a man 's dog do n't sit on -lrb- the -rrb- -lsb- mat -rsb-",
    "",
    "quoted single black-and-white 10:30 $ 5 and 1,000",
    "café naïve curly it 's 1\xa01/2",
    "tail",
)
"""Returned for CAPTIONS by pycocoevalcap 1.2's `PTBTokenizer().tokenize({i: [{"caption": caption}]})`."""
ECHO = """#!/bin/sh
[ "$1" = -version ] && exit 0
for last; do :; done
cat "$last"
"""
"""A `java` that returns its input, so that the call can be tested without Java."""


def test_words_by_hand() -> None:
    assert WordTokenizer().tokenize(CAPTIONS) == [
        ["a", "man's", "dog", "don't", "sit", "on", "the", "mat"],
        [],
        ["quoted", "single", "black-and-white", "10:30", "$5", "and", "1,000"],
        ["café", "naïve", "curly", "it's", "1", "1/2"],
        ["tail"],
    ]
    assert WordTokenizer().tokenize(
        ["dogs,cats end.Next 2.5m", "rock 'n' roll -ing --", " .?! ", "CAFE\u0301\n\tИ"]
    ) == [
        ["dogs", "cats", "end", "next", "2.5m"],
        ["rock", "n", "roll", "ing"],
        [],
        ["café", "и"],
    ]


def test_the_metric_is_named_by_its_tokenizer() -> None:
    assert (WordTokenizer.metric, PTBTokenizer.metric) == ("cider_d_words", "cider_d_ptb")
    assert WordTokenizer.identity != PTBTokenizer.identity
    assert caption_tokenizers.JAR_SHA256 in PTBTokenizer.identity


def test_a_metric_with_words() -> None:
    """Case and punctuation count for nothing: both captions equal their reference."""
    found = cider_d(["A dog.", "two cats, asleep"], [["a dog"], ["Two cats asleep!"]], WordTokenizer())
    # n-grams that a caption is too short for count 0: 2 of 4 lengths, and 3 of 4.
    assert found.per_image == pytest.approx((5.0, 7.5), abs=1e-12)


def test_ptb_words_equal_pycocoevalcap() -> None:
    tokenizer = PTBTokenizer.find()
    if tokenizer is None:
        pytest.skip("needs Java, and the jar of the package pycocoevalcap")
    assert tokenizer.tokenize(CAPTIONS) == [words.split() for words in PTB_WORDS]
    assert tokenizer.tokenize(["a\u2028b\r\nc", "", "x\n\ny"]) == [["a", "b", "c"], [], ["x", "y"]]
    assert tokenizer.tokenize([]) == []


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that passes for the jar, and a `java` on the PATH that returns its input."""
    path = tmp_path / JAR
    path.write_bytes(b"jar")
    monkeypatch.setattr(caption_tokenizers, "JAR_SHA256", sha256_of(path))
    write_java(tmp_path, ECHO)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return path


def write_java(folder: Path, script: str) -> None:
    java = folder / "java"
    java.write_text(script)
    java.chmod(java.stat().st_mode | stat.S_IXUSR)


def test_ptb_punctuation_is_removed_and_line_breaks_are_not_lines(jar: Path) -> None:
    tokenizer = PTBTokenizer.find(jar)
    assert tokenizer is not None
    assert tokenizer.tokenize(["a dog . -- ; -lrb- -LRB- ''", "", "b\nc\u2028d", "1\xa01/2 …"]) == [
        ["a", "dog", "-lrb-"],
        [],
        ["b", "c", "d"],
        ["1", "1/2", "…"],
    ]


def test_another_jar_is_refused(jar: Path) -> None:
    jar.write_bytes(b"another")
    with pytest.raises(UserError, match=r"(?s)it is another file, of SHA-256 ae448ac8.*leave --ptb-jar out"):
        PTBTokenizer.find(jar)
    with pytest.raises(UserError, match=r"none\.jar: there is no such file"):
        PTBTokenizer.find(jar.parent / "none.jar")


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n", "not a program"])
def test_without_java_a_given_jar_is_refused(
    jar: Path, script: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(jar.parent))
    (jar.parent / "java").unlink()
    if script is not None:
        write_java(jar.parent, script)
    assert PTBTokenizer.find() is None
    with pytest.raises(UserError, match="no `java` runs here"):
        PTBTokenizer.find(jar)


def test_a_tokenizer_that_loses_lines_is_an_error(jar: Path) -> None:
    write_java(jar.parent, '#!/bin/sh\n[ "$1" = -version ] && exit 0\necho one\necho no memory >&2\nexit 3\n')
    tokenizer = PTBTokenizer.find(jar)
    assert tokenizer is not None
    with pytest.raises(MachineError, match=r"returned 1 lines for 2 captions.*status 3: no memory"):
        tokenizer.tokenize(["one", "two"])
