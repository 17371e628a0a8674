"""What reports leave in a folder."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from tests.platform.report.made_tables import gammas, plane, report_of
from tests.platform.report.pages import check_alone

from causalfusion_platform.report.html import Picture
from causalfusion_platform.report.sweeps.html import SweepReport
from causalfusion_platform.report.sweeps.records import TrialRecord
from causalfusion_platform.report.write import write_paper_report, write_sweep_report


def pictures(page: Path) -> int:
    return sum(tag == "img" for tag, name, _ in check_alone(page.read_text()).attributes if name == "src")


def test_a_papers_report_is_written_in_every_form(tmp_path: Path) -> None:
    folder = tmp_path / "new/report"
    paths = write_paper_report(report_of(plane()), folder, pictures=[Picture("more", b"png", "what more is")])
    texts = {f"report.{suffix}" for suffix in ("md", "tex", "json", "html")}
    assert {path.name for path in paths} == texts | {"values.png", "plane.png"}
    assert sorted(paths) == sorted(folder.iterdir())
    assert pictures(folder / "report.html") == 3
    assert json.loads((folder / "report.json").read_text())["table"] == "plane"
    text = (folder / "report.md").read_text()
    assert text.startswith("# Table 9")
    assert re.findall(r"^!\[(\w+)\]\((\S+)\)$", text, re.MULTILINE) == [
        ("values", "values.png"),
        ("plane", "plane.png"),
        ("more", "more.png"),
    ]
    assert "what more is" in text


def test_a_report_with_claims_begins_with_their_picture(tmp_path: Path) -> None:
    paths = write_paper_report(report_of(gammas()), tmp_path)
    assert {path.name for path in paths if path.suffix == ".png"} == {"claims.png", "values.png"}
    found = re.findall(r"^!\[(\w+)\]", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert found == ["claims", "values"]


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    write_paper_report(report_of(gammas(), without=[("g10", 0)]), tmp_path)
    before = (tmp_path / "report.md").read_text()
    write_paper_report(report_of(gammas()), tmp_path)
    assert "Missing" in before
    assert "Missing" not in (tmp_path / "report.md").read_text()


def test_a_sweeps_report_has_the_figures_that_its_trials_allow(tmp_path: Path) -> None:
    def trial(name: str, lr: float, order: str, fd: float | None) -> TrialRecord:
        metrics = {"fd": fd, "speed": lr}
        return TrialRecord(name, {"lr": lr, "order": order}, metrics, "failed" if fd is None else "finished")

    trials = [trial("a", 1, "x", 3.0), trial("b", 2, "y", 2.0), trial("c", 3, "y", None)]
    full = SweepReport("s", "", "fd", "min", trials, 3, "now", "again", second=("speed", "max"))
    one_key = [dataclasses.replace(one, values={"lr": one.metrics["speed"]}) for one in trials]
    cases = {
        "full": (full, {"parallel.png", "slices.png", "history.png", "pareto.png"}),
        "one key": (dataclasses.replace(full, trials=one_key, second=None), {"slices.png", "history.png"}),
        "one result": (dataclasses.replace(full, trials=trials[1:], second=None), {"slices.png"}),
        "failed": (dataclasses.replace(full, trials=trials[2:]), set()),
        "none": (dataclasses.replace(full, trials=[]), set()),
    }
    for name, (report, figures) in cases.items():
        paths = write_sweep_report(report, tmp_path / name)
        assert {path.name for path in paths} == figures | {"report.html"}, name
        assert pictures(tmp_path / name / "report.html") == len(figures)
