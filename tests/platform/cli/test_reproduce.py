"""`causalfusion reproduce`: scales, what a dry run says, and seeds that are added."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.report.made_tables import by_the_loss, gammas, losses, report_of

from causalfusion_platform.launch.reproduction import reproduce as stages
from causalfusion_platform.launch.reproduction.rows import Reproduction
from causalfusion_platform.report.paper.report import PaperReport

Launched = list[tuple[int, ...]]


@pytest.mark.parametrize(
    ("table", "scale"), [("table3a", "mnist"), ("table6b", "digits"), ("figure5", "digits"), ("question1", "mnist")]
)
def test_the_scale_is_that_for_two_cores_unless_named(run: Run, own_folder: Path, table: str, scale: str) -> None:
    result = run("reproduce", table, "--dry-run")
    assert result.status == 0, result.err
    assert f"runs/{table}-{scale}\n" in result.out
    assert not (own_folder / "runs").exists()


def test_scales_that_are_not_there(run: Run, own_folder: Path) -> None:
    check_refusal(
        run("reproduce", "table3a", "--scale", "laptop"), "--scale laptop: allowed are digits, mnist, paper"
    )
    said = "Table 3a has no rows at scale digits; scales: paper, mnist"
    check_refusal(run("reproduce", "table3a", "--scale", "digits"), said)
    check_refusal(run("reproduce", "table9"), "no table 'table9'")


def test_seeds_cannot_be_added_where_a_table_plans_none(run: Run, own_folder: Path) -> None:
    said = ("--until-decided: Table 4 plans no further seeds at scale mnist", "--seeds 0,1,2,3")
    check_refusal(run("reproduce", "table4", "--until-decided", "--dry-run"), *said)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Launched]:
    """Return a function that replaces training by a report of rows that gain so much, and notes the seeds."""

    def replace(gain: float) -> Launched:
        found: Launched = []

        def reproduce(reproduction: Reproduction, _: object) -> PaperReport:
            found.append(reproduction.plan.seeds)
            return report_of(losses(claims=gammas().claims), by_the_loss(gain, gain))

        monkeypatch.setattr(stages, "reproduce", reproduce)
        return found

    return replace


@pytest.mark.parametrize(
    ("options", "gain", "seeds"),
    [
        (["--until-decided"], 0.0, [(0, 1, 2), (0, 1, 2, 3, 4, 5)]),
        (["--until-decided"], 5.0, [(0, 1, 2)]),
        ([], 0.0, [(0, 1, 2)]),
        (["--until-decided", "--seeds", "0,4"], 0.0, [(0, 4), (0, 4, 3, 5)]),
        (["--until-decided", "--seeds", "0,1,2,3,4,5"], 0.0, [(0, 1, 2, 3, 4, 5)]),
    ],
)
def test_seeds_are_added_once_while_a_claim_is_undecided(
    run: Run,
    own_folder: Path,
    launched: Callable[[float], Launched],
    options: list[str],
    gain: float,
    seeds: list[tuple[int, ...]],
) -> None:
    found = launched(gain)
    result = run("reproduce", "table3a", "--json", *options)
    assert result.status == 0, result.err
    assert found == seeds
    assert ("A claim is undecided: seeds " in result.out) == (len(seeds) > 1)
    assert json.loads(result.out.splitlines()[-1])["table"] == "gammas"
