"""Values of environment variables in a configuration, and texts without them.

`compose` finds the values where it resolves `${oc.env:NAME}`. Whatever is written or printed goes through `redact`,
which shows `${oc.env:NAME}` in place of the value. A password in an address is shown as `***`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

from .errors import UserError

PUBLIC_VARIABLES = ("HOME", "HOSTNAME", "LOGNAME", "PWD", "TMPDIR", "USER")
"""Variables that name the user, the machine and its folders."""
SHORTEST = 6
"""Characters of the shortest secret. Shorter values are also parts of words and numbers."""
_HIDDEN = "***"
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)\}")

_known: dict[str, str] = {}


def remember(shown: Mapping[str, str]) -> None:
    """Add secrets of this process.

    Args:
        shown: secret → text in its place.
    """
    for secret, text in shown.items():
        for form in (
            secret,
            quote(secret, safe=""),
            quote_plus(secret),
            json.dumps(secret)[1:-1],
            repr(secret)[1:-1],
        ):
            if len(form) >= SHORTEST:
                _known.setdefault(form, text)


def remember_variable(name: str, value: str) -> None:
    """Add the value of an environment variable, unless it is public."""
    if name not in PUBLIC_VARIABLES:
        remember({value: f"${{oc.env:{name}}}"})


def remember_address(address: str) -> None:
    """Add the credentials in an address: the password, a user without one, and the values of its query."""
    if "://" not in address or address.startswith("sqlite"):
        return
    try:
        parts = urlsplit(_VARIABLE.sub("_", address))
    except ValueError:  # no address: whoever uses it says so
        return
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    values = [password or user, *(value for _, value in parse_qsl(parts.query))]
    # What holds a variable's value is shown with its name, from which `restored` makes the address again.
    remember({value: _HIDDEN for value in values if value and with_variables(value) == value})


def shown_address(address: str) -> str:
    """Return an address without its credentials."""
    remember_address(address)
    return redact(address)


def known() -> dict[str, str]:
    """Return the secrets of this process, for another one."""
    return dict(_known)


def redact(text: str) -> str:
    """Return a text without secrets."""
    return _replaced(text, _known)


def with_variables(text: str) -> str:
    """Return a text without values of variables, which `restored` undoes. Other secrets stay."""
    return _replaced(text, {secret: shown for secret, shown in _known.items() if shown != _HIDDEN})


def redacted(tree: Any) -> Any:
    """Return a tree of dicts and lists without secrets."""
    if isinstance(tree, str):
        return redact(tree)
    if isinstance(tree, Mapping):
        return {key: redacted(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return tree


def restored(text: str) -> str:
    """Return a text with the values of its variables again.

    Raises:
        UserError: a variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        name, shown = found[1], found[0]
        if name in os.environ:
            remember_variable(name, os.environ[name])
            return os.environ[name]
        # Ray's processes on other machines know the secrets without having the variables.
        for secret, text_of_it in _known.items():
            if text_of_it == shown:
                return secret
        raise UserError(f"{text} needs the environment variable {name}\n  set it: export {name}=…")

    return _VARIABLE.sub(value, text)


def _replaced(text: str, shown: Mapping[str, str]) -> str:
    """Return a text with others in place of secrets, the longest first: a secret may be a part of another one."""
    for secret in sorted(shown, key=len, reverse=True):
        text = text.replace(secret, shown[secret])
    return text
