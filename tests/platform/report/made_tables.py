"""Tables and values made for tests of reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from causalfusion_platform.config.paper_table import Claim, Column, PaperTable, Row, ScalePlan
from causalfusion_platform.report.paper.report import Circumstances, PaperReport, RunFacts, build_report

Value = Callable[[str, Column, float | None, int], float | None]
"""Value of a row's file, a column, the printed value and a seed."""

AROUND = Circumstances(
    command="causalfusion reproduce gammas --scale digits",
    hardware="2 cores",
    generated_at="2031-02-03 04:05 UTC",
    wall_seconds=7200,
    spaces={"fd_digits_cnn": "in 64 features of the digits' classifier"},
    lineage={"commit": "0123abc"},
)


def gammas(seeds: Sequence[int] = (0, 1, 2), **changes: Any) -> PaperTable:
    """Return a table of three γ and two S; the paper's best are γ = 0.9 at S = 1, γ = 0.8 at S = 2."""
    values: dict[str, Any] = {
        "name": "gammas",
        "title": "AR-step decay γ",
        "source": "Table 9",
        "varied": "γ",
        "measured": "FID-10k",
        "columns": (Column(name="S = 1", ar_steps=1), Column(name="S = 2", ar_steps=2)),
        "rows": (
            Row(file="g10", label="1.0", printed=(21.31, 22.17)),
            Row(file="g09", label="0.9", printed=(12.89, 15.5)),
            Row(file="g08", label="0.8", printed=(13.0, 15.42)),
        ),
        "claims": (Claim(says="γ < 1 is better", column="S = 1", better=("g09", "g08"), worse=("g10",)),),
        "scales": {
            "digits": ScalePlan(metrics={"fid": "fd_digits_cnn"}, samples=500, seeds=tuple(seeds)),
            "paper": ScalePlan(metrics={"fid": "fid"}, samples=10_000, seeds=tuple(seeds)),
        },
    }
    return PaperTable(**{**values, **changes})


def systems() -> PaperTable:
    """Return a table of eight columns and four metrics, as Table 4."""
    kinds = [("FID", "fid"), ("IS", "inception_score"), ("Prec.", "precision"), ("Rec.", "recall")]
    columns = [
        Column.model_validate({"name": f"{name}{suffix}", "metric": metric})
        for suffix in ("", ", CFG")
        for name, metric in kinds
    ]
    return gammas(
        name="systems",
        varied="model",
        columns=tuple(columns),
        rows=(
            Row(file="l", label="CausalFusion-L", printed=(5.12, 166.1, 0.73, 0.66, 1.94, 264.4, 0.82, 0.59)),
            Row(file="xl", label="CausalFusion-XL", printed=(3.61, 180.9, 0.75, 0.66, 1.77, 282.3, 0.82, 0.61)),
        ),
        claims=(),
        scales={
            "digits": ScalePlan(
                metrics={kind: f"{kind}_digits" for _, kind in kinds},
                samples=500,
                seeds=(0, 1, 2),
            )
        },
    )


def losses(more_seeds: Sequence[int] = (3, 4, 5), **changes: Any) -> PaperTable:
    """Return the table of three γ, with the denoising loss at the same S, which the paper does not print."""
    table = gammas()
    claim = Claim(says="γ = 0.9 gains from S = 2", column="S = 2", over="S = 1", better=("g09",))
    plan = ScalePlan(
        metrics={"fid": "fd_digits_cnn", "denoising_loss": "denoising_loss"},
        samples=500,
        seeds=(0, 1, 2),
        more_seeds=tuple(more_seeds),
    )
    loss = Column(name="loss, S = 1", metric="denoising_loss", ar_steps=1)
    values: dict[str, Any] = {
        "columns": (*table.columns, loss, loss.model_copy(update={"name": "loss, S = 2", "ar_steps": 2})),
        "rows": tuple(row.model_copy(update={"printed": (*row.printed, None, None)}) for row in table.rows),
        "claims": (*table.claims, claim),
        "scales": {"digits": plan},
    }
    return gammas(**{**values, **changes})


def plane() -> PaperTable:
    """Return a table of S_train by S_eval with a row that is no number, and one that is another on digits."""
    return gammas(
        name="plane",
        varied="S_train",
        columns=tuple(Column(name=f"S = {steps}", ar_steps=steps) for steps in (1, 2, 4)),
        rows=(
            Row(file="s1", label="1", printed=(13.78, 356.69, 404.67)),
            Row(file="s256", label="256", small_label="16", printed=(313.28, 321.62, 261.26)),
            Row(file="random", label="random", printed=(21.31, 22.17, 23.54)),
        ),
        claims=(),
    )


def like_the_paper(file: str, column: Column, printed: float | None, seed: int) -> float | None:
    """Return half of the printed value, a little more for a higher seed."""
    return None if printed is None else printed / 2 * (1 + 0.001 * seed)


def noisy(file: str, column: Column, printed: float | None, seed: int) -> float:
    """Return values with a large spread over seeds, other ones for each row and column."""
    generator = np.random.default_rng([ord(sign) for sign in f"{file}{column.name}{seed}"])
    return float(20 + 3 * generator.standard_normal())


def by_the_loss(distance: float, loss: float) -> Value:
    """Return values of three seeds whose second and third row gain so much over the first, the noise below 0.3."""

    def value(file: str, column: Column, printed: float | None, seed: int) -> float:
        gain = loss if column.metric == "denoising_loss" else distance
        return 20 + (noisy(file, column, printed, seed) - 20) / 100 - (0 if file == "g10" else gain)

    return value


def report_of(
    table: PaperTable,
    value: Value = like_the_paper,
    *,
    without: Sequence[tuple[str, int]] = (),
    around: Circumstances = AROUND,
) -> PaperReport:
    """Return the report at the table's small scale, with runs of all rows and seeds but `without`."""
    scale = table.smallest
    cells = [
        (row, column, printed, seed)
        for row in table.rows_at(scale)
        for column, printed in zip(table.columns, row.printed, strict=True)
        for seed in table.plan(scale).seeds
        if (row.file, seed) not in without and column.has(row)
    ]
    measured = {
        (row.file, column.name, seed): value(row.file, column, printed, seed)
        for row, column, printed, seed in cells
    }
    runs = {
        (row.file, seed): RunFacts(
            folder=f"/runs/{row.file}.seed-{seed}",
            status="finished",
            mlflow_run_id=f"{row.file}{seed}",
            images=102_400,
            parameters=1_234_567,
            seconds=120.0,
        )
        for row, _, _, seed in cells
    }
    return build_report(table, scale, measured, runs, around)
