"""`causalfusion models`: every preset, its size, and what training on an image costs."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from causalfusion import PRESETS
from causalfusion_platform.cli.main import app

COLUMNS = ["preset", "parameters", "width", "depth", "heads", "latent/patch", "class", "S=1", "γ=.9"]

# Exact counts of parameters; TFLOP of one image with one AR step and with random ones. Counted elsewhere.
PARAMETERS = {
    "DiT-L/2": "457,840,672",
    "L/2": "307,694,608",
    "L/2-64": "369,257,488",
    "L-system-256": "369,519,632",
    "XL-system-512": "714,971,408",
    "H-system-256": "1,045,203,856",
}
COSTS = {"L-system-256": "1.00", "XL-system-256": "2.06", "H-system-256": "3.10", "DiT-L/2": "–"}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Return what the command prints."""
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.fixture(scope="module")
def rows(lines: list[str]) -> dict[str, dict[str, str]]:
    """Return the table: preset → column → cell."""
    table = [line.split() for line in lines[1 : lines.index("")]]
    return {cells[0]: dict(zip(COLUMNS, cells, strict=True)) for cells in table}


def test_every_preset_has_a_row(rows: dict[str, dict[str, str]]) -> None:
    assert list(rows) == list(PRESETS)
    for name, row in rows.items():
        size = PRESETS[name]
        assert (row["width"], row["depth"]) == (str(size.hidden_size), str(size.depth))
        assert row["heads"] == str(size.num_heads)
        assert row["latent/patch"] == f"{size.in_channels}×{size.input_size}×{size.input_size}/{size.patch_size}"
        assert row["class"] == (str(size.num_class_tokens) if size.architecture == "causalfusion" else "–")


def test_the_columns_are_aligned_and_fit_a_terminal(lines: list[str]) -> None:
    """Names start and numbers end where their headings do."""
    end = lines.index("")
    heading, table = lines[0], lines[1:end]
    assert heading.split() == COLUMNS
    assert all(len(line) <= 80 for line in lines)
    ends = [match.end() for match in re.finditer(r"\S+", heading)][1:]
    for line in table:
        assert [match.end() for match in re.finditer(r"\S+", line)][1:] == ends
        assert re.match(r"\S", line)
    assert "model.preset=NAME" in " ".join(lines[end:])


def test_parameters_are_exact(rows: dict[str, dict[str, str]]) -> None:
    assert {name: rows[name]["parameters"] for name in PARAMETERS} == PARAMETERS
    for row in rows.values():
        assert re.fullmatch(r"\d{1,3}(,\d{3})+", row["parameters"])


def test_what_training_on_an_image_costs(rows: dict[str, dict[str, str]]) -> None:
    assert {name: rows[name]["γ=.9"] for name in COSTS} == COSTS
    for row in rows.values():
        if row["γ=.9"] != "–":  # clean tokens are computed too, and a DiT has none
            assert float(row["S=1"]) < float(row["γ=.9"])


def test_what_training_a_dit_costs(rows: dict[str, dict[str, str]]) -> None:
    """6 FLOPs a weight and token in the blocks, and three times the 4·L²·D of attention; the rest is below 1%."""
    width, tokens, depth = 1024, 256, 24
    flops = depth * (6 * 12 * width**2 * tokens + 3 * 4 * tokens**2 * width)
    assert float(rows["DiT-L/2"]["S=1"]) == pytest.approx(flops / 1e12, abs=0.006)
