"""The table of predictions in models/README.md."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.gpu import predicted

README = Path(__file__).resolve().parents[2] / "models" / "README.md"


def test_the_readme_has_the_numbers_that_the_roofline_gives() -> None:
    section = README.read_text().split("### On a GPU: predicted\n")[1]
    assert "Nothing below is measured" in section
    for line in (*predicted.training(), *predicted.parts("H200", "L"), *predicted.sampling()):
        assert line in section.splitlines()
