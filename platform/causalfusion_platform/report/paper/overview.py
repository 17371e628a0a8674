"""One page over the reports of several tables: each claim, the paper's numbers, ours, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config.errors import UserError
from ...config.paper_table import HIGHER_IS_BETTER
from ...storage.json_file import Damaged, read_object
from ..html import render
from ..numbers import count, significant
from .content import Grid
from .json import FORMAT
from .numbers import gain_with_interval
from .statistics import DECIDED, VERDICTS, Gain

REPORT_FILE = "report.json"
OVERVIEW_FILE = "README.md"

Report = Mapping[str, Any]
"""The content of a report.json."""


def read_reports(folder: Path) -> list[Report]:
    """Return the reports in the folders below a folder, by the name of their table.

    Raises:
        UserError: one is damaged or of another version.
    """
    reports: list[Report] = []
    for path in sorted(folder.glob(f"*/{REPORT_FILE}")):
        try:
            report = read_object(path)
        except (Damaged, OSError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if report.get("format") != FORMAT:
            raise UserError(f"{path} has format {report.get('format')}, and this version reads {FORMAT}")
        reports.append(report)
    return reports


def render_overview(reports: Sequence[Report]) -> str:
    """Return the page as Markdown. Reports are linked as folders beside it."""
    tables = [(report, _claims_of(report)) for report in reports]
    paper = [pair for _, pairs in tables for pair in pairs if not pair[0].get("ours")]
    return render(
        "overview.md",
        tables=[(report, _grid(report, pairs)) for report, pairs in tables if pairs],
        without=[report for report, pairs in tables if not pairs],
        counts=_counts(paper),
        decided=sum(_either(claim, by_loss) in DECIDED for claim, by_loss in paper),
        total=len(paper),
        count=count,
    )


def _claims_of(report: Report) -> list[tuple[Report, Report | None]]:
    """Return each claim with its twin that the denoising loss decides."""
    by_loss = {claim["says"]: claim for claim in report["claims"] if claim.get("by_loss")}
    return [(claim, by_loss.get(claim["says"])) for claim in report["claims"] if not claim.get("by_loss")]


def _either(claim: Report, by_loss: Report | None) -> str:
    """Return the verdict of the paper's metric, or that of the loss if the metric leaves the claim undecided."""
    if claim["verdict"] in DECIDED or by_loss is None:
        return str(claim["verdict"])
    return str(by_loss["verdict"])


def _counts(claims: Sequence[tuple[Report, Report | None]]) -> str:
    counts = Counter(_either(claim, by_loss) for claim, by_loss in claims)
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])


def _grid(report: Report, claims: Sequence[tuple[Report, Report | None]]) -> Grid:
    return Grid(
        ["claim", "paper", "ours", "verdict", "by held-out loss"],
        [
            [
                f"{claim['column']}: {claim['says']}" + (" (ours)" if claim.get("ours") else ""),
                _printed(report, claim),
                _measured(claim),
                _bold(claim["verdict"]),
                "–" if by_loss is None else f"{_measured(by_loss)} {_bold(by_loss['verdict'])}",
            ]
            for claim, by_loss in claims
        ],
    )


def _bold(verdict: str) -> str:
    return f"**{verdict}**" if verdict in DECIDED else verdict


def _measured(claim: Report) -> str:
    """Return the least gain of the claim's pairs, and how many are as the claim says."""
    gains = [Gain(**pair["gain"]) for pair in claim["pairs"]]
    known = [gain for gain in gains if gain.mean is not None]
    if not known:
        return "–"
    least = min(known, key=lambda gain: gain.mean or 0.0)
    of = "" if len(gains) == 1 else f", {claim['as_printed']} of {len(gains)}"
    return f"{gain_with_interval(least)}{of}"


def _printed(report: Report, claim: Report) -> str:
    """Return the least gain of the claim's pairs in the paper's numbers, or a dash without such numbers."""
    gains = [*_printed_gains(report, claim)]
    return "–" if not gains or None in gains else f"+{significant(min(gain or 0.0 for gain in gains), 3)}"


def _printed_gains(report: Report, claim: Report) -> Iterator[float | None]:
    metrics = {column["name"]: column["metric"] for column in report["columns"]}
    sign = 1 if metrics[claim["column"]] in HIGHER_IS_BETTER else -1
    values = {row["file"]: row["values"] for row in report["rows"]}
    for pair in claim["pairs"]:
        better = values[pair["better"]][claim["column"]]["printed"]
        worse = values[pair["worse"]][claim.get("over") or claim["column"]]["printed"]
        yield None if better is None or worse is None else sign * (better - worse)
