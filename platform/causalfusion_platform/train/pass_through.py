"""Check the keys that go to DeepSpeed unchanged: against the keys that it reads, and our own settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from pydantic import ValidationError

from ..config.errors import UserError
from ..config.schema import Experiment
from .deepspeed_keys import CHECKED, DERIVED, RESERVED, UNCHECKED, VALUES

WHERE = "train.deepspeed"


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return both settings in one: sections are merged, single values are theirs."""
    both = dict(ours)
    for key, value in theirs.items():
        own = both.get(key)
        both[key] = merged(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return both


def check_deepspeed(experiment: Experiment) -> None:
    """Check that DeepSpeed reads every key of `train.deepspeed`, and that none conflicts with a setting.

    Nothing is started. DeepSpeed is imported, which takes some seconds, only for sections that it checks itself.

    Raises:
        UserError: a key conflicts with a setting, is unknown, or has a value that DeepSpeed refuses.
    """
    given = experiment.train.deepspeed
    for path in _paths(given):
        _refuse_conflict(path, experiment)
    for section, value in given.items():
        if section in VALUES:
            continue
        if section not in CHECKED and section not in UNCHECKED:
            raise _unknown(section, section, [*VALUES, *CHECKED, *UNCHECKED])
        if not isinstance(value, Mapping):
            raise UserError(f"{WHERE}.{section} is a section of DeepSpeed's configuration with keys, got {value!r}")
        if section in UNCHECKED:
            for key in value:
                if key not in UNCHECKED[section]:
                    raise _unknown(f"{section}.{key}", key, UNCHECKED[section])
        else:
            _check_section(section, value)


def _paths(tree: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Return the dotted path of every key, sections included."""
    for key, value in tree.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{before}{key}.")


def _refuse_conflict(path: str, experiment: Experiment) -> None:
    if path in DERIVED:
        ours = DERIVED[path]
        value = attrgetter(ours)(experiment)
        raise UserError(f"{WHERE}.{path} conflicts with {ours}={'null' if value is None else value}: set that one")
    if path in RESERVED:
        raise UserError(f"{WHERE}.{path} cannot be set: {RESERVED[path]}\n  leave it out")


def _check_section(section: str, value: Mapping[str, Any]) -> None:
    model = _models()[section]
    _refuse_unknown(f"{section}.", value, model)
    try:
        model(**value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([section, *map(str, first["loc"])])
        raise UserError(f"{WHERE}.{key}={first['input']!r} is refused by DeepSpeed: {first['msg']}") from error
    except AssertionError as error:  # raised where two names of one setting are given
        raise UserError(f"{WHERE}.{section} is refused by DeepSpeed: {error}") from error


def _refuse_unknown(before: str, value: Mapping[str, Any], model: Any) -> None:
    names = dict(model.model_fields)
    names |= {field.alias: field for field in model.model_fields.values() if field.alias}
    for key, inner in value.items():
        if key not in names:
            raise _unknown(f"{before}{key}", key, list(names))
        section = _model_in(names[key].annotation)
        if section is not None and isinstance(inner, Mapping):
            _refuse_unknown(f"{before}{key}.", inner, section)


def _model_in(annotation: Any) -> Any:
    """Return the pydantic class in an annotation, perhaps an optional one, or None."""
    choices = getattr(annotation, "__args__", (annotation,))
    return next((choice for choice in choices if hasattr(choice, "model_fields")), None)


def _unknown(path: str, key: str, allowed: Iterable[str]) -> UserError:
    names = sorted(allowed)
    near = difflib.get_close_matches(key, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
    return UserError(f"{WHERE}.{path} is not a key that DeepSpeed reads; {hint}")


def _models() -> dict[str, Any]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "bf16": DeepSpeedBF16Config,
        "comet": monitor.CometConfig,
        "comms_logger": CommsLoggerConfig,
        "csv_monitor": monitor.CSVConfig,
        "fp16": DeepSpeedFP16Config,
        "tensorboard": monitor.TensorBoardConfig,
        "wandb": monitor.WandbConfig,
        "zero_optimization": DeepSpeedZeroConfig,
    }
