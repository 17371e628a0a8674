"""The model of a table's report: values, verdicts, budget, limits, what is missing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from tests.platform.report.made_tables import (
    AROUND,
    by_the_loss,
    gammas,
    like_the_paper,
    losses,
    noisy,
    report_of,
    systems,
)

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.paper_table import (
    Claim,
    Column,
    PaperTable,
    Row,
    ScalePlan,
    load_table,
    table_names,
)
from causalfusion_platform.report.paper.content import pairs, runs, side_by_side, stacked
from causalfusion_platform.report.paper.report import build_report, confidence_of
from causalfusion_platform.report.paper.words import (
    budget,
    caveats,
    claim_text,
    key,
    method,
    missing,
    noise,
    orderings,
)


def test_values_stand_where_they_were_measured() -> None:
    places = {("g10", "S = 1"): 1.0, ("g10", "S = 2"): 2.0, ("g09", "S = 1"): 3.0, ("g08", "S = 2"): 6.0}
    report = report_of(gammas(), lambda file, column, *_: places.get((file, column.name)))
    means = [[cell.ours.mean for cell in row.cells] for row in report.rows]
    assert means == [[1.0, 2.0], [3.0, None], [None, 6.0]]
    assert [[cell.printed for cell in row.cells] for row in report.rows] == [
        [21.31, 22.17],
        [12.89, 15.5],
        [13.0, 15.42],
    ]
    assert report.rows[0].cells[0].by_seed == {0: 1.0, 1: 1.0, 2: 1.0}
    assert report.rows[1].runs[2].folder == "/runs/g09.seed-2"


def test_what_is_not_planned_is_refused() -> None:
    for key_ in (("g11", "S = 1", 0), ("g10", "S = 3", 0), ("g10", "S = 1", 7)):
        with pytest.raises(ValueError, match="plans no value"):
            build_report(gammas(), "digits", {key_: 1.0}, {}, AROUND)
    with pytest.raises(ValueError, match="plans no run"):
        build_report(gammas(), "digits", {}, {("g10", 9): report_of(gammas()).rows[0].runs[0]}, AROUND)
    with pytest.raises(UserError, match="no rows at scale paper"):
        build_report(systems(), "paper", {}, {}, AROUND)


def test_a_copy_of_the_paper_keeps_all_its_orders() -> None:
    report = report_of(gammas())
    assert [claim.verdict for claim in orderings(report)] == ["holds"] * 3
    # Claim: 2 × 1 pairs; columns: three rows, all different.
    assert [len(claim.pairs) for claim in orderings(report)] == [2, 3, 3]
    assert [claim.tau for claim in report.orders] == [pytest.approx(1)] * 2
    assert report.complete
    assert missing(report) == []


def test_the_paper_upside_down_breaks_them() -> None:
    report = report_of(gammas(), lambda file, column, printed, seed: 100 - (printed or 0) + 0.001 * seed)
    assert [claim.verdict for claim in orderings(report)] == ["fails"] * 3
    assert [claim.as_printed for claim in orderings(report)] == [0] * 3
    assert [claim.tau for claim in report.orders] == [pytest.approx(-1)] * 2


def test_scores_are_better_when_higher() -> None:
    report = report_of(systems())
    assert {claim.column: claim.verdict for claim in report.orders} == {
        column.name: "holds" for column in systems().columns if column.name not in ("Rec.", "Prec., CFG")
    }, "both print the same value twice, which is no order"
    by_column = {claim.column: claim.pairs[0] for claim in report.orders}
    assert (by_column["FID"].better, by_column["IS"].better) == ("xl", "xl")
    assert by_column["IS"].gain.mean == pytest.approx((180.9 - 166.1) / 2, rel=1e-2)


def test_noise_leaves_claims_undecided() -> None:
    def noisy(file: str, column: Column, printed: float | None, seed: int) -> float:
        return (printed or 0) + 12 * math.sin(7 * seed + len(column.name) * ord(file[1]) + ord(file[2]))

    assert [claim.verdict for claim in orderings(report_of(gammas(), noisy))] == ["undecided"] * 3


def test_rows_of_the_other_scale_are_left_out() -> None:
    rows = (*gammas().rows[:2], Row(file="g08", label="0.8", printed=(13.0, 15.42), scales=("paper",)))
    report = report_of(gammas(rows=rows))
    assert [row.file for row in report.rows] == ["g10", "g09"]
    assert [(pair.better, pair.worse) for pair in report.claims[0].pairs] == [("g09", "g10")]
    only = (Claim(says="nothing left", column="S = 1", better=("g08",), worse=("g10",)),)
    assert report_of(gammas(rows=rows, claims=only)).claims == ()


@pytest.mark.parametrize(
    ("label", "small_label", "shown"),
    [
        ("256", "16", "256 / 16"),
        ("S = 256", "S = 16", "S = 256 / 16"),
        ("block-wise raster (8×8)", "block-wise raster (2×2)", "block-wise raster (8×8) / (2×2)"),
        ("1 (repeat 64×)", "1 (repeat 16×)", "1 (repeat 64×) / (repeat 16×)"),
        ("CausalFusion-L", "L", "CausalFusion-L / L"),
        ("random", None, "random"),
        ("random", "random", "random"),
    ],
)
def test_a_row_that_is_another_on_digits_names_both(label: str, small_label: str | None, shown: str) -> None:
    rows = (Row(file="a", label=label, small_label=small_label, printed=(1.0, 2.0)),)
    report = report_of(gammas(rows=rows, claims=()))
    assert report.rows[0].label == shown
    assert ("the paper has a" in key(report)) == ("/" in shown)
    paper = build_report(gammas(rows=rows, claims=()), "paper", {}, {}, AROUND)
    assert paper.rows[0].label == label
    assert "the paper has a" not in key(paper)


# The denoising loss, and two looks


def test_a_claim_about_samples_is_decided_by_the_loss_too() -> None:
    report = report_of(losses(), by_the_loss(-5, 5))
    found = {(one.says, one.by_loss): one for one in report.claims}
    assert [(one.column, one.over, one.by_loss) for one in report.claims] == [
        ("S = 1", None, False),
        ("loss, S = 1", None, True),
        ("S = 2", "S = 1", False),
        ("loss, S = 2", "loss, S = 1", True),
    ]
    own, twin = found["γ < 1 is better", False], found["γ < 1 is better", True]
    assert (own.verdict, twin.verdict) == ("fails", "holds")
    assert [(pair.better, pair.worse) for pair in twin.pairs] == [("g09", "g10"), ("g08", "g10")]
    losses_of = {row.file: row.cells[2].by_seed for row in report.rows}
    for pair in twin.pairs:
        gains = [losses_of[pair.worse][seed] - losses_of[pair.better][seed] for seed in (0, 1, 2)]  # type: ignore[operator]
        assert pair.gain.mean == pytest.approx(np.mean(gains))
    over = found["γ = 0.9 gains from S = 2", True].pairs[0].gain
    of_both = zip(report.rows[1].cells[2].by_seed.values(), report.rows[1].cells[3].by_seed.values(), strict=True)
    assert over.mean == pytest.approx(np.mean([first - second for first, second in of_both]))  # type: ignore[operator]
    assert [order.column for order in report.orders] == ["S = 1", "S = 2"]  # no losses are printed


@pytest.mark.parametrize(("more_seeds", "tail"), [((), 0.025), ((3, 4, 5), 0.0125)])
def test_each_of_two_looks_has_half_the_error(more_seeds: tuple[int, ...], tail: float) -> None:
    """Against SciPy's quantile of t with two degrees of freedom. Intervals of rows stay those of 95%."""
    report = report_of(losses(more_seeds), noisy)
    assert confidence_of(report.plan) == pytest.approx(1 - 2 * tail)
    count = 0
    for claim in orderings(report):
        place = [column.name for column in report.table.columns].index(claim.column)
        other = [column.name for column in report.table.columns].index(claim.over or claim.column)
        cells = {row.file: row.cells for row in report.rows}
        for pair in claim.pairs:
            better, worse = cells[pair.better][place].by_seed, cells[pair.worse][other].by_seed
            gains = [(worse[seed] or 0) - (better[seed] or 0) for seed in (0, 1, 2)]
            half = stats.t.ppf(1 - tail, df=2) * np.std(gains, ddof=1) / math.sqrt(3)
            assert pair.gain.half_width == pytest.approx(half)
            count += 1
    assert count == 2 + 2 + 1 + 1 + 3 + 3
    for row in report.rows:
        for cell in row.cells:
            values = [value or 0 for value in cell.by_seed.values()]
            half = stats.t.ppf(0.975, df=2) * np.std(values, ddof=1) / math.sqrt(3)
            assert cell.ours.half_width == pytest.approx(half)


