"""Lineage of a run: code, data and library versions."""

from __future__ import annotations

import os
import subprocess
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


def lineage_tags(manifest: Manifest, user: str | None) -> dict[str, str]:
    """Return tags with a run's lineage, and its user if there is a name."""
    versions = {f"version.{name}": value for name, value in package_versions().items()}
    sha = git_sha()
    return {
        "git.sha": sha,
        **_in_mlflows_words(sha),
        **(user_tags(user) if user is not None else {}),
        "data.digest": manifest.digest,
        "data.source": manifest.source.location,
        "data.autoencoder": manifest.autoencoder.name,
        **versions,
    }


def job_tags() -> dict[str, str]:
    """Return the tag of the Ray job that this process belongs to, if it was submitted as one."""
    job = os.environ.get(JOB_VARIABLE)
    return {JOB_TAG: job} if job else {}


def user_tags(user: str) -> dict[str, str]:
    """Return the tags that say whose run it is: that of MLflow's dashboard, and ours, which searches find alike."""
    return {"mlflow.user": user, "causalfusion.user": user}


def _in_mlflows_words(sha: str) -> dict[str, str]:
    """Return the tags that MLflow's dashboard shows as a run's source and commit."""
    tags = {"mlflow.source.name": "causalfusion", "mlflow.source.type": "LOCAL"}
    if sha != "unknown":
        tags["mlflow.source.git.commit"] = sha.removesuffix("-dirty")
    return tags


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=10
    ).stdout.strip()
