"""`causalfusion jobs` on stand-ins for Ray heads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.launch.cluster.fake_head import TOKEN, FakeHead, fake_head

from causalfusion_platform.launch.cluster.session import free_port


@pytest.fixture
def ray_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHead]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("CAUSALFUSION_USER", "anna")
    monkeypatch.setenv("COLUMNS", "80")
    with fake_head() as head:
        monkeypatch.setenv("CAUSALFUSION_CLUSTERS", str(tmp_path / "clusters.yaml"))
        gone = f"http://127.0.0.1:{free_port()}"
        (tmp_path / "clusters.yaml").write_text(
            f"lab: {{address: '{head.address}'}}\ngone: {{address: '{gone}'}}\n"
        )
        yield head


def test_all_clusters_of_the_file_are_listed(ray_head: FakeHead, run: Run) -> None:
    ray_head.add("first-abc", "FAILED", 75)
    listed = run("jobs", "list")
    assert listed.status == 0, listed.err
    lines = listed.out.splitlines()
    assert lines[0] == "cluster lab: 1 jobs"
    assert "continue later (75)" in lines[2]
    assert lines[3] == "  first: train smoke name=first-abc"
    assert lines[4] == "cluster gone"
    assert lines[5].startswith("  does not answer: no Ray head answers at http://127.0.0.1:")
    assert all(len(line) <= 80 for line in lines[:5])


def test_json_has_the_jobs_and_the_clusters_that_do_not_answer(ray_head: FakeHead, run: Run) -> None:
    ray_head.add("first-abc")
    tree = json.loads(run("jobs", "list", "--json").out)
    assert [(job["cluster"], job["job"], job["state"]) for job in tree["jobs"]] == [("lab", "first-abc", "running")]
    assert [one["cluster"] for one in tree["unreachable"]] == ["gone"]


def test_one_cluster_without_jobs_and_old_jobs(ray_head: FakeHead, run: Run) -> None:
    assert "no jobs at lab" in run("jobs", "list", "--address", "lab").out
    for number in range(25):
        ray_head.add(f"job-{number}", "SUCCEEDED", 0)
    assert "and 5 older: --all" in run("jobs", "list", "--address", "lab").out
    assert len(json.loads(run("jobs", "list", "--address", "lab", "--all", "--json").out)["jobs"]) == 25


def test_no_answer_at_all_is_an_error(ray_head: FakeHead, run: Run) -> None:
    check_refusal(run("jobs", "list", "--address", "gone"), "no Ray head answers")
    nobody = run("jobs", "list", "--address", "gone", "--address", f"http://127.0.0.1:{free_port()}")
    assert nobody.status == 2
    assert "none of 2 clusters answers" in nobody.err


def test_logs_are_printed_as_they_are(ray_head: FakeHead, run: Run) -> None:
    ray_head.add("one", "FAILED", 2)
    ray_head.logs["one"] = "γ = 1.0\nno end"
    told = run("jobs", "logs", "one")
    assert (told.status, told.out) == (0, "γ = 1.0\nno end")
    ray_head.add("never", "FAILED", None, message="runtime_env setup failed")
    never = run("jobs", "logs", "never")
    assert (never.status, never.out) == (0, "")
    assert "runtime_env setup failed" in never.err


def test_refusals(ray_head: FakeHead, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_head.add("bens", user="ben")
    check_refusal(run("jobs", "logs", "benz", "--address", "lab"), "no job 'benz'", "did you mean bens?")
    check_refusal(run("jobs", "stop", "bens", "--address", "lab"), "user 'ben'", "--anyway")
    check_refusal(run("jobs", "resume", "bens", "--address", "lab"), "is running", "jobs stop bens")
    check_refusal(run("jobs", "submit", "--env", "HF_TOKEN=geheim", "--", "train", "smoke"), "HF_TOKEN")
    check_refusal(run("submit", "--", "train", "smoke", "tracking.uri=http://a:geheim@b"), "tracking.uri")
    check_refusal(run("jobs", "list", "--address", "nosuch"), "names there: lab, gone")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    check_refusal(run("jobs", "stop", "bens", "--address", "lab"), "refuses the token")


def test_in_a_job_the_last_line_tells_the_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "exit status" not in run("config", "show", "nosuch").err
    monkeypatch.setenv("CAUSALFUSION_JOB", "first-1")
    assert run("config", "show", "nosuch").err.endswith("\ncausalfusion: exit status 2 (wrong argument)\n")
    assert "exit status" not in run("config", "list").err
