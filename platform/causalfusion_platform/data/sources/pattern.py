"""Patterns of file names: {000..003}, {a,b}, *, **, ? and [a-z]."""

from __future__ import annotations

import re
from collections.abc import Callable

from ...config.errors import UserError
from .filesystem import is_url

_MOST_NAMES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


def has_wildcard(location: str) -> bool:
    """Return True for a pattern. In a URL a question mark begins the options."""
    return any(character in _split_options(location)[0] for character in "*{[?")


def split_pattern(location: str) -> tuple[str, str]:
    """Split a pattern into the folder above its first wildcard, with a URL's options, and the rest."""
    location, options = _split_options(location)
    first = min(location.find(character) for character in "*{[?" if character in location)
    folder = location[: first + 1].rpartition("/")[0]
    pattern = location[len(folder) :].lstrip("/")
    if is_url(location):
        scheme = location.partition("://")[0] + "://"
        return (folder if len(folder) > len(scheme) else scheme) + options, pattern
    return folder or ("/" if location.startswith("/") else "."), pattern


def inside_location(location: str, folder: str) -> str:
    """Return the location of a folder inside a location, with the options of a URL at their place."""
    path, options = _split_options(location)
    return f"{path if path.endswith('://') else path.rstrip('/') + '/'}{folder}{options}"


def _split_options(location: str) -> tuple[str, str]:
    """Split off the options of a URL, or the archive around its path."""
    path = re.split(r"::|\?", location, maxsplit=1)[0] if is_url(location) else location
    return path, location[len(path) :]


def expand_braces(pattern: str) -> list[str]:
    """Return the names that {a,b} and {000..003} stand for. Numbers have the digits of the first one.

    Raises:
        UserError: a brace is not closed, or a range is too long or runs backwards.
    """
    names = [pattern]
    while found := _BRACES.search(names[0]):
        if len(names) * len(_choices(found[1], pattern)) > _MOST_NAMES:
            raise UserError(f"{pattern} stands for more than {_MOST_NAMES:,} names\n  write * instead")
        names = [
            f"{name[: brace.start()]}{choice}{name[brace.end() :]}"
            for name in names
            if (brace := _BRACES.search(name))
            for choice in _choices(brace[1], pattern)
        ]
    if "{" in names[0] or "}" in names[0]:
        raise UserError(f"{pattern} has a brace without its partner\n  write {{000..003}} or {{a,b}}")
    return list(dict.fromkeys(names))


def _choices(inside: str, pattern: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if not numbers:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not 0 <= last - first < _MOST_NAMES:
        raise UserError(f"{pattern}: {{{inside}}} is not a range of at most {_MOST_NAMES:,} numbers\n  mend it")
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that matches names. * and ? match inside one folder, ** across folders.

    Raises:
        UserError: the text between brackets is not a set of characters.
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    source = "".join(wild.get(part) or _one_of(part) or re.escape(part) for part in parts)
    try:
        return re.compile(source, re.DOTALL).fullmatch
    except re.error as error:
        raise UserError(f"{pattern} is not a pattern: {error}\n  mend the part in brackets") from error


def _one_of(part: str) -> str | None:
    if not part.startswith("[") or len(part) == 1:
        return None
    inside = part[1:-1].replace("\\", "\\\\")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
