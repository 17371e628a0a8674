"""Resume jobs of a stand-in for a Ray head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.platform.launch.cluster.fake_head import FakeHead

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster import submit as submit_module
from causalfusion_platform.launch.cluster.resume import resume_job

ANNA = {"CAUSALFUSION_USER": "anna"}


class Client:
    """Stands in for Ray's client, and keeps what was submitted."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, Any]] = []

    def submit_job(self, **job: Any) -> str:
        self.submitted.append(job)
        return str(job["submission_id"])


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client()
    monkeypatch.setattr(submit_module, "connect", lambda head: found)
    return found


def test_the_same_command_and_environment_again(
    ray_head: FakeHead, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ray_head.add("one", "STOPPED")
    ray_head.packages.add("gcs://_ray_pkg_1.zip")
    assert resume_job("one", [ray_head.cluster], wait=False, environ=ANNA) == 0
    [job] = client.submitted
    new = capsys.readouterr().out.strip()
    assert new.startswith("first-")
    assert job == {
        "entrypoint": ray_head.jobs["one"]["entrypoint"],
        "submission_id": new,
        "metadata": ray_head.jobs["one"]["metadata"] | {"causalfusion.resumes": "one"},
        "runtime_env": {
            "working_dir": "gcs://_ray_pkg_1.zip",
            "env_vars": ray_head.jobs["one"]["runtime_env"]["env_vars"] | {"CAUSALFUSION_JOB": new},
        },
    }


def test_a_directory_that_ray_has_removed_is_sent_again(ray_head: FakeHead, client: Client, tmp_path: Path) -> None:
    ray_head.add("one", "FAILED", 75)
    with pytest.raises(UserError, match=r"no longer on the cluster.*\n.*--working-dir FOLDER"):
        resume_job("one", [ray_head.cluster], wait=False, environ=ANNA)
    ray_head.jobs["one"]["metadata"]["causalfusion.folder"] = str(tmp_path)
    resume_job("one", [ray_head.cluster], wait=False, environ=ANNA)
    (tmp_path / "another").mkdir()
    resume_job("one", [ray_head.cluster], working_dir=tmp_path / "another", wait=False, environ=ANNA)
    sent = [job["runtime_env"]["working_dir"] for job in client.submitted]
    assert sent == [str(tmp_path), str(tmp_path / "another")]
    assert all(".git" in job["runtime_env"]["excludes"] for job in client.submitted)


def test_a_job_without_a_directory(ray_head: FakeHead, client: Client) -> None:
    ray_head.add("one", "FAILED", 3, user=None, runtime_env=None)
    with pytest.raises(UserError, match="does not say whose it is"):
        resume_job("one", [ray_head.cluster], wait=False, environ=ANNA)
    resume_job("one", [ray_head.cluster], new_id="two", anyway=True, wait=False, environ=ANNA)
    assert client.submitted[0]["runtime_env"] == {}
    assert client.submitted[0]["submission_id"] == "two"


@pytest.mark.parametrize("status", ["RUNNING", "PENDING"])
def test_a_job_that_has_not_ended_is_not_resumed(ray_head: FakeHead, client: Client, status: str) -> None:
    ray_head.add("one", status)
    with pytest.raises(UserError, match=f"is {status.lower()}: it can be resumed when it has ended"):
        resume_job("one", [ray_head.cluster], anyway=True, environ=ANNA)
    assert client.submitted == []


def test_a_finished_job_says_so(ray_head: FakeHead, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ray_head.add("one", "SUCCEEDED", 0)
    assert resume_job("one", [ray_head.cluster], environ=ANNA) == 0
    assert "has finished: nothing is left to resume" in capsys.readouterr().err
    assert client.submitted == []


def test_a_wrong_argument_is_not_resumed_by_itself(ray_head: FakeHead, client: Client) -> None:
    ray_head.add("one", "FAILED", 2)
    ray_head.packages.add("gcs://_ray_pkg_1.zip")
    with pytest.raises(UserError, match=r"ended with status 2(.|\n)*--anyway"):
        resume_job("one", [ray_head.cluster], environ=ANNA)
    assert client.submitted == []
    resume_job("one", [ray_head.cluster], anyway=True, wait=False, environ=ANNA)
    assert len(client.submitted) == 1


def test_a_run_that_another_job_continues_is_left_to_it(ray_head: FakeHead, client: Client) -> None:
    ray_head.add("one", "STOPPED")
    ray_head.add("two", entrypoint=ray_head.jobs["one"]["entrypoint"])
    with pytest.raises(UserError, match="job 'two' is running with the same command"):
        resume_job("one", [ray_head.cluster], environ=ANNA)
    ray_head.jobs["two"]["runtime_env"]["env_vars"]["CAUSALFUSION_HOME"] = "/another"
    ray_head.packages.add("gcs://_ray_pkg_1.zip")
    resume_job("one", [ray_head.cluster], wait=False, environ=ANNA)
    assert len(client.submitted) == 1
