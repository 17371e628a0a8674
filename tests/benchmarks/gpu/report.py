"""Results of the sections, their judgement, and one JSON of all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

Value = str | float | bool | None
Row = Mapping[str, Value]

ESTIMATE_TOLERANCE = 0.10
"""Largest relative difference between the peak of memory and its estimate."""


@dataclass(frozen=True)
class Check:
    """A requirement on a measurement."""

    name: str
    value: float | None
    """The measurement. None: it could not be made."""
    allowed: str
    passed: bool | None
    """None: not measured."""


class Report:
    """Rows of each section, checks, and the sections that ended early.

    Args:
        path: file of the JSON. It is written after every section, because a rented machine may go away.
        show: takes each line of text.
    """

    def __init__(self, path: Path | None = None, show: Callable[[str], None] = print) -> None:
        self.path, self.show = path, show
        self.facts: dict[str, Value] = {}
        self.rows: dict[str, list[Row]] = {}
        self.checks: list[Check] = []
        self.sections: list[Row] = []

    def add(self, section: str, row: Row) -> None:
        """Keep a row of a section, and show it at once."""
        self.rows.setdefault(section, []).append(row)
        self.show(f"  {section}: " + "  ".join(f"{name} {_text(value)}" for name, value in row.items()))

    def none_of(self, what: str, count: float | None) -> None:
        """Require that a count is 0."""
        self.checks.append(Check(what, count, "0", None if count is None else count == 0))

    def near(self, what: str, measured: float | None, estimate: float | None) -> None:
        """Require that a measurement lies within `ESTIMATE_TOLERANCE` of its estimate."""
        off = None if measured is None or not estimate else measured / estimate - 1
        allowed = f"within ±{ESTIMATE_TOLERANCE:.0%} of the estimate"
        self.checks.append(Check(what, off, allowed, None if off is None else abs(off) <= ESTIMATE_TOLERANCE))

    def section(self, name: str, seconds: float, ended: str = "complete", *, failed: bool = False) -> None:
        """Note the end of a section, and write the JSON.

        Args:
            name: the section.
            seconds: its wall time.
            ended: `complete`, or the reason for which it ended early.
            failed: an error ended it, rather than its deadline.
        """
        self.sections.append({"section": name, "seconds": seconds, "ended": ended, "failed": failed})
        self.show(f"  {name}: {ended} after {seconds:.0f} s")
        self.write()

    @property
    def status(self) -> int:
        """Exit status: 1 if a check failed or an error ended a section, else 0."""
        return int(any(check.passed is False for check in self.checks) or any(s["failed"] for s in self.sections))

    def text(self) -> str:
        """Return all rows as tables, then the checks."""
        lines: list[str] = []
        for section, rows in self.rows.items():
            lines += ["", section, *_table(rows)]
        lines += ["", "checks", *_table([_as_row(check) for check in self.checks])]
        for section_row in self.sections:
            if section_row["ended"] != "complete":
                lines.append(f"{section_row['section']} ended early: {section_row['ended']}")
        return "\n".join(lines)

    def json(self) -> str:
        """Return everything as JSON of one line, numbers with 4 digits."""
        content = {
            "facts": self.facts,
            "rows": self.rows,
            "checks": [asdict(check) for check in self.checks],
            "sections": self.sections,
            "status": self.status,
        }
        return json.dumps(_rounded(content), ensure_ascii=False, allow_nan=False)

    def write(self) -> None:
        """Write the JSON to its file, if there is one."""
        if self.path is not None:
            self.path.write_text(self.json() + "\n", encoding="utf-8")


def _as_row(check: Check) -> Row:
    outcome = {True: "passed", False: "FAILED", None: "not measured"}[check.passed]
    return {"check": check.name, "value": check.value, "allowed": check.allowed, "outcome": outcome}


def _table(rows: list[Row]) -> list[str]:
    """Return lines with one column for each name that occurs in a row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    ]


def _text(value: Value) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
