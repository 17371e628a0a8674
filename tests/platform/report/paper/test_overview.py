"""The page over all tables: what it counts, which numbers it shows, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.platform.report.made_tables import gammas, report_of

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.paper_table import Claim, Column, PaperTable, Row, ScalePlan
from causalfusion_platform.report.paper.json import report_json
from causalfusion_platform.report.paper.overview import read_reports, render_overview

CLAIMS = (
    Claim(says="γ < 1 is better", column="S = 1", better=("g09", "g08"), worse=("g10",)),
    Claim(says="γ = 0.8 is better than 0.9", column="S = 2", better=("g08",), worse=("g09",)),
    Claim(says="S = 2 is better", column="S = 2", over="S = 1", better=("g08",), ours=True),
)


def with_losses() -> PaperTable:
    """Return the table of γ with the denoising loss at S = 1 and S = 2 beside the distances."""
    loss = [Column(name=f"loss, S = {steps}", metric="denoising_loss", ar_steps=steps) for steps in (1, 2)]
    table = gammas()
    rows = [row.model_copy(update={"printed": (*row.printed, None, None)}) for row in table.rows]
    metrics = {"fid": "fd", "denoising_loss": "denoising_loss"}
    plan = ScalePlan.model_validate({"metrics": metrics, "samples": 500, "seeds": (0, 1, 2)})
    return gammas(columns=(*table.columns, *loss), rows=tuple(rows), claims=CLAIMS, scales={"digits": plan})


def value(file: str, column: Column, printed: float | None, seed: int) -> float:
    """Distances: S = 1 as printed, S = 2 without an order. Losses: S = 1 as printed, S = 2 the other way round."""
    place = ("g10", "g09", "g08").index(file)
    if column.metric == "denoising_loss":
        return (0.1 - 0.01 * place if column.ar_steps == 1 else 0.1 + 0.01 * place) + 0.0001 * seed
    return 20.0 - place + 0.01 * seed * place if column.ar_steps == 1 else (5.0, 6.0, 7.0)[(seed + place) % 3]


def write(folder: Path, name: str, tree: Any) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "report.json").write_text(json.dumps(tree))


def test_claims_with_the_papers_numbers_and_ours(tmp_path: Path) -> None:
    write(tmp_path, "gammas", report_json(report_of(with_losses(), value)))
    text = render_overview(read_reports(tmp_path))
    lines = {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]] for line in rows_of(text)}
    first = lines["S = 1: γ < 1 is better"]
    # The least of 21.31 − 12.89 and 21.31 − 13.0 in the paper. Of ours 1 − 0.01 · seed, mean 0.99: g09 over g10.
    assert first[0] == "+8.31"
    assert first[1].startswith("+0.990 ± 0.025") and first[1].endswith(", 2 of 2")
    assert first[2] == "**holds**"
    assert first[3].startswith("+0.01 ± 0, 2 of 2") and first[3].endswith("**holds**")
    second = lines["S = 2: γ = 0.8 is better than 0.9"]
    assert second[0] == "+0.08" and second[2] == "undecided" and second[3].endswith("**fails**")
    third = lines["S = 2: S = 2 is better (ours)"]
    assert third[3].endswith("**fails**")
    # Two claims are the paper's. The loss decides the one that the distance leaves undecided.
    assert "Decided: 2 of 2 orderings that the paper states (holds 1, fails 1)." in " ".join(text.split())


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| S = ")]


def test_tables_in_order_and_those_without_claims(tmp_path: Path) -> None:
    tree = report_json(report_of(gammas()))
    write(tmp_path, "table3a", {**tree, "table": "table3a", "source": "Table 3a"})
    write(tmp_path, "table2", {**tree, "table": "table2", "source": "Table 2", "complete": False})
    write(tmp_path, "table7", {**tree, "table": "table7", "source": "Table 7", "claims": []})
    (tmp_path / "other").mkdir()
    text = render_overview(read_reports(tmp_path))
    assert text.index("[Table 2: ") < text.index("[Table 3a: ") < text.index("## Without orderings")
    assert "(table7/report.md)" in text and text.count("not complete") == 1


def test_a_claim_that_was_not_measured(tmp_path: Path) -> None:
    nothing = [(row, seed) for row in ("g10", "g09", "g08") for seed in (0, 1, 2)]
    write(tmp_path, "gammas", report_json(report_of(gammas(), without=nothing)))
    assert "Decided: 0 of 1 ordering that the paper states (not measured 1)." in " ".join(
        render_overview(read_reports(tmp_path)).split()
    )


def test_without_printed_values_there_is_a_dash(tmp_path: Path) -> None:
    table = gammas()
    rows = tuple(Row(file=row.file, label=row.label, printed=(None, None)) for row in table.rows)
    write(tmp_path, "gammas", report_json(report_of(gammas(rows=rows), lambda *_: 1.0)))
    assert [line.split("|")[2].strip() for line in rows_of(render_overview(read_reports(tmp_path)))] == ["–"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is damaged"), ("[]", "is damaged"), ('{"format": 99}', "has format 99, and this version reads 1")],
)
def test_a_damaged_report_is_named(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, "gammas", {})
    (tmp_path / "gammas/report.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_reports(tmp_path)


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Earlier ones have neither claims by the loss, nor of ours, nor over another column."""
    tree = report_json(report_of(gammas()))
    for claim in tree["claims"]:
        del claim["by_loss"], claim["ours"], claim["over"]
    write(tmp_path, "gammas", tree)
    assert "Decided: 1 of 1 ordering that the paper states (holds 1)." in " ".join(
        render_overview(read_reports(tmp_path)).split()
    )
