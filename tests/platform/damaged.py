"""Damage to files that people or other programs write, as a strategy of hypothesis."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# No parser of Python's or pydantic's may take these for a value that a file of ours can hold.
JUNK: list[str] = [
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "1e999",
    str(2**40),
    str(10**9),
    str(2**63),
    str(10**400),
    "9" * 5000,
    '""',
    '"x"',
    json.dumps("x" * 5000),
    json.dumps("\x00"),
    r'"\ud800"',
    json.dumps("../" * 20),
    "[]",
    "{}",
    "[1, 2]",
    '{"a": {"b": null}}',
    "[" * 200 + "]" * 200,
    "[" * 200_000,
    '{"a":' * 100_000,
]
_MARK = "\x01junk\x01"


def _places(tree: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path of every value of a tree, that of the tree itself first."""
    inner: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


def _at(tree: Any, path: tuple[str | int, ...], change: str) -> Any:
    if not path:
        return _MARK
    copy = json.loads(json.dumps(tree))
    node = copy
    for part in path[:-1]:
        node = node[part]
    if change == "remove":
        del node[path[-1]]
    else:
        node[path[-1]] = _MARK
    return copy


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a damaged copy of a file: cut off, with other bytes, or with a value replaced, removed or added."""
    kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "cut", "bytes", "other"]))
    if kind == "cut":
        return content[: draw(st.integers(0, max(len(content) - 1, 0)))]
    if kind == "bytes":
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        return content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place + 1 :]
    junk = draw(st.sampled_from(JUNK))
    if kind == "other":
        return junk.encode()
    tree = json.loads(content)
    if kind == "add" and isinstance(tree, dict):
        return json.dumps({**tree, "no such key": _MARK}).replace(json.dumps(_MARK), junk).encode()
    path = draw(st.sampled_from(_places(tree)))
    changed = _at(tree, path, "remove" if kind == "remove" and path else "replace")
    return json.dumps(changed).replace(json.dumps(_MARK), junk).encode()
