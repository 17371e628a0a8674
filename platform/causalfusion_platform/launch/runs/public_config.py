"""The configuration of a run as users see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...config.compose import Composed, flatten
from ...storage.atomic import write_atomically


def write_config(composed: Composed, path: Path) -> Path:
    """Write the configuration for users, with interpolations as written so that secrets are not copied."""
    header = f"# causalfusion train, run {composed.experiment.name}\n"
    tree = yaml.safe_dump(public_config(composed), sort_keys=False, allow_unicode=True)
    write_atomically(path, (header + tree).encode())
    return path


def public_config(composed: Composed) -> dict[str, Any]:
    """Return the whole resolved tree, with each value that came from an interpolation shown as written."""
    tree = composed.experiment.model_dump(mode="json")
    for key, value in flatten(composed.unresolved):
        if isinstance(value, str) and "${" in value:
            *path, last = key.split(".")
            node = tree
            for part in path:
                node = node[part]
            node[last] = value
    return tree
