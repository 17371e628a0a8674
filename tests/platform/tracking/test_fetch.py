"""Artifacts of a run, fetched from a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.tracking.fetch import fetch_artifacts
from causalfusion_platform.tracking.mlflow import client, open_experiment


def made(uri: str, folder: Path, name: str, files: dict[str, str]) -> str:
    """Return the id of a run with artifacts."""
    api = client(uri)
    run_id: str = api.create_run(open_experiment(api, uri, "some", folder / "artifacts"), run_name=name).info.run_id
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


def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no MLflow server answers at tracking.uri http://127.0.0.1:9"):
        fetch_artifacts("http://127.0.0.1:9", "some", tmp_path)
