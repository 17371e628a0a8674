"""Names of runs, read from command lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.run_name import check_job_id, new_job_id, run_of, tracking_of


@pytest.mark.parametrize("experiment", ["smoke", "sweeps/gamma", "text"])
def test_the_name_is_that_of_the_composed_experiment(experiment: str) -> None:
    assert run_of(["train", experiment]) == compose_experiment(experiment).experiment.name
    assert run_of(["train", "--dry-run", experiment, "name=a", "name='b'"]) == "b"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("quickstart", "quickstart"),
        ("reproduce table3a", "table3a"),
        ("finetune classify runs/first", "first-classify"),
        ("generate runs/first --num 20", "first"),
        ("train of-the-cluster", "of-the-cluster"),
        ("train ./folder/of-the-cluster.yaml", "of-the-cluster"),
        ("data digits shards", None),
        ("train", None),
    ],
)
def test_names_of_other_commands(line: str, name: str | None) -> None:
    assert run_of(line.split()) == name


def test_the_address_of_mlflow(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntracking: {uri: 'http://me:geheim@host:5000'}\n")
    assert tracking_of(["train", str(tmp_path / "mine.yaml")]) == "http://***@host:5000"
    assert tracking_of(["train", "smoke", "tracking.uri=http://a:1"]) == "http://a:1"
    assert tracking_of(["train", "smoke"]) is None
    assert tracking_of(["quickstart"]) is None


def test_ids_of_jobs_are_different_and_names_of_files() -> None:
    ids = {new_job_id("table 3/γ=1.0, the second" * 9) for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"table-3-1.0-the-second[\w.-]*-[a-z2-9]{6}", one) and len(one) < 48 for one in ids)
    assert re.fullmatch(r"job-[a-z2-9]{6}", new_job_id("γ"))
    assert all(check_job_id(one) == one for one in ids)


@pytest.mark.parametrize("job_id", ["", "a/b", "../a", "-a", "a b", "γ", "a" * 101])
def test_an_id_that_is_no_name_of_a_file_is_refused(job_id: str) -> None:
    with pytest.raises(UserError, match="--job-id"):
        check_job_id(job_id)
