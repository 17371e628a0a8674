"""Composition of an experiment from YAML groups and `key=value` overrides, with errors that name each fault."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from causalfusion.model import CONFIGS

from ..storage.objects import without_login
from . import secrets
from .commands import command
from .errors import UserError
from .files import LARGEST, SUFFIX, ExperimentFile, experiment_folders, find_experiment, home
from .finetune import FinetuneConfig
from .schema import DataConfig, Experiment
from .text import keys_of, literals, may_be_secret, quoted, value_of

logger = logging.getLogger(__name__)

_RETIRED = {
    "evaluation.classifier_epochs": "one classifier scores all runs on a data set, trained by one fixed recipe\n"
    "  leave the key out; to end a run without scores: evaluation.score=false",
}
"""Keys of earlier versions → the reason for their end, and advice. Files and runs may hold them, to no effect."""

_RENAMED = {"data.heldout": "data.validation"}
"""Keys of earlier versions → their names now. Files and runs may hold them."""

_UNSET = object()


@dataclass(frozen=True)
class Composed:
    """Experiment, and the tree that it was read from."""

    experiment: Experiment
    unresolved: dict[str, Any]
    """The tree with interpolations such as ${oc.env:TOKEN} left as written, so that no secret is logged."""

    def __getstate__(self) -> dict[str, Any]:
        """Take the secrets along into another process, where they are not shown either."""
        return {**vars(self), "secrets": secrets.known()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the secrets known here."""
        secrets.remember(state.pop("secrets"))
        vars(self).update(state)


def compose_experiment(name: str, overrides: Sequence[str] = ()) -> Composed:
    """Compose experiment `name` with `overrides` and validate it.

    Args:
        name: file in `experiments/` without its suffix, such as `quickstart` or `sweeps/gamma`, or a path.
        overrides: `key=value` with dotted keys, or `group=name` for a YAML group such as `model=digits`. Text is
            taken as given.

    Raises:
        UserError: unknown experiment, key or group, or a value that is not allowed.
    """
    with composing(name, overrides) as (file, arguments):
        tree = compose(config_name=file.name, overrides=arguments)
        unresolved = _plain(tree, resolve=False)
        resolved = _plain(tree, resolve=True)
    for key in _keys_in(resolved, _RETIRED):
        logger.warning(f"{key} of {name.removesuffix(SUFFIX)}{SUFFIX} has no effect: {_RETIRED[key]}")
    for key in _keys_in(resolved, _RENAMED):
        logger.warning(f"{key} of {name.removesuffix(SUFFIX)}{SUFFIX} is {_RENAMED[key]} now: rename it there")
    experiment = validate(resolved, name)
    if experiment.tracking.uri is None and "?" in str(experiment.runs_folder):
        raise UserError(
            f"runs={experiment.runs} has a question mark, which the address of its mlflow.db cannot have\n"
            f"  choose another folder: runs=FOLDER; or another store: tracking.uri=URI"
        )
    return Composed(experiment, unresolved)


@contextmanager
def composing(name: str, overrides: Sequence[str]) -> Iterator[tuple[ExperimentFile, list[str]]]:
    """Yield the file of an experiment and its overrides as Hydra reads them, with Hydra set up for its folder.

    Raises:
        UserError: unknown experiment, an override that is not of the form key=value, or Hydra failed in the body.
    """
    file, folders = find_experiment(name), experiment_folders()
    if (size := file.path.stat().st_size) > LARGEST:
        raise UserError(f"{file.path} has {size:,} bytes, which is more than an experiment has")
    others = ",".join(quoted(f"file://{folder}") for folder in folders if folder != file.folder)
    for text in overrides:
        _refuse_earlier(text.partition("=")[0].lstrip("+~"))
    arguments = [_as_hydra_override(text, folders) for text in overrides]
    if others:
        arguments.append(f"hydra.searchpath=[{others}]")
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(file.folder.absolute())):
            yield file, arguments
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        # ValueError: model=3. OSError: a file that holds a number. RecursionError: a value nested too deeply
        cause = " ".join(str(error.__cause__ or error).partition("Config search path")[0].split())
        raise UserError(
            f"experiment {name!r} with {' '.join(overrides) or 'no overrides'} does not compose: {cause}\n"
            f"  see what composes: {command('config', 'show', name)}"
        ) from error


def validate(tree: dict[str, Any], name: str) -> Experiment:
    """Return the `Experiment` of a resolved tree, with relative paths made absolute from `home()`.

    Keys of earlier versions are left out or renamed. Description and tags are for readers only, and are kept
    without secrets.

    Raises:
        UserError: a key or value is wrong. Every fault is listed, and
            unknown keys with the nearest valid one.
    """
    try:
        experiment = Experiment.model_validate(_with_present_keys(tree))
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        raise UserError(
            f"experiment {name!r} has {error.error_count()} wrong value(s):\n{faults}\n"
            f"  all keys and ranges: causalfusion config schema"
        ) from error
    tracking = experiment.tracking
    if tracking.uri:
        secrets.remember_address(tracking.uri)
    return experiment.model_copy(
        update={
            "description": secrets.redact(experiment.description),
            "tracking": tracking.model_copy(update={"tags": secrets.redacted(tracking.tags)}),
            "runs": home() / experiment.runs if isinstance(experiment.runs, Path) else experiment.runs,
            "data": experiment.data.model_copy(update=_absolute(experiment.data)),
            "finetune": _absolute_finetune(experiment.finetune),
        }
    )


