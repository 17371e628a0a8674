"""Composition of an experiment from YAML groups and `key=value` overrides, with errors that name each fault."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from causalfusion.model import CONFIGS

from .errors import UserError
from .schema import Experiment

logger = logging.getLogger(__name__)

_RETIRED = {
    "evaluation.classifier_epochs": "one classifier scores all runs on a data set, trained by one fixed recipe\n"
    "  leave the key out; to end a run without scores: evaluation.score=false",
}
"""Keys of earlier versions → the reason for their end, and advice. Files and runs may hold them, to no effect."""

HOME_VARIABLE = "CAUSALFUSION_HOME"


@dataclass(frozen=True)
class Composed:
    """Experiment, and the tree that it was read from."""

    experiment: Experiment
    unresolved: dict[str, Any]
    """The tree with interpolations such as ${oc.env:TOKEN} left as written, so that no secret is logged."""


def home() -> Path:
    """Return the base of relative paths in a configuration: $CAUSALFUSION_HOME, or the working directory."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.cwd()).absolute()


def experiment_folders() -> list[Path]:
    """Return the folders to search for experiment names and groups, in order.

    They are the working directory's `experiments/`, then the copy shipped with the package. In a source checkout
    the copy is that of the checkout.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = [Path.cwd() / "experiments", package / "_experiments", package.parents[1] / "experiments"]
    folders: list[Path] = []
    for folder in candidates:
        if folder.is_dir() and folder.resolve() not in [known.resolve() for known in folders]:
            folders.append(folder)
    return folders


def experiment_names() -> list[str]:
    """Return the names of all experiments: top-level files, those of `sweeps/`, and rows of tables."""
    found = (
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in experiment_folders()
        for pattern in ("*.yaml", "sweeps/*.yaml", "*/digits/*.yaml", "*/paper/*.yaml")
        for path in folder.glob(pattern)
    )
    return sorted(set(found))


def compose_experiment(name: str, overrides: Sequence[str] = ()) -> Composed:
    """Compose experiment `name` with `overrides` and validate it.

    Args:
        name: file in `experiments/` without its suffix, such as `quickstart` or `sweeps/gamma`.
        overrides: `key=value` with dotted keys, or `group=name` for a YAML group such as `model=digits`.

    Raises:
        UserError: unknown experiment, key or group, or a value that is not allowed.
    """
    folders = experiment_folders()
    name = name.removesuffix(".yaml")
    owner = next((folder for folder in folders if (folder / f"{name}.yaml").is_file()), None)
    if owner is None:
        raise UserError(_unknown_experiment(name, folders))
    others = ",".join(_quoted(f"file://{folder}") for folder in folders if folder != owner)
    for text in overrides:
        _refuse_retired(text.partition("=")[0].lstrip("+~"))
    arguments = [_as_hydra_override(text, folders) for text in overrides]
    if others:
        arguments.append(f"hydra.searchpath=[{others}]")
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(owner.absolute())):
            tree = compose(config_name=name, overrides=arguments)
        unresolved = _plain(tree, resolve=False)
        resolved = _plain(tree, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:  # ValueError: model=3
        cause = " ".join(str(error.__cause__ or error).partition("Config search path")[0].split())
        raise UserError(
            f"experiment {name!r} with {' '.join(overrides) or 'no overrides'} does not compose: {cause}\n"
            f"  see what composes: causalfusion config show {name}"
        ) from error
    for key in _retired_in(resolved):
        logger.warning(f"{key} of {name}.yaml has no effect: {_RETIRED[key]}")
    return Composed(validate(resolved, name), unresolved)


def validate(tree: dict[str, Any], name: str) -> Experiment:
    """Return the `Experiment` of a resolved tree, with relative paths made absolute from `home()`.

    Raises:
        UserError: a key or value is wrong. Every fault is listed, and unknown keys with the nearest valid one.
    """
    try:
        experiment = Experiment.model_validate(_without_retired(tree))
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        raise UserError(
            f"experiment {name!r} has {error.error_count()} wrong value(s):\n{faults}\n"
            f"  all keys and ranges: causalfusion config schema"
        ) from error
    return experiment.model_copy(
        update={
            "runs": home() / experiment.runs,
            "data": experiment.data.model_copy(update={"path": home() / experiment.data.path}),
        }
    )


def with_overrides(experiment: Experiment, changes: dict[str, Any], name: str) -> Experiment:
    """Return the experiment with dotted keys set to new values, validated again.

    Raises:
        UserError: a key does not exist, or a value is not allowed.
    """
    tree = OmegaConf.create(experiment.model_dump(mode="json"))
    if "model.preset" in changes:
        tree.model = {}  # the preset's own values, not those of the model before
    for key, value in changes.items():
        _refuse_retired(key)
        OmegaConf.update(tree, key, value, force_add=True)
    return validate(_plain(tree, resolve=True), name)


def _refuse_retired(key: str) -> None:
    if key in _RETIRED:
        raise UserError(f"{key} does not exist any more: {_RETIRED[key]}")


def _without_retired(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree without keys of earlier versions, which runs and files may still hold."""
    for key in _retired_in(tree):
        section, _, name = key.partition(".")
        tree = {**tree, section: {other: value for other, value in tree[section].items() if other != name}}
    return tree