@pytest.mark.parametrize(("sign", "verdict"), [(1, "holds"), (-1, "fails")])
def test_a_gain_that_one_look_decides_and_two_do_not(sign: int, verdict: str) -> None:
    """t = ±5 with two degrees of freedom: p = 0.038 lies between 2.5% and 5%."""

    def value(file: str, column: Column, printed: float | None, seed: int) -> float:
        return 20 - (0 if file == "g10" else sign * (5 + (seed - 1) * math.sqrt(3)))

    claims = (Claim(says="a", column="S = 1", better=("g09",), worse=("g10",)),)
    [once] = report_of(losses((), claims=claims, columns=gammas().columns, rows=gammas().rows), value).claims
    [twice] = report_of(losses(claims=claims, columns=gammas().columns, rows=gammas().rows), value).claims
    assert once.pairs[0].gain.p_value == pytest.approx(2 * stats.t.sf(5, 2))
    assert (once.verdict, twice.verdict) == (verdict, "undecided")


@pytest.mark.parametrize(
    ("distance", "loss", "decided"),
    [(5.0, 5.0, True), (-5.0, 0.0, True), (5.0, 0.0, True), (0.0, 5.0, True), (0.0, -5.0, True), (0.0, 0.0, False)],
)
def test_a_claim_is_decided_by_its_metric_or_by_the_loss(distance: float, loss: float, decided: bool) -> None:
    table = losses(claims=gammas().claims)
    report = report_of(table, by_the_loss(distance, loss))
    assert report.decided == decided
    verdicts = ["undecided" if not gain else "holds" if gain > 0 else "fails" for gain in (distance, loss)]
    assert [claim.verdict for claim in report.claims] == verdicts


