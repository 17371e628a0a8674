"""Addresses of SQLite files, as SQLAlchemy, MLflow and Optuna read them."""

from __future__ import annotations

from pathlib import Path

_PREFIX = "sqlite:///"


def sqlite_address(file: Path) -> str:
    """Return the address of a SQLite file. Its path cannot have a question mark, which begins a query."""
    return f"{_PREFIX}{file.absolute()}"


def is_sqlite(address: str) -> bool:
    """Say whether an address is that of a SQLite file."""
    return address.startswith("sqlite:")


def sqlite_file(address: str) -> Path:
    """Return the SQLite file of an address."""
    return Path(address.removeprefix(_PREFIX))
