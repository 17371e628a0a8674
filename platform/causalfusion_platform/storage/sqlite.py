"""Addresses of SQLite files, as SQLAlchemy, MLflow and Optuna read them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

_PREFIX = "sqlite:///"
_ENCODED, _QUERY = "file:", "?uri=true"


def sqlite_address(file: Path) -> str:
    """Return the address of a SQLite file. A question mark would begin a query, so such a path is encoded."""
    path = str(file.absolute())
    return f"{_PREFIX}{_ENCODED}{quote(path)}{_QUERY}" if "?" in path else f"{_PREFIX}{path}"


def is_sqlite(address: str) -> bool:
    """Say whether an address is that of a SQLite file."""
    return address.startswith("sqlite:")


def sqlite_file(address: str) -> Path:
    """Return the SQLite file of an address."""
    path = address.removeprefix(_PREFIX)
    return Path(unquote(path.removeprefix(_ENCODED).removesuffix(_QUERY)) if path.startswith(_ENCODED) else path)