def test_a_table_is_decided_once_all_claims_of_the_paper_are() -> None:
    certain, open_ = by_the_loss(5, 5), by_the_loss(0, 0)
    claims = (
        Claim(says="a", column="S = 1", better=("g09",), worse=("g10",)),
        Claim(says="b", column="S = 2", better=("g09",), worse=("g10",)),
    )

    def one_open(file: str, column: Column, printed: float | None, seed: int) -> float | None:
        return (open_ if column.ar_steps == 2 else certain)(file, column, printed, seed)

    assert not report_of(losses(claims=claims), one_open).decided
    ours = (claims[0], claims[1].model_copy(update={"ours": True}))
    assert report_of(losses(claims=ours), one_open).decided
    assert report_of(losses(claims=()), one_open).decided
    assert not build_report(losses(claims=claims), "digits", {}, {}, AROUND).decided  # nothing is measured
    assert not report_of(gammas(claims=claims), one_open).decided


def test_how_orderings_are_decided_is_said() -> None:
    twice, once = method(report_of(losses())), method(report_of(gammas()))
    assert "It fails if some pair is reversed with p ≤ 0.025, corrected over its pairs (Holm)." in twice
    assert "each look has half the error: intervals of gains are of 97.5%." in twice
    assert "Orderings by the loss are the paper's too, but decided by the denoising loss on held-out" in twice
    assert "with p ≤ 0.05, corrected over its pairs (Holm)." in once
    assert "look" not in once and "loss" not in once
    assert "loss" not in method(report_of(losses(claims=())))


def test_the_noise_of_a_measure_stands_beside_that_of_a_seed() -> None:
    """Pooled standard deviations: of pairs √(Σd² / 2n), of three rows with three seeds the root mean variance."""
    pairs_of = {"S = 1": [(10.0, 10.5), (12.0, 11.0)], "loss, S = 2": [(0.5, 0.51)]}
    report = report_of(losses(), noisy, around=dataclasses.replace(AROUND, repeats=pairs_of))
    spreads = [
        math.sqrt(np.mean([np.var([value or 0 for value in row.cells[place].by_seed.values()], ddof=1)
                           for row in report.rows]))
        for place in (0, 3)
    ]  # fmt: skip
    again = [math.sqrt((0.5**2 + 1.0**2) / 4), math.sqrt(0.01**2 / 2)]
    assert noise(report) == [
        f"fd_digits_cnn, S = 1: measured again on the same 2 models, its standard deviation is {again[0]:.4g}; "
        f"with another training seed {spreads[0]:.4g}.",
        f"denoising_loss, loss, S = 2: measured again on the same 1 model, its standard deviation is "
        f"{again[1]:.4g}; with another training seed {spreads[1]:.4g}.",
    ]
    one_seed = gammas(seeds=[4])
    alone = report_of(one_seed, around=dataclasses.replace(AROUND, repeats={"S = 2": [(10.0, 10.5)]}))
    assert noise(alone) == [
        "fd_digits_cnn, S = 2: measured again on the same 1 model, its standard deviation is "
        f"{0.5 / math.sqrt(2):.4g}."
    ]
    assert noise(report_of(losses(), noisy)) == []


