"""Comparison of runs: differences of their configurations, and their outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from ..tables import cell

_RUNS_BESIDE_EACH_OTHER = 3


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    names: list[str]
    differing: dict[str, list[Any]]
    """Key of the configuration → its value in each run, where they are not all the same."""
    outcome: dict[str, list[Any]]
    """Status, images, and each number of summary.json → its value in each run. None: missing."""
    note: str = ""
    """Scores that are left out, and the reason. Empty: none are."""


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as a tree: `differing` and `outcome`, each key → run → value."""
    return {
        "runs": found.names,
        "differing": {key: dict(zip(found.names, row, strict=True)) for key, row in found.differing.items()},
        "outcome": {key: dict(zip(found.names, row, strict=True)) for key, row in found.outcome.items()},
        **({"note": found.note} if found.note else {}),
    }


def comparison_tables(found: Comparison) -> list[Table]:
    """Return what `causalfusion runs compare` prints: three runs beside each other in 80 columns, then the next."""
    tables = []
    for title, rows in (("where they differ", found.differing), ("what they came to", found.outcome)):
        for first in range(0, len(found.names) if rows else 0, _RUNS_BESIDE_EACH_OTHER):
            some = range(len(found.names))[first : first + _RUNS_BESIDE_EACH_OTHER]
            tables.append(_table(title, found.names, rows, some))
    return tables


def _table(title: str, names: Sequence[str], rows: dict[str, list[Any]], some: Sequence[int]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for index in some:
        table.add_column(Text(names[index]), overflow="fold")
    for key, values in rows.items():
        table.add_row(Text(key), *(Text(cell(values[index])) for index in some))
    return table
