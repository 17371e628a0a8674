"""Reports of several tables in one folder, with a page over all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...config.errors import UserError
from ...report.paper.overview import OVERVIEW_FILE, read_reports, render_overview
from ...storage.atomic import write_atomically
from .reproduce import REPORT_FOLDER
from .rows import Reproduction

_KEPT = ("report.md", "report.json", "*.png")
"""Files of a report that a repository keeps. The page and the LaTeX table are made anew from the runs."""


def publish_report(reproduction: Reproduction, folder: Path) -> Path:
    """Copy the report of a table into `folder/<table>`, in place of an earlier one, and return the page over all.

    Raises:
        UserError: the folder cannot be written, or a report in it is damaged.
    """
    source, target = reproduction.folder / REPORT_FOLDER, folder / reproduction.table.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        for old in (path for pattern in _KEPT for path in target.glob(pattern)):
            old.unlink()
        for path in (path for pattern in _KEPT for path in source.glob(pattern)):
            shutil.copyfile(path, target / path.name)
        page = folder / OVERVIEW_FILE
        write_atomically(page, render_overview(read_reports(folder)).encode())
    except OSError as error:
        raise UserError(f"--results {folder}: {error.strerror or error}") from error
    return page
