"""Mechanical rules of plain English for docstrings and guides: sentence length, semicolons, openings, "is no"."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Packages, and single modules, that have been rewritten by the rules.
COVERED = (
    "models/causalfusion",
    "platform/causalfusion_platform/__init__.py",
    "platform/causalfusion_platform/assemble.py",
    "platform/causalfusion_platform/checkpoint",
    "platform/causalfusion_platform/cli",
    "platform/causalfusion_platform/config",
    "platform/causalfusion_platform/data",
    "platform/causalfusion_platform/evaluation",
    "platform/causalfusion_platform/launch",
    "platform/causalfusion_platform/ray_private.py",
    "platform/causalfusion_platform/report",
    "platform/causalfusion_platform/sampling",
    "platform/causalfusion_platform/storage",
    "platform/causalfusion_platform/tasks",
    "platform/causalfusion_platform/tracking",
    "platform/causalfusion_platform/train",
)
GUIDES = (
    "CONTRIBUTING.md",
    "README.md",
    "cluster/README.md",
    "models/PAPER.md",
    "models/README.md",
    "platform/DATA.md",
    "platform/EXPERIMENTS.md",
    "platform/TRAINING.md",
)
MAX_WORDS = 25

# Blocks of code, comments, tables, headings and images are not prose.
_NOT_PROSE = re.compile(r"^```.*?^```|<!--.*?-->|^[|#!].*?$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\([^)]*\)")
_CODE = re.compile(r"``[^`]*``|`[^`]*`|https?://\S+")
_SECTION = re.compile(r"^ *(?:Args|Raises|Returns|Shapes):\n(?:.+\n?)*", re.MULTILINE)
_SENTENCE_END = re.compile(r"\n\s*\n|\n\s*(?:[*-]|\d+\.) |(?<=[.!?])\s+(?=[^a-z])")
_RULES = {
    "a semicolon": re.compile(";"),
    '"is no"': re.compile(r"\b(?:is|are|was|were) no\b"),
    'an opening with "What"': re.compile(r"\A\s*What\b"),
}


def faults_of(docstring: str) -> Iterator[str]:
    """Yield the broken rules. Code and URLs count as one word, and sections such as Args have no length."""
    text = _CODE.sub("X", docstring)
    yield from (name for name, rule in _RULES.items() if rule.search(text))
    for sentence in _SENTENCE_END.split(_SECTION.sub("", text)):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > MAX_WORDS:
            yield f"{len(words)} words: {' '.join(sentence.split())}"


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring of a module, its classes, functions and fields."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    text = statement.value.value
                    if isinstance(text, str):
                        yield statement.lineno, text


def files_of(place: Path) -> list[Path]:
    """Return the module at `place`, or all modules of the package there."""
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def test_the_rules_find_what_they_name() -> None:
    assert list(faults_of("Return the loss; it is no tensor.")) == ["a semicolon", '"is no"']
    assert list(faults_of("What a model learns.")) == ['an opening with "What"']
    assert list(faults_of("One " * 26 + ".")) == ["26 words: " + "One " * 26 + "."]
    assert list(faults_of("One " * 20 + "end. " + "Two " * 20 + "`a; b`.")) == []
    assert list(faults_of("Do it.\n\nArgs:\n    value: " + "one " * 30 + "\n\nEnd.")) == []


def test_docstrings_are_plain_english() -> None:
    files = [file for name in COVERED for file in files_of(ROOT / name)]
    assert files
    faults = [
        f"{file.relative_to(ROOT)}:{line}: {fault}"
        for file in files
        for line, text in docstrings(file)
        for fault in faults_of(text)
    ]
    assert not faults, "\n".join(faults)


def test_guides_are_plain_english() -> None:
    faults = [
        f"{name}: {fault}"
        for name in GUIDES
        for fault in faults_of(_LINK.sub("]", _NOT_PROSE.sub("", (ROOT / name).read_text())))
    ]
    assert not faults, "\n".join(faults)
