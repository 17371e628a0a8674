"""Explanation of one key: its meaning, type, range and default, and where an experiment's value comes from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from causalfusion import PRESETS

from .compose import composing
from .errors import UserError
from .files import SUFFIX, experiment_folders, read_text
from .schema import Experiment

_NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_PRESET = {
    "description": "Named model whose values the other keys of `model` change.",
    "enum": [*PRESETS],
}
_Node = dict[str, Any]


@dataclass(frozen=True)
class Explained:
    """A key of the configuration, in words."""

    meaning: str
    kind: str
    """Type and range of its value."""
    default: str
    """Its default as JSON, or in words where it has none."""
    keys: dict[str, str]
    """Keys of a section, with the first sentence about each. Empty for a value."""


def explain(key: str) -> Explained:
    """Explain a dotted key.

    Raises:
        UserError: the key does not exist.
    """
    root = _schema()
    nodes: list[_Node] = [root]
    required = False
    for place, part in enumerate(parts := key.split(".")):
        required = any(part in choice.get("required", ()) for node in nodes for choice in _choices(node, root))
        children = [_keys(node, root).get(part) or _value(node, root) for node in nodes]
        nodes = [child for child in children if child is not None]
        if not nodes:
            raise UserError(_unknown(parts, place, root))
    first = nodes[0]
    inner = {name: child for node in nodes for name, child in _keys(node, root).items()}
    kinds = dict.fromkeys(_kind(choice, root) for choice in _choices(first, root))
    default = "it must be given" if required else "none"
    return Explained(
        meaning=_text(first, root),
        kind="section" if inner else " or ".join(kinds),
        default=json.dumps(first["default"], ensure_ascii=False) if "default" in first else default,
        keys={name: _text(child, root).partition(". ")[0].rstrip(".") for name, child in inner.items()},
    )


@cache
def _schema() -> _Node:
    return Experiment.model_json_schema()


def origin(key: str, name: str, overrides: Sequence[str]) -> str:
    """Return where an experiment's value of a key comes from: an override, a file, the preset, or the default.

    Raises:
        UserError: the experiment does not compose.
    """
    folders = experiment_folders()
    for text in reversed(overrides):
        given = text.partition("=")[0].lstrip("+")
        is_group = any((folder / given).is_dir() for folder in folders)
        if _covers(given, key) and not is_group:
            return f"override {text}"
    with composing(name, overrides) as (file, arguments):
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list(file.name, arguments, RunMode.RUN).defaults
    folders = [file.folder, *folders]
    found, preset = None, False
    for default in defaults:
        path = next(
            (path for folder in folders if (path := folder / f"{default.config_path}{SUFFIX}").is_file()), None
        )
        if path is None:
            continue
        tree = yaml.safe_load(read_text(path)) or {}
        for part in reversed((default.package or "").split(".") if default.package else []):
            tree = {part: tree}
        found = path if _holds(tree, key) else found
        preset = preset or _holds(tree, "model.preset")
    if found is not None:
        return str(found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found)
    return "the model's preset" if preset and key.startswith("model.") else "the default"


def _covers(given: str, key: str) -> bool:
    return key == given or key.startswith(f"{given}.")


def _holds(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _choices(node: _Node, root: _Node) -> Iterator[_Node]:
    """Yield the alternatives of a node, with references resolved."""
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    alternatives = node.get("anyOf") or node.get("oneOf")
    if not alternatives:
        yield node
    for choice in alternatives or ():
        yield from _choices(choice, root)


def _keys(node: _Node, root: _Node) -> dict[str, _Node]:
    keys = {name: child for choice in _choices(node, root) for name, child in choice.get("properties", {}).items()}
    return {"preset": _PRESET, **keys} if "architecture" in keys else keys


def _value(node: _Node, root: _Node) -> _Node | None:
    """Return the type of the values of a mapping with free keys."""
    for choice in _choices(node, root):
        inner = choice.get("additionalProperties")
        if choice.get("type") == "object" and inner not in (None, False):
            about = {"description": node.get("description", "")}
            return about | inner if isinstance(inner, dict) else about
    return None


def _text(node: _Node, root: _Node) -> str:
    described = [node, *_choices(node, root)]
    text = next((one["description"] for one in described if "description" in one), "")
    return " ".join(str(text).split())


def _kind(node: _Node, root: _Node) -> str:
    if "const" in node or "enum" in node:
        return " or ".join(str(value) for value in node.get("enum", [node.get("const")]))
    kind = node.get("type")
    if kind == "array":
        items = node.get("items") or next(iter(node.get("prefixItems", [{}])))
        return "list of " + (" or ".join(_kind(choice, root) for choice in _choices(items, root)) or "values")
    if kind == "object":
        return "mapping"
    if kind == "string":
        name = "path" if node.get("format") == "path" else "text"
        return f"{name} that matches {node['pattern']}" if "pattern" in node else name
    bounds = [f"{sign} {node[bound]:g}" for bound, sign in _BOUNDS.items() if bound in node]
    return ", ".join([_NAMES.get(str(kind), "any value"), *bounds])


def _unknown(parts: list[str], place: int, root: _Node) -> str:
    nodes: list[_Node] = [root]
    for part in parts[:place]:
        nodes = [child for node in nodes if (child := _keys(node, root).get(part)) is not None]
    allowed = sorted({name for node in nodes for name in _keys(node, root)})
    near = difflib.get_close_matches(parts[place], allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {'.'.join([*parts[:place], near[0]])!r}?" if near else ""
    where = ".".join(parts[:place]) or "the configuration"
    return f"no key {'.'.join(parts)!r}{hint}\n  keys of {where}: {', '.join(allowed)}"
