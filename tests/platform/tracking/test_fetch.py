"""Artifacts of a run, fetched from a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.tracking.fetch import fetch_artifacts, fetch_job
from causalfusion_platform.tracking.mlflow import client, open_experiment


def made(uri: str, folder: Path, name: str, files: dict[str, str], **tags: str) -> str:
    """Return the id of a run with artifacts."""
    api = client(uri)
    experiment = open_experiment(api, uri, "some", folder / "artifacts")
    run_id: str = api.create_run(experiment, run_name=name, tags=tags).info.run_id
    for path, text in files.items():
        api.log_text(run_id, text, path)
    return run_id


def test_all_files_come_with_their_folders(uri: str, tmp_path: Path) -> None:
    files = {"config.yaml": "a: 1", "report/report.md": "# Table", "report/deep/values.txt": "1 2"}
    run_id = made(uri, tmp_path, "it's a table", files)
    made(uri, tmp_path, "another", {"config.yaml": "b: 2"})
    for name in (run_id, "it's a table"):
        to = tmp_path / f"to-{len(name)}"
        fetched = fetch_artifacts(uri, name, to)
        assert {path.relative_to(to).as_posix(): path.read_text() for path in fetched} == files
        assert {path for path in to.rglob("*") if path.is_file()} == set(fetched)


def test_a_name_that_two_runs_have_and_one_that_none_has(uri: str, tmp_path: Path) -> None:
    ids = {made(uri, tmp_path, "twice", {}) for _ in range(2)}
    with pytest.raises(UserError, match="several runs named 'twice'") as caught:
        fetch_artifacts(uri, "twice", tmp_path / "to")
    assert all(one in str(caught.value) for one in ids)
    with pytest.raises(UserError, match="has no run with the name or id 'thrice'"):
        fetch_artifacts(uri, "thrice", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_the_runs_of_a_job_come_without_the_trials_of_its_sweep(uri: str, tmp_path: Path) -> None:
    job = {"causalfusion.job": "gamma-1"}
    sweep = made(uri, tmp_path, "gamma", {"report.md": "# Gamma"}, **job)
    made(uri, tmp_path, "gamma/trial-0", {"config.yaml": "a: 1"}, **job, **{"mlflow.parentRunId": sweep})
    made(uri, tmp_path, "gamma", {"report.md": "another"}, **{"causalfusion.job": "gamma-2"})
    assert [path.read_text() for path in fetch_job(uri, "gamma-1", tmp_path / "to")] == ["# Gamma"]
    # A trial of an earlier job's sweep, which this job has continued.
    made(uri, tmp_path, "old/trial-1", {"a.txt": "1"}, **job, **{"mlflow.parentRunId": "another"})
    both = fetch_job(uri, "gamma-1", tmp_path / "both")
    assert {path.relative_to(tmp_path / "both").as_posix() for path in both} == {
        "gamma/report.md",
        "old-trial-1/a.txt",
    }
    with pytest.raises(UserError, match="knows no run of job 'gamma-3'"):
        fetch_job(uri, "gamma-3", tmp_path / "none")


def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no MLflow server answers at tracking.uri http://127.0.0.1:9"):
        fetch_artifacts("http://127.0.0.1:9", "some", tmp_path)
