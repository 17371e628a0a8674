"""Tokenizers of captions for CIDEr-D and BLEU-4, each with the names of the metrics that it gives.

A caption metric depends on the tokenizer, so another tokenizer is another metric. These split captions into words
for scoring, and have nothing to do with the tokenizer of a model.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...config.errors import MachineError, UserError
from ...data.manifest import sha256_of


class CaptionTokenizer(Protocol):
    """Split captions into words."""

    @property
    def metric(self) -> str:
        """Name of CIDEr-D with this tokenizer."""

    @property
    def bleu(self) -> str:
        """Name of BLEU-4 with this tokenizer."""

    @property
    def identity(self) -> str:
        """Description of the tokenizer that tells it from every other one, for records."""

    def tokenize(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the words of each caption."""


_REMOVED = r"""'"`“”‘’«»()\[\]{}.?!,:;…\-‐‑‒–—―"""
_WORD = re.compile(rf"[^\s{_REMOVED}]+(?:(?:['\-]|(?<=\d)[.,:](?=\d))[^\s{_REMOVED}]+)*")


class WordTokenizer:
    """Built-in tokenizer, which gives `cider_d_words`. It needs no Java and no other package.

    * The text is normalized by NFC and lower-cased, and ’ becomes '.
    * Words are the runs of characters between white space and punctuation. The punctuation is that of the PTB list:
      quotes, brackets, `. ? ! , : ; …` and dashes. All of it is removed.
    * An apostrophe or hyphen between two characters of a word stays: `man's`, `black-and-white`.
    * A point, comma or colon between two digits stays: `10:30`, `1,000`, `2.5`.

    Unlike PTB it splits neither `man's` nor `don't`, and removes brackets, which pycocoevalcap leaves as `-lrb-`.
    """

    metric, bleu = "cider_d_words", "bleu4_words"
    identity = "words, version 1: NFC, lower case, punctuation removed, clitics not split"

    def tokenize(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the words of each caption."""
        return [
            _WORD.findall(unicodedata.normalize("NFC", caption).lower().replace("’", "'")) for caption in captions
        ]


JAR = "stanford-corenlp-3.4.1.jar"
JAR_SHA256 = "2fcb91bb7a111f93d71e264f4ee0e3afd19ba0dde6d21b38605088df9e940399"
"""SHA-256 of the jar that pycocoevalcap has in its folder `tokenizer`. Other versions split otherwise."""
PTB_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that COCO's evaluation removes. Lower-cased brackets are not among them: they stay, as `-lrb-`."""

_GET_JAR = (
    "allowed: the stanford-corenlp-3.4.1.jar of the package pycocoevalcap (pip install pycocoevalcap); "
    "leave --ptb-jar out for cider_d_words alone"
)
_SHOWN = 300


@dataclass(frozen=True)
class PTBTokenizer:
    """Stanford's PTBTokenizer as COCO's evaluation uses it, which gives `cider_d_ptb`. It needs Java."""

    java: str
    jar: Path

    metric, bleu = "cider_d_ptb", "bleu4_ptb"
    identity = f"PTBTokenizer -preserveLines -lowerCase, {JAR} sha256 {JAR_SHA256}, punctuation removed"

    @classmethod
    def find(cls, jar: Path | None = None) -> PTBTokenizer | None:
        """Return the tokenizer of a jar, or else of the package pycocoevalcap. None: not given, and not installed.

        Raises:
            UserError: the given jar is missing or of another version, or Java is missing.
        """
        java = _find_java()
        if jar is None:
            installed = _installed_jar()
            usable = java is not None and installed is not None and sha256_of(installed) == JAR_SHA256
            return cls(java, installed) if usable else None  # type: ignore[arg-type]  # neither is None
        if not jar.is_file():
            raise UserError(f"--ptb-jar {jar}: there is no such file\n  {_GET_JAR}")
        if (digest := sha256_of(jar)) != JAR_SHA256:
            raise UserError(
                f"--ptb-jar {jar}: it is another file, of SHA-256 {digest}. cider_d_ptb is defined by {JAR} "
                f"of SHA-256 {JAR_SHA256}\n  {_GET_JAR}"
            )
        if java is None:
            raise UserError(
                f"--ptb-jar {jar}: no `java` runs here\n  install a Java runtime, or leave --ptb-jar out"
            )
        return cls(java, jar)

    def tokenize(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the words of each caption, by one run of Java.

        Raises:
            MachineError: Java failed.
        """
        if not captions:
            return []
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "captions.txt"
            # The tokenizer ends a line at every kind of line break.
            lines = "".join(" ".join(caption.splitlines()) + "\n" for caption in captions)
            text.write_bytes(lines.encode("utf-8", "replace"))
            command = [self.java, "-cp", str(self.jar), "edu.stanford.nlp.process.PTBTokenizer"]
            done = subprocess.run(
                [*command, "-preserveLines", "-lowerCase", str(text)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        found = done.stdout.decode("utf-8", "replace").removesuffix("\n").split("\n")
        if done.returncode or len(found) != len(captions):
            said = done.stderr.decode("utf-8", "replace").strip()[-_SHOWN:]
            raise MachineError(
                f"the PTB tokenizer returned {len(found):,} lines for {len(captions):,} captions, "
                f"and {self.java} ended with status {done.returncode}: {said}\n"
                f"  give the same command once more, or without Java on the PATH for cider_d_words alone"
            )
        return [_kept(line) for line in found]


def _kept(line: str) -> list[str]:
    # A token may hold a no-break space, at which pycocoevalcap splits it: `1 1/2`.
    return " ".join(token for token in line.rstrip().split(" ") if token not in PTB_PUNCTUATION).split()


def _find_java() -> str | None:
    """Return the Java on the PATH if it runs. Some systems have a `java` that only says how to install one."""
    java = shutil.which("java")
    if java is None:
        return None
    try:
        done = subprocess.run([java, "-version"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return None
    return java if done.returncode == 0 else None


def _installed_jar() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    jars = [jar for place in places if (jar := Path(place) / "tokenizer" / JAR).is_file()]
    return jars[0] if jars else None
