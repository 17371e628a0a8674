"""Files of experiments: the folders that are searched for them, and what a name or a path stands for."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from .commands import command
from .errors import UserError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast

HOME_VARIABLE = "CAUSALFUSION_HOME"
SUFFIX = ".yaml"
LARGEST = 1 << 20
"""Bytes above which a file is not an experiment."""

# A group of values, such as model/tiny.yaml, and the settings that rows of tables share have no name of their own.
_NAME_KEY = re.compile(r"^name\s*:", re.MULTILINE)
_GLOBAL = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)


@dataclass(frozen=True)
class ExperimentFile:
    """File of an experiment. Groups of values are looked up in its folder first."""

    folder: Path
    name: str
    """Path below the folder without its suffix, such as `sweeps/gamma`."""

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / f"{self.name}{SUFFIX}"


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


def own_folder() -> Path | None:
    """Return the working directory's folder of experiments. None: it is the shipped one, or does not exist."""
    folders = experiment_folders()
    return folders[0] if len(folders) > 1 else None


def experiment_files() -> dict[str, ExperimentFile]:
    """Return all experiments by name: the files with a `name` below the folders, the working directory's first."""
    found: dict[str, ExperimentFile] = {}
    for folder in experiment_folders():
        for path in sorted(folder.rglob(f"*{SUFFIX}")):
            name = path.relative_to(folder).as_posix().removesuffix(SUFFIX)
            # A folder or a pipe may have such a name too.
            if path.is_file() and name not in found and _NAME_KEY.search(read_text(path)):
                found[name] = _file(folder, name)
    return found


def experiment_names() -> list[str]:
    """Return the names of all experiments in order."""
    return sorted(experiment_files())


def description_of(path: Path) -> str:
    """Return the description in the file of an experiment, or the first line of its comment."""
    text = read_text(path)
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return "(this file is not YAML)"
    described = tree.get("description") if isinstance(tree, dict) else None
    comment = re.search(r"^#(?!\s*@package)\s*(.+)$", text, re.MULTILINE)
    return " ".join(str(described or (comment[1] if comment else "")).split())


def find_experiment(given: str) -> ExperimentFile:
    """Return the file that a name or a path stands for.

    A name is looked up in the folders of experiments. A path is looked up from the working directory. One that is
    absolute or begins with `./` or `../` is never a name.

    Raises:
        UserError: the experiment does not exist.
    """
    name, is_path = given.removesuffix(SUFFIX), given.startswith(("/", "./", "../"))
    folders = experiment_folders()
    for folder in [] if is_path else folders:
        if (folder / f"{name}{SUFFIX}").is_file():
            return _file(folder, name)
    path = Path(os.path.abspath(f"{name}{SUFFIX}"))  # noqa: PTH100 (links stay, and .. is taken away)
    if not path.is_file():
        raise UserError(_unknown(given, path, folders))
    for folder in folders:
        if path.is_relative_to(folder):
            return _file(folder, path.relative_to(folder).as_posix().removesuffix(SUFFIX))
    return ExperimentFile(path.parent, path.stem)


def _file(folder: Path, name: str) -> ExperimentFile:
    """Return a file below a folder. Hydra would put values of a subfolder's file without this header elsewhere."""
    path = folder / f"{name}{SUFFIX}"
    return (
        ExperimentFile(folder, name) if _GLOBAL.search(read_text(path)) else ExperimentFile(path.parent, path.stem)
    )


def read_text(path: Path) -> str:
    """Return the text of a file that people write, as far as an experiment goes.

    A byte that is not UTF-8 does not hide the rest.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(LARGEST)


def _unknown(given: str, path: Path, folders: list[Path]) -> str:
    names = experiment_names()
    near = difflib.get_close_matches(given.removesuffix(SUFFIX), names, n=1)
    places = ", ".join(str(folder) for folder in folders) or "(no experiments folder found)"
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"no experiment {given!r}{hint}\n  experiments: {', '.join(names)}\n  looked in: {places}\n"
        f"  and for the file {path}\n"
        f"  show one: {command('config', 'show', near[0] if near else 'quickstart')}"
    )
