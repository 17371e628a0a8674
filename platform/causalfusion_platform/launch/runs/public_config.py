"""The configuration of a run as users see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ...config.compose import Composed, recorded_tree
from ...storage.atomic import write_atomically


class _Dumper(yaml.SafeDumper):
    """Writes text like 1e3 in quotes. Hydra takes it for a number, and YAML 1.1 does not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def config_text(composed: Composed) -> str:
    """Return the configuration as YAML, which is an experiment itself."""
    return str(yaml.dump(public_config(composed), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def write_config(composed: Composed, path: Path) -> Path:
    """Write the configuration for users, with interpolations as written so that secrets are not copied."""
    header = f"# causalfusion train, run {composed.experiment.name}\n"
    write_atomically(path, (header + config_text(composed)).encode())
    return path


def public_config(composed: Composed) -> dict[str, Any]:
    """Return the whole resolved tree, with each value that came from an interpolation shown as written."""
    tree = _as_written(recorded_tree(composed.experiment), composed.unresolved)
    assert isinstance(tree, dict)
    return tree


def _as_written(resolved: Any, written: Any) -> Any:
    if isinstance(written, str) and "${" in written:
        return written
    if isinstance(resolved, dict) and isinstance(written, dict):
        return {key: _as_written(value, written.get(key)) for key, value in resolved.items()}
    if isinstance(resolved, list) and isinstance(written, list) and len(resolved) == len(written):
        return [_as_written(*pair) for pair in zip(resolved, written, strict=True)]
    return resolved
