"""Lineage of a run: code, data and library versions."""

from __future__ import annotations

import getpass
import os
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ..config.job_end import JOB_VARIABLE
from ..data.manifest import Manifest

JOB_TAG = "causalfusion.job"
"""Tag with the id of the Ray job that launched a run last."""

_PACKAGES = ("torch", "ray", "deepspeed", "mlflow", "diffusers", "pyarrow", "causalfusion-platform")


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that results depend on."""
    return {name: version(name) for name in _PACKAGES}


def git_sha() -> str:
    """Return the commit of the source checkout that runs, `-dirty` if it has changes, or `unknown`."""
    folder = Path(__file__).parent
    try:
        sha = _git(folder, "rev-parse", "HEAD")
        return f"{sha}-dirty" if _git(folder, "status", "--porcelain", "-uno") else sha
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def lineage_tags(manifest: Manifest) -> dict[str, str]:
    """Return tags with a run's lineage."""
    versions = {f"version.{name}": value for name, value in package_versions().items()}
    sha = git_sha()
    return {
        "git.sha": sha,
        **_in_mlflows_words(sha),
        "data.digest": manifest.digest,
        "data.source": manifest.source.location,
        "data.autoencoder": manifest.autoencoder.name,
        **versions,
    }


def job_tags() -> dict[str, str]:
    """Return the tag of the Ray job that this process belongs to, if it was submitted as one."""
    job = os.environ.get(JOB_VARIABLE)
    return {JOB_TAG: job} if job else {}


def _in_mlflows_words(sha: str) -> dict[str, str]:
    """Return the tags that MLflow's dashboard shows as a run's source, commit and creator."""
    tags = {"mlflow.source.name": "causalfusion", "mlflow.source.type": "LOCAL"}
    if sha != "unknown":
        tags["mlflow.source.git.commit"] = sha.removesuffix("-dirty")
    with suppress(KeyError, OSError, ImportError):  # a container whose user has no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=10
    ).stdout.strip()
