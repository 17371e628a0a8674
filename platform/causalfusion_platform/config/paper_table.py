"""Table or figure of the paper as data: rows, their evaluation, printed values, and claims."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from .errors import UserError
from .files import experiment_folders
from .paper_figure import PaperFigure
from .section import Section

TABLE_FILE = "table.yaml"

Scale = Literal["digits", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)

Metric = Literal[
    "fid",
    "inception_score",
    "precision",
    "recall",
    "cider",
    "caption_class",
    "caption_all",
    "t2i_class",
    "t2i_ink",
    "t2i_slant",
    "t2i_width",
    "t2i_unseen_class",
    "t2i_unseen_ink",
    "t2i_unseen_slant",
    "t2i_unseen_width",
]
"""Metric of a column of the paper. `ScalePlan.metrics` maps it to the metric measured at a scale.

Those that begin with `caption_` and `t2i_` are not the paper's. They are shares of captions and drawings of digits
with the right words. Those with `t2i_unseen_` are of drawings of property cells that are in no training row.
"""

HIGHER_IS_BETTER: tuple[Metric, ...] = tuple(metric for metric in get_args(Metric) if metric != "fid")


class Column(Section):
    """One number of each row: its metric, and the sampling of its images."""

    name: str
    """Header, such as `S = 1`."""
    metric: Metric = "fid"
    ar_steps: int | None = Field(None, ge=1)
    """S_eval. null: the row's own sampling.num_ar_steps."""
    guidance_scale: float | None = Field(None, ge=1)
    """Classifier-free guidance w. null: the row's own sampling.guidance_scale."""
    scales: tuple[Scale, ...] = Field(SCALES, min_length=1)
    """Scales that have the column."""


class Row(Section):
    """One row, which has an experiment at each of its scales."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Experiment `<table>/<scale>/<file>.yaml`."""
    label: str
    """Name of the row in the paper."""
    digits_label: str | None = None
    """Name at digits scale where it differs: 256 tokens are 16 there."""
    printed: tuple[float | None, ...]
    """Values of the paper, one per column. null: not printed."""
    scales: tuple[Scale, ...] = Field(SCALES, min_length=1)
    """Scales at which it can run. A row without a meaning on a 4×4 grid of tokens has paper scale only."""


class Claim(Section):
    """Ordering of rows that the paper's text states, or one of our own."""

    says: str
    """The claim in words."""
    column: str
    """Name of the compared column."""
    better: tuple[str, ...] = Field(min_length=1)
    """Files of rows, each better than all rows of `worse`."""
    worse: tuple[str, ...] = Field(min_length=1)
    """Files of rows, each worse than all rows of `better`."""
    ours: bool = False
    """The claim is ours: the paper does not state it."""


class ScalePlan(Section):
    """Metrics, samples, seeds and figure of a table at one scale."""

    metrics: dict[Metric, str]
    """Metric of the paper → metric measured in its place, such as `fd_digits_cnn`."""
    samples: int = Field(ge=2)
    """Images generated for each value of the table."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds. Each row is trained once with each seed."""
    figure: PaperFigure | None = None
    """Figure that is drawn of the runs too."""


class PaperTable(Section):
    """Table of the paper, or the runs of a figure."""

    name: str
    """Folder of its experiments, such as `table3a`."""
    title: str
    """Title, such as `AR-step decay γ`."""
    source: str
    """Number in the paper, such as `Table 3a`."""
    varied: str
    """Header of the labels of rows: the quantity in which rows differ."""
    measured: str
    """Metric of the paper, such as `FID-10k`."""
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()
    note: str = ""
    """Note for readers of the result, such as how rows map to the digits, or claims that are not orderings."""
    scales: dict[Scale, ScalePlan]

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
        for scale, plan in self.scales.items():
            measured = {column.metric for column in self.columns if scale in column.scales}
            if missing := measured - set(plan.metrics):
                raise ValueError(f"scale {scale} names no number for {', '.join(sorted(missing))}")
        return self

    def plan(self, scale: Scale) -> ScalePlan:
        """Return its plan at a scale.

        Raises:
            UserError: the table does not have this scale.
        """
        if scale not in self.scales:
            raise UserError(f"{self.source} has no rows at scale {scale}; scales: {', '.join(self.scales)}")
        return self.scales[scale]

    def at(self, scale: Scale) -> PaperTable:
        """Return the table with the columns of a scale alone."""
        kept = [place for place, column in enumerate(self.columns) if scale in column.scales]
        rows = [
            row.model_copy(update={"printed": tuple(row.printed[place] for place in kept)}) for row in self.rows
        ]
        return self.model_copy(
            update={"columns": tuple(self.columns[place] for place in kept), "rows": tuple(rows)}
        )

    def rows_at(self, scale: Scale) -> tuple[Row, ...]:
        """Return the rows that can run at a scale."""
        return tuple(row for row in self.rows if scale in row.scales)

    def claims_at(self, scale: Scale) -> tuple[Claim, ...]:
        """Return the claims about the columns and rows of a scale."""
        there = {row.file for row in self.rows_at(scale)}
        columns = {column.name for column in self.columns if scale in column.scales}
        claims = []
        for claim in self.claims:
            better, worse = (tuple(file for file in side if file in there) for side in (claim.better, claim.worse))
            if better and worse and claim.column in columns:
                claims.append(claim.model_copy(update={"better": better, "worse": worse}))
        return tuple(claims)

    def experiment(self, row: Row, scale: Scale) -> str:
        """Return the name of a row's experiment, as `compose_experiment` takes it."""
        return f"{self.name}/{scale}/{row.file}"


def table_names() -> list[str]:
    """Return the names of all tables: folders of experiments with a table.yaml."""
    return sorted({path.parent.name for folder in experiment_folders() for path in folder.glob(f"*/{TABLE_FILE}")})


def load_table(name: str) -> PaperTable:
    """Read a table.

    Raises:
        UserError: the name is unknown, or its file is wrong.
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
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return PaperTable.model_validate({"name": path.parent.name, **tree})
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{path} is wrong: {error}") from error
