"""What the tests of configurations share: shipped files, changed trees, and what is said about wrong ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from causalfusion_platform.config.compose import compose_experiment, validate
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment

SHIPPED = Path(__file__).parents[3] / "experiments"
MODEL_GROUPS = sorted(path.stem for path in (SHIPPED / "model").glob("*.yaml"))


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """Return a composed experiment without its tree."""
    return compose_experiment(name, overrides).experiment


@cache
def shipped(name: str) -> Experiment:
    """Return a shipped experiment. Composing one takes a tenth of a second, and there are more than a hundred.

    Its relative paths count from the folder of the test that asked first.
    """
    return load_experiment(name)


def message_of(name: str, *overrides: str) -> str:
    """Return what is said when an experiment does not compose."""
    with pytest.raises(UserError) as caught:
        load_experiment(name, overrides)
    return str(caught.value)


def change(tree: dict[str, Any], *texts: str) -> Experiment:
    """Validate a tree with `key=value` changes, without Hydra, which takes a tenth of a second each time."""
    changed = copy.deepcopy(tree)
    for text in texts:
        key, _, value = text.partition("=")
        *path, last = key.split(".")
        node = changed
        for part in path:
            node = node.setdefault(part, {})
        node[last] = yaml.safe_load(value)
    return validate(changed, "quickstart")


def fault_of(tree: dict[str, Any], *texts: str) -> str:
    """Return what is said when a changed tree is not valid."""
    with pytest.raises(UserError) as caught:
        change(tree, *texts)
    return str(caught.value)


def write_yaml(path: Path, text: str) -> None:
    """Write a file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
