"""Judgement and exit status of `make bench-gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.benchmarks.gpu.report import Report


def silent(path: Path | None = None) -> Report:
    return Report(path, show=lambda _: None)


def test_zero_synchronizations_pass_and_one_fails() -> None:
    report = silent()
    report.none_of("synchronizations", 0)
    assert report.status == 0
    report.none_of("synchronizations", 1 / 3)
    assert report.status == 1


@pytest.mark.parametrize(("peak", "status"), [(90.1, 0), (109.9, 0), (89.9, 1), (110.1, 1)])
def test_an_estimate_of_100_may_be_off_by_a_tenth_either_way(peak: float, status: int) -> None:
    report = silent()
    report.near("memory", peak, 100)
    assert report.status == status


def test_an_error_of_a_section_fails_and_its_deadline_does_not() -> None:
    report = silent()
    report.section("attention", 90, "it was interrupted at its deadline")
    assert report.status == 0
    assert "attention ended early: it was interrupted at its deadline" in report.text()
    report.section("sampling", 1, "ValueError: no", failed=True)
    assert report.status == 1


def test_what_was_not_measured_neither_passes_nor_fails() -> None:
    report = silent()
    report.none_of("synchronizations", None)
    report.near("memory", None, 100)
    report.near("memory", 100, None)
    assert [check.passed for check in report.checks] == [None, None, None]
    assert report.status == 0
    assert report.text().count("not measured") == 3


def test_the_file_has_every_row_after_each_section(tmp_path: Path) -> None:
    report = silent(tmp_path / "out.json")
    report.add("training", {"model": "L", "images_s": 412.3456, "peak_gib": None})
    report.none_of("recompilations", 2)
    report.section("training", 3.0)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["rows"] == {"training": [{"model": "L", "images_s": 412.3, "peak_gib": None}]}
    assert content["checks"] == [{"name": "recompilations", "value": 2, "allowed": "0", "passed": False}]
    assert content["status"] == 1


def test_numbers_that_json_lacks_are_text() -> None:
    report = silent()
    report.add("training", {"images_s": float("inf")})
    assert json.loads(report.json())["rows"]["training"] == [{"images_s": "inf"}]


def test_a_table_has_a_column_for_each_name() -> None:
    report = silent()
    report.add("ceilings", {"of": "products", "tflop_s": 790.25})
    report.add("ceilings", {"of": "copies", "tb_s": 4.3})
    assert "of        tflop_s  tb_s\nproducts  790.2    –\ncopies    –        4.3" in report.text()
