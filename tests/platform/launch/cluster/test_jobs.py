"""Jobs of stand-ins for Ray heads: lists, and jobs that are not there."""

from __future__ import annotations

import pytest
from tests.platform.launch.cluster.fake_head import FakeHead, fake_head

from causalfusion_platform.config.errors import GAVE_UP, JOB_INTERRUPTED, JOB_STOPPED, UserError
from causalfusion_platform.launch.cluster.jobs import as_job, check_owner, exit_status, find_job, list_jobs
from causalfusion_platform.launch.cluster.named import Cluster
from causalfusion_platform.launch.cluster.session import free_port


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        *(("FAILED", code, code) for code in (2, 3, 75)),
        *(("FAILED", code, GAVE_UP) for code in (None, 1, 7, 15, 255, -9)),
        ("FAILED", -2, JOB_INTERRUPTED),
        ("FAILED", -15, JOB_STOPPED),
        ("STOPPED", None, JOB_STOPPED),
    ],
)
def test_the_exit_status_is_that_of_the_job(status: str, code: int | None, expected: int) -> None:
    assert exit_status(status, code) == expected


def test_a_job_is_read_from_rays_details(ray_head: FakeHead) -> None:
    ray_head.add("one", "FAILED", 75)
    job = as_job(ray_head.jobs["one"])
    assert (job.id, job.state, job.status, job.shown_state) == ("one", "ended", 75, "continue later (75)")
    assert (job.user, job.run, job.version) == ("anna", "first", "0.1.0")
    assert job.command == "train smoke name=one"
    assert job.seconds(0.0) == 3725.0
    assert "CAUSALFUSION_HOME" not in repr(job)


def test_a_job_of_another_program_is_read_too() -> None:
    details = {
        "submission_id": "raysubmit_1",
        "entrypoint": "python train.py --uri http://me:geheim@host",
        "status": "PENDING",
        "metadata": None,
        "runtime_env": None,
    }
    job = as_job(details)
    assert (job.state, job.status, job.user, job.run, job.started) == ("pending", None, None, None, None)
    assert job.command == "python train.py --uri http://***@host"
    assert "geheim" not in repr(job)


def test_clusters_are_listed_beside_one_that_is_gone(ray_head: FakeHead) -> None:
    ray_head.add("old", "SUCCEEDED", 0)
    ray_head.add("new", start_time=1_800_000_000_000)
    gone = Cluster("gone", f"http://127.0.0.1:{free_port()}", {})
    wrong = Cluster("wrong", ray_head.address, {"RAY_AUTH_TOKEN": "f" * 32})
    found, no_answer, refused = list_jobs([ray_head.cluster, gone, wrong])
    assert [job.id for job in found.jobs] == ["new", "old"]
    assert found.fault is None
    assert "no Ray head answers" in str(no_answer.fault)
    assert "refuses the token" in str(refused.fault)


def test_a_job_is_found_on_the_cluster_that_has_it(ray_head: FakeHead) -> None:
    gone = Cluster("gone", f"http://127.0.0.1:{free_port()}", {})
    with fake_head() as other:
        ray_head.add("one")
        other.add("two")
        other.add("both")
        found = find_job("two", [ray_head.cluster, gone, other.cluster])
        assert found.cluster.address == other.address
        assert found.command("stop") == f"causalfusion jobs stop two --address {other.address}"
        ray_head.add("both")
        with pytest.raises(UserError, match="is on several clusters"):
            find_job("both", [ray_head.cluster, other.cluster])


def test_an_unknown_job_is_refused_with_near_ones(ray_head: FakeHead) -> None:
    ray_head.add("gamma-x7kq2m")
    with pytest.raises(UserError, match="did you mean gamma-x7kq2m"):
        find_job("gamma-x7kq2n", [ray_head.cluster])
    with pytest.raises(UserError, match="did you mean gamma-x7kq2m"):
        find_job("first", [ray_head.cluster])  # the name of its run
    gone = Cluster("gone", f"http://127.0.0.1:{free_port()}", {})
    with pytest.raises(UserError, match="not asked, because it does not answer: no Ray head"):
        find_job("zzz", [ray_head.cluster, gone])
    ray_head.jobs.clear()
    with pytest.raises(UserError, match="a head that is started anew forgets them"):
        find_job("zzz", [ray_head.cluster])
    with pytest.raises(UserError, match="no Ray head answers"):
        find_job("zzz", [gone])


@pytest.mark.parametrize(
    ("owner", "says"), [("anna", None), ("ben", "of user 'ben', and you are 'anna'"), (None, "another program")]
)
def test_the_owner_of_a_job(ray_head: FakeHead, owner: str | None, says: str | None) -> None:
    ray_head.add("one", user=owner)
    found = find_job("one", [ray_head.cluster])
    check_owner(found, True, {"CAUSALFUSION_USER": "anna"})
    if says is None:
        check_owner(found, False, {"CAUSALFUSION_USER": "anna"})
    else:
        with pytest.raises(UserError, match=says):
            check_owner(found, False, {"CAUSALFUSION_USER": "anna"})
