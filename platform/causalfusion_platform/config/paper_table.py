"""Table or figure of the paper as data: rows, their evaluation, printed values, and claims."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from causalfusion.config import PatchOrder

from .errors import UserError
from .files import experiment_folders
from .finetune import Layer
from .paper_figure import PaperFigure
from .section import Section

TABLE_FILE = "table.yaml"

Scale = Literal["digits", "mnist", "paper"]
"""Size of data, models and trainings. `digits` and `mnist` are for two CPU cores, `paper` is the paper's."""
SCALES: tuple[Scale, ...] = get_args(Scale)

Metric = Literal[
    "fid",
    "denoising_loss",
    "inception_score",
    "precision",
    "recall",
    "top1",
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
`denoising_loss` is the mean squared error on held-out images, the same for every row: noise, times, orders.
"""

LOWER_IS_BETTER: tuple[Metric, ...] = ("fid", "denoising_loss")
HIGHER_IS_BETTER: tuple[Metric, ...] = tuple(metric for metric in get_args(Metric) if metric not in LOWER_IS_BETTER)


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
"""Name of a file without its suffix."""


class Column(Section):
    """One number of each row: its metric, and the sampling of its images or the fine-tune that measures it."""

    name: str
    """Header, such as `S = 1`."""
    metric: Metric = "fid"
    ar_steps: int | None = Field(None, ge=1)
    """S_eval. null: the row's own sampling.num_ar_steps."""
    ar_step: int | None = Field(None, ge=1)
    """AR step, from 1 to `ar_steps`, whose denoising loss it is. null: the mean over all tokens."""
    patch_order: PatchOrder | None = None
    """Order in which tokens are sampled, with `order_block`. null: the row's own sampling.patch_order."""
    order_block: int | None = Field(None, ge=1)
    """Block side or stride of `patch_order`. null: the row's own sampling.order_block."""
    guidance_scale: float | None = Field(None, ge=1)
    """Classifier-free guidance w. null: the row's own sampling.guidance_scale."""
    finetune: Name | None = None
    """Fine-tune of the row's model that measures it, such as `classify`. Its recipe is the experiment
    `<table>/<scale>/finetune-<name>.yaml`. null: the row's own run is measured."""
    pretrained: bool = True
    """The fine-tune starts from the row's trained weights. false: from initial weights, with the same recipe."""
    rows: tuple[str, ...] = ()
    """Files of the rows that have it. Empty: all."""
    scales: tuple[Scale, ...] = Field(SCALES, min_length=1)
    """Scales that have the column."""

    @property
    def trained_as(self) -> str | None:
        """Name of its fine-tune in names of runs, such as `classify-scratch`."""
        return self.finetune and (self.finetune if self.pretrained else f"{self.finetune}-scratch")

    @property
    def is_sampled(self) -> bool:
        """Whether it is measured on samples of a row's own model."""
        return self.finetune is None and self.metric != "denoising_loss"

    def has(self, row: Row) -> bool:
        """Return whether a row has a value of it."""
        return not self.rows or row.file in self.rows

    @model_validator(mode="after")
    def _check(self) -> Column:
        if self.finetune is None and not self.pretrained:
            raise ValueError(f"column {self.name} has pretrained: false, but no fine-tune")
        if self.finetune is not None and (self.ar_steps is not None or self.guidance_scale is not None):
            raise ValueError(f"column {self.name} is measured by fine-tune {self.finetune}, which draws no samples")
        if self.metric == "denoising_loss" and (self.finetune or self.guidance_scale is not None):
            raise ValueError(f"column {self.name} is a denoising loss, which has neither a fine-tune nor guidance")
        if not self.is_sampled and (self.patch_order or self.order_block):
            raise ValueError(f"column {self.name} has a patch order, but no samples")
        if self.ar_step is not None and (self.metric != "denoising_loss" or self.ar_step > (self.ar_steps or 0)):
            raise ValueError(
                f"column {self.name} has ar_step {self.ar_step}: that is a denoising loss's, from 1 to its ar_steps"
            )
        return self


class Row(Section):
    """One row, which has an experiment at each of its scales."""

    file: Name
    """Experiment `<table>/<scale>/<file>.yaml`."""
    label: str
    """Name of the row in the paper."""
    small_label: str | None = None
    """Name at other scales than the paper's where it differs: S = 256 is 64 on MNIST."""
    printed: tuple[float | None, ...]
    """Values of the paper, one per column. null: not printed. Those of columns at other scales may be left out at
    the end."""
    scales: tuple[Scale, ...] = Field(SCALES, min_length=1)
    """Scales at which it can run."""


class Claim(Section):
    """Ordering of rows that the paper's text states, or one of our own."""

    says: str
    """The claim in words."""
    column: str
    """Name of the compared column."""
    better: tuple[str, ...] = Field(min_length=1)
    """Files of rows, each better than all rows of `worse`, or than itself in the column `over`."""
    worse: tuple[str, ...] = ()
    """Files of rows, each worse than all rows of `better`."""
    over: str | None = None
    """Another column in which the rows of `better` are worse, in place of other rows."""
    ours: bool = False
    """The claim is ours: the paper does not state it."""

    @model_validator(mode="after")
    def _check(self) -> Claim:
        if bool(self.worse) == (self.over is not None):
            raise ValueError(f"claim {self.says!r} needs rows that are worse, or a column `over`: one of them")
        return self


class FinetunePlan(Section):
    """Fine-tune of a table at one scale, where it is more than its recipe."""

    layers: tuple[Layer, ...] = ()
    """Blocks whose features are tried, each a fine-tune of its own. The best on validation counts. Empty: that of
    the recipe."""
    recipes: dict[str, Name] = Field(default_factory=dict)
    """Row → its own recipe, where it is not `finetune-<name>`."""


class ScalePlan(Section):
    """Metrics, samples, seeds and figure of a table at one scale."""

    metrics: dict[Metric, str]
    """Metric of the paper → metric measured in its place, such as `fd_digits_cnn`."""
    samples: int = Field(ge=2)
    """Images generated for each value of the table."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds. Each row is trained once with each seed."""
    more_seeds: tuple[int, ...] = ()
    """Seeds that are added, all at once, when a claim is undecided after `seeds`. A claim is then looked at twice,
    so that each look has half the error, whether or not the second one is made."""
    validation_draws: int = Field(8, ge=1)
    """Draws of order, diffusion time and noise of each held-out image, for columns of the denoising loss."""
    figure: PaperFigure | None = None
    """Figure that is drawn of the runs too."""
    finetunes: dict[str, FinetunePlan] = Field(default_factory=dict)
    """Fine-tune → its plan, where it has one."""

    @property
    def looks(self) -> int:
        """How often the claims may be looked at: after `seeds`, and after `more_seeds`."""
        return 2 if self.more_seeds else 1


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

    @model_validator(mode="before")
    @classmethod
    def _not_printed(cls, tree: Any) -> Any:
        """Add the values that the paper does not print of columns at other scales."""
        if not isinstance(tree, dict):
            return tree
        columns, rows = tree.get("columns"), tree.get("rows")
        if not (isinstance(columns, list) and isinstance(rows, list)):
            return tree
        printed = [not isinstance(column, dict) or "paper" in column.get("scales", SCALES) for column in columns]
        least = len(printed) - printed[::-1].index(True) if True in printed else 0
        return {**tree, "rows": [_filled(row, least, len(columns)) for row in rows]}

    @model_validator(mode="after")
    def _check(self) -> PaperTable:
        names, files = [column.name for column in self.columns], [row.file for row in self.rows]
        for what, known in (("columns", names), ("rows", files)):
            if len(set(known)) != len(known):
                raise ValueError(f"{what} have a name twice: {', '.join(known)}")
        for row in self.rows:
            if len(row.printed) != len(names):
                raise ValueError(f"row {row.file} prints {len(row.printed)} values for {len(names)} columns")
        for column in self.columns:
            if unknown := set(column.rows) - set(files):
                raise ValueError(f"column {column.name} has rows {_listed(unknown)}; rows: {', '.join(files)}")
        for claim in self.claims:
            self._check_claim(claim)
        for scale, plan in self.scales.items():
            self._check_plan(scale, plan)
        return self

    def _check_claim(self, claim: Claim) -> None:
        columns, files = {column.name: column for column in self.columns}, [row.file for row in self.rows]
        compared = [claim.column, *([claim.over] if claim.over else [])]
        for name in compared:
            if name not in columns:
                raise ValueError(f"a claim is about column {name!r}; columns: {', '.join(columns)}")
            lacking = {file for file in (*claim.better, *claim.worse) if file not in (columns[name].rows or files)}
            if lacking:
                known, of = columns[name].rows or files, f" of column {name}" if columns[name].rows else ""
                raise ValueError(f"a claim is about rows {_listed(lacking)}{of}; rows: {', '.join(known)}")
        if len({columns[name].metric for name in compared}) > 1:
            raise ValueError(f"a claim compares columns of different metrics: {', '.join(compared)}")

    def _check_plan(self, scale: Scale, plan: ScalePlan) -> None:
        columns = [column for column in self.columns if scale in column.scales]
        if missing := {column.metric for column in columns} - set(plan.metrics):
            raise ValueError(f"scale {scale} names no number for {_listed(missing)}")
        known, files = {column.finetune for column in columns}, {row.file for row in self.rows}
        for name, finetune in plan.finetunes.items():
            if name not in known:
                raise ValueError(f"scale {scale} plans fine-tune {name}, which no column names")
            if unknown := set(finetune.recipes) - files:
                raise ValueError(f"fine-tune {name} has recipes of rows {_listed(unknown)}")

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
            if better and (worse or claim.over) and {claim.column, claim.over or claim.column} <= columns:
                claims.append(claim.model_copy(update={"better": better, "worse": worse}))
        return tuple(claims)

    def by_loss(self, claim: Claim) -> Claim | None:
        """Return a claim about sample quality as one about the denoising loss at the same places, or None."""
        columns = {column.name: column for column in self.columns}
        if columns[claim.column].metric != "fid":
            return None
        twins = [self._loss_at(columns[name]) for name in (claim.column, claim.over) if name is not None]
        if None in twins:
            return None
        changes = dict(zip(("column", "over"), twins, strict=False))
        return claim.model_copy(update=changes)

    def _loss_at(self, column: Column) -> str | None:
        """Return the name of the column that has the denoising loss of the place of a sampled one, or None.

        Rows that are each sampled with an S of their own have different tasks, whose losses do not rank them.
        """
        if column.ar_steps is None or column.guidance_scale is not None or column.patch_order is not None:
            return None
        for other in self.columns:
            place = (other.ar_steps, other.ar_step, other.rows)
            if other.metric == "denoising_loss" and place == (column.ar_steps, None, column.rows):
                return other.name
        return None

    @property
    def smallest(self) -> Scale:
        """The scale for two CPU cores, or else the paper's."""
        return next(scale for scale in SCALES if scale in self.scales)

    def experiment(self, row: Row, scale: Scale) -> str:
        """Return the name of a row's experiment, as `compose_experiment` takes it."""
        return f"{self.name}/{scale}/{row.file}"

    @property
    def finetunes(self) -> tuple[str, ...]:
        """Fine-tunes that columns name."""
        return tuple(dict.fromkeys(column.finetune for column in self.columns if column.finetune is not None))

    def recipe(self, finetune: str, row: Row, scale: Scale) -> str:
        """Return the name of the experiment that fine-tunes the model of a row."""
        own = self.finetune_plan(finetune, scale).recipes.get(row.file)
        return f"{self.name}/{scale}/{own or f'finetune-{finetune}'}"

    def finetune_plan(self, finetune: str, scale: Scale) -> FinetunePlan:
        """Return the plan of a fine-tune at a scale."""
        return self.plan(scale).finetunes.get(finetune, FinetunePlan())


def _filled(row: Any, least: int, columns: int) -> Any:
    """Return a row with null for columns after the first `least` that it leaves out."""
    if not isinstance(row, dict) or not isinstance(row.get("printed"), list | tuple):
        return row
    given = [*row["printed"]]
    return row if len(given) < least else {**row, "printed": given + [None] * (columns - len(given))}


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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _read(path: Path) -> PaperTable:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return PaperTable.model_validate({"name": path.parent.name, **tree})
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{path} is wrong: {error}") from error
