"""Base class of every section of the configuration tree."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Section of the tree: immutable, without unknown keys."""

    # Infinity and NaN pass most checks of a range.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