def _retired_in(tree: dict[str, Any]) -> list[str]:
    return [key for key in _RETIRED if key in dict(flatten(tree))]


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, leaf value) of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(tree: DictConfig, *, resolve: bool) -> dict[str, Any]:
    plain = OmegaConf.to_container(tree, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def _as_hydra_override(text: str, folders: list[Path]) -> str:
    key, equals, _ = text.partition("=")
    if not equals or not key or key.startswith("hydra"):
        raise UserError(
            f"override {text!r} is not of the form key=value, such as train.images=25600\n"
            f"  all keys: causalfusion config schema"
        )
    if any((folder / key).is_dir() for folder in folders):
        return text
    # The typed schema holds the defaults, and a key may be absent from the YAML: ++ adds or replaces it.
    return f"++{key.lstrip('+')}={text.partition('=')[2]}"


def _unknown_experiment(name: str, folders: list[Path]) -> str:
    names = experiment_names()
    near = difflib.get_close_matches(name, names, n=1)
    places = ", ".join(str(folder) for folder in folders) or "(no experiments folder found)"
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"no experiment {name!r}{hint}\n  experiments: {', '.join(names)}\n  looked in: {places}\n"
        f"  show one: causalfusion config show {near[0] if near else 'quickstart'}"
    )


def _describe(fault: ErrorDetails) -> str:
    path = [str(part) for part in fault["loc"]]
    kind = CONFIGS.get(path[1]) if path[:1] == ["model"] and len(path) > 1 else None
    if kind:  # pydantic adds the kind of model to the path, which the user did not write
        del path[1]
    if path[:1] == ["sampling"]:  # pydantic also adds the alternatives of a union type
        path = [*path[:2], *(str(part) for part in fault["loc"][2:] if isinstance(part, int))]
    where = ".".join(path) or "(whole tree)"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        valid = _keys_at(path[:-1], kind)
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        nearest = f"did you mean {'.'.join([*path[:-1], near[0]])!r}? " if near else ""
        return f"{where}: unknown key; {nearest}keys here: {', '.join(valid)}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{where}: missing; it must be given"
    given = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{given}"


def _keys_at(path: list[str], model: type | None) -> list[str]:
    node: Any = Experiment
    for part in path:
        node = model if model and part == "model" else _sections(node).get(part)
    return sorted(_sections(node))


def _sections(node: Any) -> dict[str, Any]:
    """Map each key of a section to the type of its value. Anything else gives an empty dict."""
    for candidate in (node, *typing.get_args(node)):  # a section may be optional or annotated
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return {key: field.annotation for key, field in candidate.model_fields.items()}
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            extra = {"preset": str} if candidate in CONFIGS.values() else {}
            return extra | {field.name: field.type for field in dataclasses.fields(candidate)}
    return {}
