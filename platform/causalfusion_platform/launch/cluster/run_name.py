"""Name of the run that a command line makes, and an id for its job."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from ...config.errors import UserError
from ...config.files import find_experiment, read_text
from ...config.secret_names import without_credentials

_BY_EXPERIMENT = ("train", "sweep")
_BY_RUN = ("generate", "evaluate", "analyze", "probe", "sample", "edit", "caption")
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that look alike
_RANDOM = 6
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST = 40


def run_of(arguments: Sequence[str]) -> str | None:
    """Return the name of the run that a command makes or reads, or None.

    It is read from the command line and the experiment's file. The cluster composes the configuration.

    Args:
        arguments: command line of `causalfusion` without its first word.
    """
    if (name := _override(arguments, "name")) is not None:
        return name
    verb, words = arguments[0], [word for word in arguments[1:] if not word.startswith("-") and "=" not in word]
    if verb == "finetune" and len(words) > 1:
        return f"{PurePosixPath(words[1]).name}-{words[0]}"
    if verb in _BY_EXPERIMENT and words:
        return str(_file(words[0]).get("name") or PurePosixPath(words[0]).stem)
    if verb in _BY_RUN and words:
        return PurePosixPath(words[0]).name
    return words[0] if verb == "reproduce" and words else "quickstart" if verb == "quickstart" else None


def tracking_of(arguments: Sequence[str]) -> str | None:
    """Return the address of MLflow in a command line or its experiment's file, without credentials, or None."""
    given = _override(arguments, "tracking.uri")
    if given is None and arguments[0] in _BY_EXPERIMENT and len(arguments) > 1:
        section = _file(arguments[1]).get("tracking")
        given = section.get("uri") if isinstance(section, dict) else None
    return without_credentials(given) if given else None


def new_job_id(beginning: str) -> str:
    """Return an id for a job that begins with the run's name, such as `gamma-x7kq2m`."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", beginning)[:_LONGEST].strip("-.") or "job"
    return f"{name}-{''.join(secrets.choice(_LETTERS) for _ in range(_RANDOM))}"


def check_job_id(job_id: str) -> str:
    """Return the id of a job, which is a part of file names and of addresses.

    Raises:
        UserError: it has other characters than those of file names.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise UserError(
            f"--job-id {job_id!r:.120} is not an id: letters, digits and . _ - are allowed, 100 at most\n"
            "  such as --job-id first-1, or leave it out"
        )
    return job_id


def _override(arguments: Sequence[str], key: str) -> str | None:
    given = [word.partition("=")[2] for word in arguments if word.startswith(f"{key}=")]
    return given[-1].strip("'\"") if given else None


def _file(experiment: str) -> dict[str, Any]:
    """Return the content of an experiment's file. It may be known to the cluster alone."""
    try:
        tree = yaml.safe_load(read_text(find_experiment(experiment).path))
    except (UserError, OSError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}
