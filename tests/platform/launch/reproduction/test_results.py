"""Reports of tables in one folder: what is copied, what is replaced, and the page over all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.platform.report.made_tables import gammas, report_of

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.reproduction.results import publish_report
from causalfusion_platform.launch.reproduction.rows import Reproduction, reproduction_of
from causalfusion_platform.report.paper.json import report_json


def reported(table: str, *pictures: str) -> Reproduction:
    """Return a table with a report in its folder."""
    found = reproduction_of(table, "mnist", seeds=[0])
    folder = found.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    tree = report_json(report_of(gammas())) | {"table": table, "source": found.table.source}
    (folder / "report.json").write_text(json.dumps(tree))
    for name in ("report.md", "report.html", "report.tex", *pictures):
        (folder / name).write_text(f"{table} {name}")
    return found


def test_reports_are_copied_and_listed(own_folder: Path) -> None:
    folder = own_folder / "results"
    first = publish_report(reported("table3a", "values.png", "loss.png"), folder)
    assert publish_report(reported("table2", "values.png"), folder) == first == folder / "README.md"
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert copied == {
        "README.md",
        *(f"table3a/{name}" for name in ("report.md", "report.json", "values.png", "loss.png")),
        *(f"table2/{name}" for name in ("report.md", "report.json", "values.png")),
    }
    assert (folder / "table3a/values.png").read_text() == "table3a values.png"
    page = first.read_text()
    assert page.index("[Table 2: ") < page.index("[Table 3a: ")


def test_a_later_report_replaces_an_earlier_one(own_folder: Path) -> None:
    """A picture that is drawn no more goes. Files that are not of a report stay."""
    folder = own_folder / "results"
    publish_report(reported("table3a", "values.png", "old.png"), folder)
    (folder / "table3a/notes.txt").write_text("mine")
    found = reported("table3a", "values.png")
    (found.folder / "report/old.png").unlink()
    publish_report(found, folder)
    assert {path.name for path in (folder / "table3a").iterdir()} == {
        *("report.md", "report.json", "values.png", "notes.txt"),
    }


def test_a_folder_that_cannot_be_written_is_named(own_folder: Path) -> None:
    (own_folder / "results").write_text("a file")
    with pytest.raises(UserError, match=r"--results .*results: (File exists|Not a directory)"):
        publish_report(reported("table3a"), own_folder / "results")