# What is missing


def test_missing_rows_and_columns_are_named_with_the_command() -> None:
    def some(file: str, column: Column, printed: float | None, seed: int) -> float | None:
        return None if (file, column.name, seed) == ("g08", "S = 2", 2) else printed

    report = report_of(gammas(), some, without=[("g10", 1), ("g09", 0), ("g09", 1), ("g09", 2)])
    assert not report.complete
    assert missing(report) == [
        "Missing: γ 1.0: seed 1; γ 0.9: seed 0, 1, 2; γ 0.8, S = 2: seed 2.",
        "To run what is missing: causalfusion reproduce gammas --scale digits",
    ]
    assert [claim.verdict for claim in orderings(report)].count("holds") == 0
    assert report.claims[0].count("not measured") == 1
    rows = side_by_side(report).rows
    assert rows[1][1:3] == ["12.89", "–"]
    assert rows[0][2].endswith(" †")
    assert "† of fewer" in key(report)


def test_nothing_measured_yet() -> None:
    report = build_report(gammas(), "digits", {}, {}, AROUND)
    assert {claim.verdict for claim in orderings(report)} == {"not measured"}
    assert budget(report)["runs"] == "0 of 9: 3 rows × 3 seeds (0, 1, 2)"
    assert "†" not in key(report)


def test_values_that_are_no_numbers_are_named() -> None:
    def broken(file: str, column: Column, printed: float | None, seed: int) -> float | None:
        return float("nan") if (file, column.name, seed) == ("g09", "S = 1", 1) else printed

    report = report_of(gammas(), broken)
    assert "Left out of the means, not a number: 0.9, S = 1, seed 1 (nan)." in caveats(report)
    assert report.rows[1].cells[0].ours.n == 2
    assert report.complete, "it was measured, and running it again would not help"
    assert missing(report) == []
    assert any("Welch" in text for text in caveats(report))


# Budget and limits


def test_the_budget() -> None:
    assert budget(report_of(gammas(), without=[("g10", 0)])) == {
        "scale": "digits",
        "runs": "8 of 9: 3 rows × 3 seeds (0, 1, 2)",
        "training": "102,400 images",
        "model": "1,234,567 parameters",
        "samples": "500 for each value",
        "fd_digits_cnn": "in 64 features of the digits' classifier",
        "time": "16 min of training runs, other tables' included, "
        "2 h from the first start of this table's own to the last end",
        "hardware": "2 cores",
    }


def test_the_limits() -> None:
    three = "\n".join(caveats(report_of(gammas())))
    assert "fd_digits_cnn is not what the paper measured" in three
    assert "500 samples is biased" in three
    assert "3 seeds: intervals are wide" in three
    one = report_of(gammas(seeds=[4]))
    assert any(text.startswith("One seed") for text in caveats(one))
    assert {claim.verdict for claim in orderings(one)} == {"undecided"}
    assert "one seed" in key(one)
    assert "2 of 2 pairs as claimed (undecided 2)" in claim_text(one.claims[0])
    paper = build_report(gammas(seeds=range(5)), "paper", {}, {}, AROUND)
    assert caveats(paper) == []
    assert key(paper).startswith("Paper: FID-10k. Ours: fid; mean")


def test_a_claim_of_ours_is_not_the_papers() -> None:
    claim = gammas().claims[0].model_copy(update={"ours": True})
    [found] = report_of(gammas(claims=(claim,))).claims
    assert claim_text(found) == (
        "S = 1: γ < 1 is better (our claim, not the paper's); 2 of 2 pairs as claimed (holds 2)"
    )


@pytest.mark.parametrize("name", table_names())
def test_every_shipped_table_has_a_report(name: str) -> None:
    table = load_table(name)
    table = table.at(table.smallest)

    def value(file: str, column: Column, printed: float | None, seed: int) -> float | None:
        """Return half of what is printed, and of a loss a hundredth of that at the same S."""
        if column.metric == "denoising_loss":
            printed = LIKE_FIGURE_4.get((column.name, file)) or printed_at(table, file, column.ar_steps)
        return like_the_paper(file, column, printed, seed)

    report = report_of(table, value)
    papers = {claim.verdict for claim in orderings(report) if not claim.ours}
    printed = any(one is not None for row in table.rows for one in row.printed)
    assert papers == ({"holds"} if printed else set()), "its claims agree with what is printed"
    if printed and any(not claim.ours for claim in report.claims):
        assert report.decided
    assert len(side_by_side(report).rows) == len(stacked(report).rows) / 2 == len(table.rows_at(report.scale))


