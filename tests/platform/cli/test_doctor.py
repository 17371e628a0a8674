"""The whole doctor, on a machine that is in order but for one thing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.cli.conftest import Run, check_refusal


def test_one_fault_is_status_2_and_the_other_checks_go_on(
    run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = run("doctor", "smoke", "data.prepare=false")
    assert result.status == 2
    lines = result.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    # A slow machine also shows lines of progress: "doctor 8/14 checks, 00:05".
    marked = [line for line in lines if line[:5].strip() in ("ok", "warn", "FAIL")]
    verdicts = {line[5:17].strip(): line[:5].strip() for line in marked}
    assert list(verdicts) == [
        "python",
        "packages",
        "compiler",
        "GPU",
        "task",
        "storage",
        "disk",
        "shards",
        "MLflow",
        "Ray token",
        "Ray cluster",
        "ports",
        "memory",
        "dry step",
    ]
    assert {name for name, verdict in verdicts.items() if verdict == "FAIL"} == {"shards"}
    text = " ".join(result.out.split())
    assert "shards/digits is not a folder of latent shards" in text
    assert "→ make them from images: causalfusion data encode" in text
    assert "1 check failed" in text
    assert list(own_folder.iterdir()) == []


def test_an_unknown_experiment_is_refused(run: Run) -> None:
    check_refusal(run("doctor", "smok"), "no experiment 'smok'")
