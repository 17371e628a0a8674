"""Pages: whole, escaped, and without anything from elsewhere."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest
from tests.platform.report.made_tables import AROUND, gammas, losses, plane, report_of
from tests.platform.report.pages import check_alone

from causalfusion_platform.config.paper_table import Row
from causalfusion_platform.report.html import Picture
from causalfusion_platform.report.paper import words
from causalfusion_platform.report.paper.pages import paper_page
from causalfusion_platform.report.sweeps.html import SweepReport, outcome, sweep_page
from causalfusion_platform.report.sweeps.records import TrialRecord

ATTACK = "\"><script>alert('x')</script><img src=http://example.com/x.png>"


def trials() -> list[TrialRecord]:
    def made(name: str, rate: float, metrics: dict[str, float | None], **facts: Any) -> TrialRecord:
        return TrialRecord(name, {"optim.base_lr": rate, "seed": 0}, metrics, folder=f"/runs/{name}", **facts)

    return [
        made("slow", 1e-4, {"fd": 9.5, "speed": 100.0}, seconds=61, mlflow_run_id="aa"),
        made("good", 2e-4, {"fd": 3.25, "speed": 90.0}, seconds=62, mlflow_run_id="bb"),
        made("early", 3e-4, {"fd": 1.0}, status="ended early"),
        made("bad", 1.0, {}, status="failed", error=f"RuntimeError: {ATTACK}"),
    ]


def sweep(**changes: Any) -> SweepReport:
    values: dict[str, Any] = {
        "name": "lr",
        "description": "Which rate?",
        "metric": "fd",
        "mode": "min",
        "trials": trials(),
        "planned": 4,
        "generated_at": "2031-02-03",
        "command": "causalfusion sweep sweeps/lr",
    }
    return SweepReport(**{**values, **changes})


PICTURE = Picture("a figure", b"\x89PNG not really", "what it shows")


def test_pictures_are_part_of_the_page() -> None:
    for source in (sweep_page(sweep(), [PICTURE]), paper_page(report_of(gammas()), [PICTURE])):
        page = check_alone(source)
        sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
        assert [base64.b64decode(value.partition(",")[2]) for value in sources] == [PICTURE.png]
        assert page.texts["figcaption"] == ["what it shows"]


def test_all_that_is_given_is_escaped() -> None:
    attacked: dict[str, Any] = {"generated_at": ATTACK, "command": ATTACK, "lineage": {ATTACK: ATTACK}}
    report = sweep(name=ATTACK, description=ATTACK, changed=[(ATTACK, ATTACK, [ATTACK])], metric=ATTACK, **attacked)
    rows = (Row(file="a", label=ATTACK, printed=(1.0, 2.0)), Row(file="b", label="b", printed=(2.0, 3.0)))
    around = dataclasses.replace(AROUND, hardware=ATTACK, **attacked)
    table = gammas(rows=rows, claims=(), title=ATTACK, measured=ATTACK, varied=ATTACK, note=ATTACK)
    picture = Picture(ATTACK, b"x", ATTACK)
    sweeps = check_alone(sweep_page(report, [picture]))
    papers = check_alone(paper_page(report_of(table, around=around), [picture]))
    for page in (sweeps, papers):
        assert len(page.texts["script"]) == 1
        for tag in ("title", "h1", "p", "dt", "dd", "figcaption", "td", "th"):
            assert any(ATTACK in text for text in page.texts[tag]), tag


def test_numbers_can_be_sorted_as_numbers() -> None:
    trial = TrialRecord("a", {"lr": 0.123456, "flag": True}, {"fd": float("nan"), "speed": None})
    page = check_alone(sweep_page(sweep(trials=[trial]), []))
    assert page.tables[0] == [
        ["trial", "status", "lr", "flag", "fd", "speed", "seconds", "folder", "MLflow run"],
        ["a", "finished", "0.1235", "true", "nan", "–", "–", "", "–"],
    ]
    assert [value for _, name, value in page.attributes if name == "data-number"] == ["0.123456"]
    assert sum(name == "data-empty" for _, name, _ in page.attributes) == 3


# Sweeps


def test_a_sweeps_page_has_every_trial_the_best_first() -> None:
    page = check_alone(sweep_page(sweep(), [PICTURE]))
    (found,) = page.tables
    assert found[0][:6] == ["trial", "status", "base_lr", "seed", "fd", "speed"]
    assert found[0][6:] == ["seconds", "error", "folder", "MLflow run"]
    assert [row[0] for row in found[1:]] == ["good", "slow", "early", "bad"]
    assert found[1][2:] == ["0.0002", "0", "3.25", "90", "62", "–", "/runs/good", "bb"]
    assert found[4][7] == "RuntimeError: " + ATTACK
    assert [value for tag, name, value in page.attributes if (tag, name) == ("tr", "class")] == ["best"]


def test_a_trial_that_was_ended_early_is_not_the_best() -> None:
    assert outcome(sweep())["best"] == "good: fd 3.25 with base_lr = 0.0002, seed = 0"
    assert outcome(sweep(mode="max"))["best"].startswith("slow: fd 9.5")
    assert outcome(sweep(trials=trials()[2:]))["best"] == "none has a result"


def test_the_outcome_counts_and_says_how_to_go_on() -> None:
    assert outcome(sweep())["trials"] == "4 of 4: 2 finished, 1 ended early, 1 failed"
    assert outcome(sweep())["to finish"] == "causalfusion sweep sweeps/lr"
    assert "to finish" not in outcome(sweep(trials=trials()[:3], planned=3))
    assert "to finish" in outcome(sweep(trials=trials()[:3], planned=9))
    assert outcome(sweep(trials=[]))["trials"] == "0 of 4: none yet"


def test_a_sweeps_page_shows_configuration_and_lineage() -> None:
    report = sweep(changed=[("train.images", 102400, 25600), ("x", None, "a<b")], lineage={"commit": "0123abc"})
    page = check_alone(sweep_page(report, []))
    assert page.tables[1] == [["key", "default", "here"], ["train.images", "102400", "25600"], ["x", "null", "a<b"]]
    assert "0123abc" in page.texts["dd"]
    assert "Which rate?" in page.texts["p"]
    assert page.texts["h1"] == ["Sweep lr"]


def test_a_sweep_without_trials_has_a_page() -> None:
    assert check_alone(sweep_page(sweep(trials=[]), [])).tables == []


# Tables of the paper


def test_a_papers_page_has_table_verdicts_and_runs() -> None:
    report = report_of(gammas(note="A note."), without=[("g09", 1)])
    page = check_alone(paper_page(report, [PICTURE]))
    [(_, names, *rows)] = [found for found in page.tables if found[0] == ["", "S = 1 ↓", "S = 2 ↓"]]
    assert page.texts["h2"] == [
        "Orderings of the paper", "Figures", "Table", "Budget", "Limits", "Runs", "Made from",
    ]  # fmt: skip
    assert names == ["γ", "paper", "ours", "paper", "ours"]
    assert rows[0][:3] == ["1.0", "21.31", "10.666 ± 0.026"]
    assert rows[1][2].endswith("†")
    # At S = 2 the paper's 0.8 and 0.9 lie 0.08 apart: too little for the two seeds that both have.
    assert page.texts["span"] == ["holds", "holds", "undecided"]
    assert len(page.texts["summary"]) == 3
    runs = next(found for found in page.tables if "MLflow run" in found[0])
    assert len(runs) == 1 + 8
    assert runs[1][:5] == ["1.0", "0", "finished", "10.65", "11.09"]
    assert runs[1][-2:] == ["/runs/g10.seed-0", "g100"]
    shown = " ".join(page.texts["p"])
    command = "causalfusion reproduce gammas --scale digits"
    for part in ("A note.", "Missing: γ 0.9: seed 1.", command, "2031-02-03 04:05 UTC"):
        assert part in shown
    assert "2 cores" in page.texts["dd"]


def test_a_papers_page_says_how_orderings_are_decided_and_how_noisy_numbers_are() -> None:
    around = dataclasses.replace(AROUND, repeats={"S = 1": [(10.0, 10.5)]})
    report = report_of(losses(), around=around)
    shown = check_alone(paper_page(report, [])).texts["p"]
    [noise] = words.noise(report)
    assert words.method(report) in shown and noise in shown


@pytest.mark.parametrize("without", [[], [(file, seed) for file in ("s1", "s256", "random") for seed in (0, 1, 2)]])
def test_a_papers_page_stands_alone_whatever_is_measured(without: list[tuple[str, int]]) -> None:
    check_alone(paper_page(report_of(plane(), without=without), []))
