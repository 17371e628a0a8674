"""A table or figure of the paper as data: its rows, how each is evaluated, the printed values, what they claim."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from .compose import experiment_folders
from .errors import UserError
from .section import Section

TABLE_FILE = "table.yaml"

Scale = Literal["digits", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)

Metric = Literal["fid", "inception_score", "precision", "recall"]
"""What a column of the paper measures. Which number stands for it at a scale, `ScalePlan.metrics` says."""

HIGHER_IS_BETTER: tuple[Metric, ...] = ("inception_score", "precision", "recall")


class Column(Section):
    """One number of each row: what is measured, and how the images for it are sampled."""

    name: str
    """Header, such as `S = 1`."""
    metric: Metric = "fid"
    ar_steps: int | None = Field(None, ge=1)
    """S_eval; null: the row's own sampling.num_ar_steps."""
    guidance_scale: float | None = Field(None, ge=1)
    """Classifier-free guidance; null: the row's own sampling.guidance_scale."""


class Row(Section):
    """One row: an experiment of its own at each of its scales."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Experiment `<table>/<scale>/<file>.yaml`."""
    label: str
    """What the paper calls it."""
    digits_label: str | None = None
    """The same at digits scale, where it differs: 256 tokens are 16 there."""
    printed: tuple[float | None, ...]
    """The paper's values, a column each; null: not printed."""
    scales: tuple[Scale, ...] = Field(SCALES, min_length=1)
    """Where it can be run: a row without a meaning on a 4×4 grid of tokens is there at paper scale only."""


class Claim(Section):
    """An ordering that the paper's text draws from the table."""

    says: str
    """The claim in words."""
    column: str
    """Name of the column that it is about."""
    better: tuple[str, ...] = Field(min_length=1)
    """Files of rows, each of which is better than …"""
    worse: tuple[str, ...] = Field(min_length=1)
    """… each of these."""


class ScalePlan(Section):
    """How a table is run at one scale."""

    metrics: dict[Metric, str]
    """Metric of the paper → name of the number that stands for it, such as `fd_digits_cnn`."""
    samples: int = Field(ge=2)
    """Images generated for each value."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Each row is trained once with each."""


class PaperTable(Section):
    """A table of the paper, or the runs of a figure."""

    name: str
    """Folder of its experiments, such as `table3a`."""
    title: str
    """What it asks, such as `AR-step decay γ`."""
    source: str
    """Where it stands in the paper, such as `Table 3a`."""
    varied: str
    """What rows differ in: the header of their labels."""
    measured: str
    """What the paper measured, such as `FID-10k`."""
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()
    note: str = ""
    """What a reader of the result must know: how rows map to the digits, what the text says that is no ordering."""
    scales: dict[Scale, ScalePlan]
    figure: bool = False
    """The curves of Figure 4 are drawn from its runs, too."""

    @model_validator(mode="after")
    def _check(self) -> PaperTable:
        names, files = [column.name for column in self.columns], [row.file for row in self.rows]
        for what, known in (("columns", names), ("rows", files)):
            if len(set(known)) != len(known):
                raise ValueError(f"{what} have a name twice: {', '.join(known)}")
        for row in self.rows:
            if len(row.printed) != len(names):
                raise ValueError(f"row {row.file} prints {len(row.printed)} values for {len(names)} columns")
        for claim in self.claims:
            if claim.column not in names:
                raise ValueError(f"a claim is about column {claim.column!r}; columns: {', '.join(names)}")
            unknown = {*claim.better, *claim.worse} - set(files)
            if unknown:
                raise ValueError(f"a claim is about rows {', '.join(sorted(unknown))}; rows: {', '.join(files)}")
        measured = {column.metric for column in self.columns}
        for scale, plan in self.scales.items():
            if missing := measured - set(plan.metrics):
                raise ValueError(f"scale {scale} names no number for {', '.join(sorted(missing))}")
        return self

    def plan(self, scale: Scale) -> ScalePlan:
        """Return how it is run at a scale.

        Raises:
            UserError: it is not.
        """
        if scale not in self.scales:
            raise UserError(f"{self.source} has no rows at scale {scale}; scales: {', '.join(self.scales)}")
        return self.scales[scale]

    def rows_at(self, scale: Scale) -> tuple[Row, ...]:
        """Return the rows that can be run at a scale."""
        return tuple(row for row in self.rows if scale in row.scales)

    def claims_at(self, scale: Scale) -> tuple[Claim, ...]:
        """Return what is claimed of the rows that can be run at a scale."""
        there = {row.file for row in self.rows_at(scale)}
        claims = []
        for claim in self.claims:
            better, worse = (tuple(file for file in side if file in there) for side in (claim.better, claim.worse))
            if better and worse:
                claims.append(claim.model_copy(update={"better": better, "worse": worse}))
        return tuple(claims)

    def experiment(self, row: Row, scale: Scale) -> str:
        """Return the name of a row's experiment, as `compose_experiment` takes it."""
        return f"{self.name}/{scale}/{row.file}"


def table_names() -> list[str]:
    """Names of all tables: folders of experiments that hold a table.yaml."""
    return sorted({path.parent.name for folder in experiment_folders() for path in folder.glob(f"*/{TABLE_FILE}")})


def load_table(name: str) -> PaperTable:
    """Read a table.

    Raises:
        UserError: there is none of this name, or its file is wrong.
    """
    for folder in experiment_folders():
        path = folder / name / TABLE_FILE
        if path.is_file():
            return _read(path)
    names = table_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"no table {name!r}{hint}\n  tables: {', '.join(names)}")


def _read(path: Path) -> PaperTable:
    try:
        tree = yaml.safe_load(path.read_text())
        return PaperTable.model_validate({"name": path.parent.name, **tree})
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{path} is wrong: {error}") from error
