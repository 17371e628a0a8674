"""The table of jobs."""

from __future__ import annotations

import time

import pytest
from rich.cells import cell_len

from causalfusion_platform.report.jobs import ClusterJob, job_json, jobs_lines, newest

NOW = 1_700_100_000.0
STARTED = 1_700_000_000.0
LONG = "sweep sweeps/gamma name=gamma train.images=25600 objective.ar_weight=1.0 model.width=128 seed=7"


def job(id: str = "gamma-x7kq2m", status: int | None = None, **more: object) -> ClusterJob:
    values: dict[str, object] = {"command": LONG, "user": "anna", "run": "gamma", "started": STARTED}
    state = "running" if status is None else "ended"
    return ClusterJob(id=id, state=state, status=status, **(values | more))  # type: ignore[arg-type]


def when(seconds: float) -> str:
    return time.strftime("%m-%d %H:%M", time.localtime(seconds))


def test_a_wide_terminal_has_a_line_for_each_job() -> None:
    lines = jobs_lines([job(), job("b", 75, ended=STARTED + 62)], 140, NOW)
    assert lines[0].split() == ["job", "state", "user", "started", "took", "run", "command"]
    assert lines[1].split()[:6] == ["gamma-x7kq2m", "running", "anna", *when(STARTED).split(), "27:46:40"]
    assert "gamma  sweep sweeps/gamma name=gamma" in lines[1]
    assert "continue later (75)" in lines[2]
    assert "1:02" in lines[2]
    assert len(lines) == 3
    assert all(line.endswith("…") and cell_len(line) <= 140 for line in lines[1:])


@pytest.mark.parametrize("width", [80, 60])
def test_eighty_columns_have_two_lines_for_each_job(width: int) -> None:
    ids = ["gamma-x7kq2m", "γ" * 30, "a" * 70]
    jobs = [job(one, 2, user="somebody-with-a-name", ended=NOW) for one in ids]
    lines = jobs_lines(jobs, width, NOW)
    assert all(cell_len(line) <= max(width, 70) for line in lines)
    for one in ids:
        assert any(line.startswith(one) for line in lines), "an id is never cut"
    assert lines.count(lines[-1]) == 3
    assert lines[-1].startswith("  gamma: sweep sweeps/gamma")
    assert cell_len(lines[-1]) <= width


def test_what_is_not_known_is_a_dash() -> None:
    waiting = ClusterJob(id="raysubmit_1", state="pending", status=None, command="python a.py")
    assert jobs_lines([waiting], 80, NOW)[1:] == [
        "raysubmit_1  pending  –     –        –     –    python a.py",
    ]


def test_days_are_days() -> None:
    assert "5 days" in jobs_lines([job(started=NOW - 5 * 86_400)], 80, NOW)[1]


def test_old_jobs_are_left_out_unless_they_run() -> None:
    jobs = [job(str(number), None if number == 29 else 0) for number in range(30)]
    assert [one.id for one in newest(jobs)] == [*map(str, range(20)), "29"]


def test_json_has_names_and_no_variables() -> None:
    ended = job(status=143, ended=STARTED + 1.5, runtime_env={"env_vars": {"A": "secret"}})
    tree = job_json(ended, "lab", "http://a:1", NOW)
    assert (tree["cluster"], tree["job"], tree["status"], tree["status_name"]) == (
        "lab",
        "gamma-x7kq2m",
        143,
        "stopped",
    )
    assert tree["seconds"] == 1.5
    assert tree["command"] == LONG
    assert "secret" not in str(tree)
