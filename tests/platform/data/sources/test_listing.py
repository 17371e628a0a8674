"""The canonical order and the digest, derived by hand."""

from __future__ import annotations

import hashlib
import json

import pytest
from tests.platform.data.sources.makers import STRICT, allow, keys_of

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop, Finding
from causalfusion_platform.data.sources.listing import Listing, leave_out, make_listing

ROWS = [("b/ö\n.png", 1, 7), ("a/1.png", 0, 5), ("a/\u2028.png", 0, -1)]
CAPTIONS = [['a "dog"', "two"], [], ["ünï"]]


def listing_of(rows: list[tuple[str, int, int]], captions: list[list[str]] | None = None) -> Listing:
    keys, labels, sizes = zip(*rows, strict=True)
    columns = {"key": keys, "label": labels, "size": sizes, "file": [f"/somewhere/{key}" for key in keys]}
    return make_listing("flat", "here", ["x", "y"], columns | ({"captions": captions} if captions else {}), [])


def sha(lines: list[list[object]]) -> str:
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_over_json_lines_in_order_of_keys() -> None:
    listing = listing_of(ROWS)
    assert listing.digest == sha([["a/1.png", 5, 0], ["a/\u2028.png", -1, 0], ["b/ö\n.png", 7, 1]])
    assert listing.table["file"].to_pylist() == [f"/somewhere/{key}" for key in keys_of(listing)]
    assert listing.table["offset"].to_pylist() == [0, 0, 0]
    assert listing.table["row_group"].to_pylist() == [-1, -1, -1]


def test_the_digest_covers_captions() -> None:
    listing = listing_of(ROWS, CAPTIONS)
    lines = [["a/1.png", 5, 0, []], ["a/\u2028.png", -1, 0, ["ünï"]], ["b/ö\n.png", 7, 1, ['a "dog"', "two"]]]
    assert listing.digest == sha(lines)
    assert listing.table["captions"].to_pylist() == [[], ["ünï"], ['a "dog"', "two"]]


def test_a_long_listing_is_hashed_whole() -> None:
    """Longer than the pieces that it is hashed in."""
    rows = [(f"{number:07d}", number % 2, number) for number in range(70_000)]
    assert listing_of(rows[::-1]).digest == sha([[key, size, label] for key, label, size in rows])


@pytest.mark.parametrize("change", [("a/2.png", 0, 5), ("a/1.png", 1, 5), ("a/1.png", 0, 6)])
def test_every_column_that_counts_changes_the_digest(change: tuple[str, int, int]) -> None:
    assert listing_of(ROWS).digest == listing_of(ROWS[::-1]).digest
    assert listing_of([ROWS[0], change, ROWS[2]]).digest != listing_of(ROWS).digest


def test_a_key_may_be_there_once_only() -> None:
    with pytest.raises(UserError, match=r"'a/1\.png' twice"):
        listing_of([*ROWS, ("a/1.png", 1, 9)])


def test_nothing_is_no_listing() -> None:
    columns: dict[str, list[object]] = {name: [] for name in ("key", "label", "size", "file")}
    with pytest.raises(UserError, match=r"no image with a label \(1 items without\)"):
        make_listing("flat", "here", ["x"], columns, [("a", Finding("unlabelled", "skip", "none"))])


def test_findings_are_sorted_and_the_first_one_stops() -> None:
    items = [("b", "of b"), ("a", "of a"), ("c", "of c")]
    with pytest.raises(FaultStop, match=r"a: missing: of a \(and 2 more\)") as stop:
        leave_out("missing", items, STRICT)
    assert stop.value.finding.action == "stop"
    assert leave_out("missing", [], STRICT) == []
    findings = leave_out("missing", items, allow("missing=skip"))
    listing = make_listing(
        "flat", "here", ["x"], {"key": ["k"], "label": [0], "size": [1], "file": ["f"]}, findings
    )
    assert listing.findings == [(key, Finding("missing", "skip", f"of {key}")) for key in "abc"]
