"""Memory of a command that was refused, so that a scheduler which gives it again does not start it again.

A job that ended with status 2 has something wrong in its command, or in a file that it names. Schedulers start it
again all the same: each time on new nodes, for nothing. So the next launch of the same command ends at once, with
the same message. The record lies beside the run, in the folder of runs, or else in CAUSALFUSION_HOME.

Only `UserError` is remembered. After other ends the same command may succeed: a stop (75), and a fault of the
machine or of training (3). An error of the operating system is not remembered: a folder may be mounted later.
`NotNow` is not remembered either: the run is under way, or a cluster or a service refuses for the moment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...config.commands import RECHECK
from ...config.errors import NotNow, UserError
from ...config.files import home
from ...config.schema import Experiment
from ...config.secrets import redact
from ...storage.atomic import write_atomically
from ...storage.json_file import read_model
from ...storage.objects import ObjectUrl, open_store
from ...storage.run_layout import RunPaths
from ...tracking.lineage import git_sha, package_versions

logger = logging.getLogger(__name__)

FOLDER = ".refused"
LASTS_SECONDS = 24 * 3600.0
"""Age of a record at which it is forgotten: what it depends on may be outside of all that is compared."""
_OF_ENVIRONMENT = ("CAUSALFUSION_", "MLFLOW_", "PYTHONPATH")
"""Beginnings of the names of variables that a command depends on."""
_MOST_FILES = 20_000
_LARGEST = 1 << 20


class _Record(BaseModel):
    """A refused command."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    digest: str
    """Digest of all that the refusal depends on."""
    message: str
    when: float
    """UNIX time, seconds."""


class Refused(UserError):
    """The same command was refused before, and nothing has changed since."""


@contextmanager
def remembering(
    experiment: Experiment, arguments: Sequence[str], *, scheduled: bool, recheck: bool = False
) -> Iterator[None]:
    """Remember that the launch in the body is refused, or refuse it at once where it was refused before.

    Args:
        experiment: the run or the sweep. It stands for the files of the configuration.
        arguments: the command line without the program.
        scheduled: the process is a job of a cluster. Elsewhere a person reads the message, and nothing is kept.
        recheck: try again in any case.

    Raises:
        Refused: with the message of the earlier launch.
    """
    if not scheduled:
        yield
        return
    paths = [
        folder / FOLDER / f"{experiment.name}.json" for folder in dict.fromkeys((experiment.runs_folder, home()))
    ]
    arguments = [text for text in arguments if text != RECHECK]
    # As it was given: libraries set more in the body.
    environment = {name: value for name, value in os.environ.items() if name.startswith(_OF_ENVIRONMENT)}
    if recheck:
        _forget(paths)
    elif (record := _find(paths)) is not None and record.digest == _digest(experiment, arguments, environment):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.when))
        raise Refused(
            f"{record.message}\n"
            f"  refused before, at {when}: neither the command nor its configuration, files or version have "
            f"changed since\n  to try all the same, add {RECHECK}"
        )
    try:
        yield
    except UserError as error:
        if not isinstance(error, NotNow) and not recheck:
            digest = _digest(experiment, arguments, environment)
            _keep(paths, _Record(digest=digest, message=redact(str(error)), when=time.time()))
        raise
    _forget(paths)


def _find(paths: Sequence[Path]) -> _Record | None:
    for path in paths:
        with suppress(OSError, ValueError):  # none, or a damaged one
            record = read_model(path, _Record, _LARGEST)
            if 0 <= time.time() - record.when < LASTS_SECONDS:
                return record
    return None


def _keep(paths: Sequence[Path], record: _Record) -> None:
    for path in paths:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (record.model_dump_json(indent=2) + "\n").encode(), private=True)
            return
    logger.warning("this refusal cannot be remembered: no folder can be written")


def _forget(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _digest(experiment: Experiment, arguments: Sequence[str], environment: dict[str, str]) -> str:
    """Return a digest of all that a refusal depends on, as far as it is on this machine or on shared storage."""
    tree = {
        "arguments": list(arguments),
        "experiment": experiment.model_dump(mode="json"),
        "version": [git_sha(), *sorted(package_versions().items())],
        "environment": environment,
        "files": [[str(path), _state_of(path)] for path in _places(experiment)],
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _places(experiment: Experiment) -> list[Path | ObjectUrl]:
    """Return the files and folders that a launch reads. What it finds there may be wrong, and may be mended."""
    data, finetune, run = experiment.data, experiment.finetune, RunPaths(experiment.run_dir)
    found: list[Any] = [data.path, data.validation, data.tokenizer, data.subset and data.subset.of]
    if finetune is not None:
        found += [finetune.weights, finetune.test, finetune.vae]
    found += [run.state_file, run.checkpoints, _module_file(experiment.task)]
    return [place for place in found if place is not None]


def _module_file(task: str) -> Path | None:
    """Return the folder of the module of a task of one's own."""
    module, colon, _ = task.partition(":")
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(module) if colon else None
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent
    return None


def _state_of(path: Path | ObjectUrl) -> list[list[Any]]:
    """Return name, size and time of change of a file, or of the files in a folder and in the folders inside.

    Objects have a tag in place of the time.
    """
    if isinstance(path, ObjectUrl):
        with suppress(OSError, UserError):
            return [[info.key, info.size, info.etag] for info in open_store(path).list()]
        return []
    found = []
    with suppress(OSError):
        files = [path] if path.is_file() else sorted([*path.glob("*"), *path.glob("*/*"), *path.glob("*/*/*")])
        for file in files[:_MOST_FILES]:
            if "__pycache__" not in file.parts and file.is_file():
                status = file.stat()
                found.append([str(file), status.st_size, status.st_mtime_ns])
    return found
