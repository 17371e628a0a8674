"""Write the fault matrix, as the fault tests measured it, into the documentation: `make fault-table`."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from causalfusion_platform.report.tables import markdown_table

BEGIN, END = "<!-- made by `make fault-table` -->", "<!-- end -->"


def table(rows: list[dict[str, object]], machine: str) -> str:
    """Return the matrix as Markdown."""
    cells = [
        [
            row["fault"],
            row["promise"],
            "yes" if row["exact"] else "–",
            "–" if row["recovery"] is None else f"{row['recovery']:.0f} s",
            "–" if row["steps"] is None else f"{row['steps']:.0f}",
            row["saw"] or "–",
        ]
        for row in rows
    ]
    text = markdown_table(
        ["fault", "promise", "bit for bit", "recovery", "steps trained again", "also measured"], cells
    )
    return f"{BEGIN}\n\n{text.strip()}\n\n*{len(rows)} rows, measured by `make test-faults` on {machine}.*\n\n{END}"


def main() -> None:
    """Put the rows of a results file between the marks of a page."""
    results, page = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows.sort(key=lambda row: str(row["fault"]).lower())  # two processes wrote them, as they came
    machine = f"{len(os.sched_getaffinity(0))} CPU cores, {datetime.now(UTC):%Y-%m-%d}"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + table(rows, machine) + rest.split(END)[1])
    print(f"{len(rows)} rows → {page}")


if __name__ == "__main__":
    main()