def _absolute(data: DataConfig) -> dict[str, Any]:
    """Return the paths of a data section that are given, made absolute from `home()`."""
    paths = {"path": data.path, "validation": data.validation, "tokenizer": data.tokenizer}
    found: dict[str, Any] = {name: home() / path for name, path in paths.items() if path is not None}
    if data.subset is not None:
        found["subset"] = data.subset.model_copy(update={"of": home() / data.subset.of})
    return found


def _absolute_finetune(finetune: FinetuneConfig | None) -> FinetuneConfig | None:
    """Return a section of a fine-tune with its paths made absolute from `home()`."""
    if finetune is None:
        return None
    paths = {"weights": finetune.weights, "test": finetune.test, "vae": finetune.vae}
    return finetune.model_copy(update={name: home() / path for name, path in paths.items() if path is not None})


def with_overrides(experiment: Experiment, changes: dict[str, Any], name: str) -> Experiment:
    """Return the experiment with dotted keys set to new values, validated again.

    Raises:
        UserError: a key does not exist, or a value is not allowed.
    """
    tree = OmegaConf.create(literals(experiment.model_dump(mode="json")))
    if "model.preset" in changes:
        tree.model = {}  # the preset's own values, not those of the model before
    for key, value in changes.items():
        _refuse_earlier(key)
        OmegaConf.update(tree, key, literals(value), force_add=True)
    return validate(_plain(tree, resolve=True), name)


def _refuse_earlier(key: str) -> None:
    if key in _RETIRED:
        raise UserError(f"{key} does not exist any more: {_RETIRED[key]}")
    if key in _RENAMED:
        raise UserError(f"{key} is {_RENAMED[key]} now\n  type: {_RENAMED[key]}=…")


def _with_present_keys(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree without the keys of earlier versions, which runs and files may still hold.

    Raises:
        UserError: the tree holds both names of a key.
    """
    for key in _keys_in(tree, (*_RETIRED, *_RENAMED)):
        section, _, name = key.partition(".")
        values = {other: value for other, value in tree[section].items() if other != name}
        if key in _RENAMED:
            present = _RENAMED[key].removeprefix(f"{section}.")
            if present in values:
                raise UserError(f"{key} is {_RENAMED[key]} now, and both are given\n  leave {key} out")
            values[present] = tree[section][name]
        tree = {**tree, section: values}
    return tree


def _keys_in(tree: dict[str, Any], keys: Iterable[str]) -> list[str]:
    leaves = dict(flatten(tree))
    return [key for key in keys if key in leaves]


def recorded_tree(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as it is written to disk: without secrets, where text may hold one."""
    tree = _without_secrets(experiment.model_dump(mode="json"))
    assert isinstance(tree, dict)
    return tree


def _without_secrets(tree: Any, key: str = "") -> Any:
    if isinstance(tree, dict):
        return {name: _without_secrets(value, f"{key}.{name}".lstrip(".")) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_without_secrets(value, f"{key}[{place}]") for place, value in enumerate(tree)]
    return secrets.redact(tree) if isinstance(tree, str) and may_be_secret(key) else tree


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


def _environment(name: str, default: Any = _UNSET, *, _node_: Node) -> str | None:
    """Resolve `${oc.env:NAME,default}` as OmegaConf does, and note the value if its key may hold a secret."""
    if name in os.environ:
        value = os.environ[name]
        if may_be_secret(str(_node_._get_full_key(None))):
            secrets.remember_variable(name, value)
        return value
    if default is _UNSET:
        raise KeyError(f"Environment variable '{name}' not found")
    return None if default is None else str(default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _as_hydra_override(text: str, folders: list[Path]) -> str:
    key, equals, value = text.partition("=")
    if not equals or not key or key.startswith("hydra"):
        raise UserError(
            f"override {text!r} is not of the form key=value, such as train.images=25600\n"
            f"  all keys: causalfusion config schema"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"override {text!r} is not UTF-8 text\n  give it as UTF-8") from error
    if any((folder / key).is_dir() for folder in folders):
        return text
    key = key.lstrip("+")
    # The typed schema holds the defaults, and a key may be absent from the YAML: ++ adds or replaces it.
    return f"++{key}={value_of(key, value)}"


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
    given = "" if isinstance(fault["input"], dict) else f" (got {without_login(repr(fault['input'])):.200})"
    if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
        given = f"{given[:-1]}; a file needs quotes around such text)"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{given}"


def _keys_at(path: list[str], model: type | None) -> list[str]:
    node: Any = Experiment
    for part in path:
        node = model if model and part == "model" else keys_of(node).get(part)
    return sorted(keys_of(node))
