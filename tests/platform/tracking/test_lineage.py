"""Where a run comes from: compared with git's own files and the installed packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.tracking import lineage


@pytest.fixture
def checkout(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git repository with one commit, from which the package seems to be run."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(own_folder))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    folder = own_folder / "checkout"
    folder.mkdir()
    (folder / "lineage.py").write_text("first\n")
    who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    monkeypatch.setattr(lineage, "__file__", str(folder / "lineage.py"))
    return folder


def test_the_commit_that_runs(checkout: Path) -> None:
    sha = (checkout / ".git/refs/heads/main").read_text().strip()
    assert len(sha) == 40
    assert lineage.git_sha() == sha
    (checkout / "note.txt").write_text("not part of the code")
    assert lineage.git_sha() == sha
    (checkout / "lineage.py").write_text("second\n")
    assert lineage.git_sha() == f"{sha}-dirty"


def test_no_repository(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(own_folder.parent))
    monkeypatch.setattr(lineage, "__file__", str(own_folder / "lineage.py"))
    assert lineage.git_sha() == "unknown"


def test_a_repository_without_commits(checkout: Path) -> None:
    (checkout / ".git/refs/heads/main").unlink()
    assert lineage.git_sha() == "unknown"


@pytest.mark.usefixtures("checkout")
def test_no_git(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own_folder))
    assert lineage.git_sha() == "unknown"


@pytest.mark.usefixtures("checkout")
def test_a_git_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in a large checkout on a slow file system: a run does not fail for that."""

    def wait(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", wait)
    assert lineage.git_sha() == "unknown"


def test_the_tags_name_code_data_and_libraries(digits_folder: Path, checkout: Path) -> None:
    import mlflow
    import torch

    manifest = Manifest.read(digits_folder)
    tags = lineage.lineage_tags(manifest, None)
    assert tags["git.sha"] == (checkout / ".git/refs/heads/main").read_text().strip()
    assert tags["data.digest"] == manifest.digest
    assert tags["data.autoencoder"] == "identity"
    assert "handwritten digits" in tags["data.source"]
    assert tags["version.torch"] == torch.__version__
    assert tags["version.mlflow"] == mlflow.__version__
    assert {"version.ray", "version.deepspeed", "version.causalfusion-platform"} <= set(tags)


def test_the_dashboards_own_words(digits_folder: Path, checkout: Path) -> None:
    """Read by MLflow under these names."""
    from mlflow.utils import mlflow_tags as names

    manifest = Manifest.read(digits_folder)
    tags = lineage.lineage_tags(manifest, "alice")
    assert tags[names.MLFLOW_USER] == tags["causalfusion.user"] == "alice"
    assert tags[names.MLFLOW_SOURCE_NAME] == "causalfusion"
    assert tags[names.MLFLOW_GIT_COMMIT] == tags["git.sha"]
    (checkout / "lineage.py").write_text("second\n")
    assert lineage.lineage_tags(manifest, None)[names.MLFLOW_GIT_COMMIT] == tags["git.sha"]  # without -dirty
    (checkout / ".git/refs/heads/main").unlink()
    assert not {names.MLFLOW_USER, names.MLFLOW_GIT_COMMIT} & set(lineage.lineage_tags(manifest, None))


def test_the_job_that_a_run_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAUSALFUSION_JOB", raising=False)
    assert lineage.job_tags() == {}
    monkeypatch.setenv("CAUSALFUSION_JOB", "first-1")
    assert lineage.job_tags() == {"causalfusion.job": "first-1"}