LIKE_FIGURE_4: dict[tuple[str, str], float] = {
    **{("loss, S_eval = S_train", f"s-{steps}"): 1 / steps for steps in (1, 2, 4, 8, 256)},
    ("loss of the first of 8 AR steps", "random"): 2.0,
    ("loss of the last of 8 AR steps", "random"): 1.0,
}
"""Losses as the curves of Figure 4 are drawn: column and row → value."""


def printed_at(table: PaperTable, file: str, ar_steps: int | None) -> float | None:
    """Return a hundredth of the printed FID of a row at an S."""
    [row] = [row for row in table.rows if row.file == file]
    found = [
        printed
        for column, printed in zip(table.columns, row.printed, strict=True)
        if (column.metric, column.ar_steps) == ("fid", ar_steps)
    ]
    return found[0] / 100 if found and found[0] is not None else None


def fine_tuned() -> PaperTable:
    """Return the table of three γ with a fine-tune, and the same from scratch, of two rows."""
    table = gammas()
    tuned = {"metric": "top1", "finetune": "classify"}
    columns = (
        table.columns[0],
        Column.model_validate({"name": "top-1", **tuned}),
        Column.model_validate({"name": "scratch", "pretrained": False, "rows": ["g10", "g09"], **tuned}),
    )
    claim = Claim(says="it helps", column="top-1", better=("g10", "g09"), over="scratch", ours=True)
    return gammas(
        columns=columns,
        rows=tuple(row.model_copy(update={"printed": (row.printed[0], 84.0, None)}) for row in table.rows),
        claims=(claim,),
        scales={"digits": ScalePlan(metrics={"fid": "fd", "top1": "top1"}, samples=500, seeds=(0, 1, 2))},
    )


def of_columns(file: str, column: Column, printed: float | None, seed: int) -> float | None:
    """Return values that are higher in column top-1 than in scratch, by 0.2 for one row and −0.1 for another."""
    gain = {"g10": 0.2, "g09": -0.1, "g08": 0.0}[file] + 0.001 * seed
    return {"S = 1": 20.0, "top-1": 0.5 + 0.02 * seed + gain, "scratch": 0.5 + 0.02 * seed}[column.name]


def without_scratch(file: str, column: Column, printed: float | None, seed: int) -> float | None:
    return None if (file, column.name) == ("g08", "scratch") else of_columns(file, column, printed, seed)


def test_a_row_without_a_column_lacks_nothing() -> None:
    """Its cell is empty in all renderings, and a value of it is refused."""
    report = report_of(fine_tuned(), without_scratch)
    assert report.complete and missing(report) == []
    assert [dict(row.cells[2].by_seed) for row in report.rows][2] == {}
    assert stacked(report).rows[-1][-1] == "–"
    assert [row[0] for row in runs(report).rows if row[5] is None] == ["0.8"] * 3
    with pytest.raises(ValueError, match="plans no value of row 'g08', column 'scratch', seed 0"):
        build_report(fine_tuned(), "digits", {("g08", "scratch", 0): 0.5}, {}, AROUND)


def test_columns_of_a_row_are_compared_seed_by_seed() -> None:
    report = report_of(fine_tuned(), without_scratch)
    [claim] = report.claims
    assert (claim.column, claim.over, claim.verdict) == ("top-1", "scratch", "fails")
    assert [pair.verdict for pair in claim.pairs] == ["holds", "fails"]
    assert [pair.gain.mean for pair in claim.pairs] == [pytest.approx(0.201), pytest.approx(-0.099)]
    assert {pair.gain.method for pair in claim.pairs} == {"paired t"}
    assert [row[:2] for row in pairs(report, claim).rows] == [
        ["1.0, top-1", "1.0, scratch"],
        ["0.9, top-1", "0.9, scratch"],
    ]
    assert "top-1: it helps (our claim, not the paper's); 1 of 2 pairs as claimed" in claim_text(claim)


def test_missing_fine_tunes_are_named() -> None:
    def lacking(file: str, column: Column, printed: float | None, seed: int) -> float | None:
        lost = column.name == "top-1" and (file, seed) in (("g08", 0), ("g08", 2))
        return None if lost else without_scratch(file, column, printed, seed)

    report = report_of(fine_tuned(), lacking)
    assert not report.complete
    assert missing(report)[0] == "Missing: γ 0.8, top-1: seed 0, 2."
    assert "top-1 accuracy" not in key(report)  # our number is of the paper's kind
