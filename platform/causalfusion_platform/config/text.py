"""Overrides whose value is text: it is taken as given, without the grammar that lists and numbers have."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import grammar_parser
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from causalfusion.model import CONFIGS

from ..storage.objects import ObjectUrl
from .schema import Experiment

NAMES = ("name", "task", "model.preset", "finetune.augment.rand_augment", "tracking.experiment", "sweep.metric")
"""Keys whose value names a thing that others must find again. A secret would be of no use there."""

_INTERPOLATION = re.compile(r"(\\*)\$\{")
_ELEMENT = re.compile(r"\[\d+\]")


def value_of(key: str, given: str) -> str:
    """Return the value of `key=given` as Hydra reads it.

    Text stays as given, in quotes. `null` stays a null where the key allows one. Interpolations such as
    `${oc.env:X}` stay interpolations.
    """
    kinds = leaf_types(key)
    if not kinds & {str, Path} or kinds - {str, Path, ObjectUrl, type(None)}:
        return given
    if given == "null" and type(None) in kinds:
        return given
    return quoted(given if "${" not in given or is_interpolated(given) else literal(given))


def quoted(text: str) -> str:
    """Return text in quotes of Hydra's grammar."""
    return str(QuotedString(text, Quote.single).with_quotes())


def literal(text: str) -> str:
    """Return text such that OmegaConf reads it as it is, and not as an interpolation."""
    return _INTERPOLATION.sub(lambda found: rf"{2 * found[1]}\${{", text)


def literals(value: Any) -> Any:
    """Return a tree whose strings OmegaConf reads as they are."""
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, dict):
        return {key: literals(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [literals(inner) for inner in value]
    return value


def may_be_secret(key: str) -> bool:
    """Say whether the value at a key may be a secret: text that is neither a path nor a name.

    Args:
        key: dotted key, with `[0]` for the first element of a list.
    """
    key = _ELEMENT.sub("", key)
    for searched in ("sweep.grid.", "sweep.space."):
        key = key.removeprefix(searched).removesuffix(".choice")
    kinds = leaf_types(key)
    return key not in NAMES and bool(kinds & {str, Any})


@cache
def leaf_types(key: str) -> frozenset[Any]:
    """Return the types that the value of a dotted key may have. Empty for a key that does not exist."""
    nodes: set[Any] = {Experiment}
    for part in key.split("."):
        nodes = {kind for node in nodes for kind in _alternatives(_children(node, part))}
    return frozenset(nodes)


def keys_of(node: Any) -> dict[str, Any]:
    """Map each key of a section to the type of its value. Anything else gives an empty dict."""
    found: dict[str, Any] = {}
    for kind in _alternatives(node):  # a section may be optional or annotated
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= {key: field.annotation for key, field in kind.model_fields.items()}
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            found |= {"preset": str} if kind in CONFIGS.values() else {}
            found |= {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return found


def _children(node: Any, part: str) -> Any:
    if node is Any:
        return Any
    if typing.get_origin(node) is dict:
        return typing.get_args(node)[1]
    return keys_of(node).get(part)


def _alternatives(node: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows."""
    origin = typing.get_origin(node)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(node)[0])
    elif origin in (typing.Union, types.UnionType):
        for choice in typing.get_args(node):
            yield from _alternatives(choice)
    elif node is not None:
        yield node


def is_interpolated(text: str) -> bool:
    """Say whether OmegaConf finds valid interpolations in a text, and nothing else that begins like one."""
    try:
        grammar_parser.parse(text)
    except OmegaConfBaseException:
        return False
    return True
