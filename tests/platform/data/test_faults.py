"""Kinds of faults, and what users say is to be done about them."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FAULT_KINDS, FaultStop, Finding, parse_policies

LOST = {
    "zero_bytes", "truncated", "not_image", "corrupt", "unreadable", "deep", "huge", "unlabelled", "uncaptioned",
    "missing",
}  # fmt: skip
DECODABLE = {
    "cmyk", "gray8", "gray16", "rgb16", "palette", "transparency", "animated", "exif_rotation", "tiny",
    "wrong_extension",
}  # fmt: skip


def test_what_cannot_be_decoded_cannot_be_converted() -> None:
    assert set(FAULT_KINDS) == LOST | DECODABLE
    assert all(set(FAULT_KINDS[name].allowed) == {"skip", "stop"} for name in LOST)
    assert all({"convert", "skip", "stop"} <= set(FAULT_KINDS[name].allowed) for name in DECODABLE)
    assert {name for name, kind in FAULT_KINDS.items() if "keep" in kind.allowed} == {
        "exif_rotation",
        "transparency",
    }
    assert all(
        kind.name == name and kind.meaning and "\n" not in kind.meaning for name, kind in FAULT_KINDS.items()
    )


def test_defaults_lose_no_image_that_can_be_decoded_and_stop_where_the_source_is_at_fault() -> None:
    defaults = parse_policies([])
    assert {name for name, action in defaults.items() if action == "convert"} == DECODABLE
    assert {name for name, action in defaults.items() if action == "stop"} == {
        "unreadable",
        "unlabelled",
        "uncaptioned",
        "missing",
    }


def test_settings_change_their_kinds_only() -> None:
    changed = parse_policies(["cmyk=skip", "exif_rotation=keep", "truncated=stop"])
    expected = parse_policies([]) | {"cmyk": "skip", "exif_rotation": "keep", "truncated": "stop"}
    assert changed == expected
    assert set(changed) == set(FAULT_KINDS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["cmyk"], ["'cmyk'", "KIND=ACTION"]),
        (["cmky=skip"], ["'cmky'", *FAULT_KINDS]),
        (["truncated=convert"], ["'convert'", "truncated: skip, stop"]),
        (["transparency="], ["''", "convert, keep, skip, stop"]),
        (["tiny=skip", "tiny=convert"], ["tiny is given twice", "'tiny=convert'"]),
    ],
)
def test_wrong_settings_are_told_with_what_is_allowed(settings: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_policies(settings)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n  causalfusion data encode" in message


def test_defaults_are_allowed_and_names_differ() -> None:
    assert all(kind.default in kind.allowed for kind in FAULT_KINDS.values())
    assert len(FAULT_KINDS) == 20


def stop_at(key: str) -> None:
    raise FaultStop(key, Finding("truncated", "stop", "JPEG of 7 bytes"))


def test_a_stop_comes_whole_out_of_another_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as processes, pytest.raises(FaultStop) as caught:
        processes.submit(stop_at, "cats/1.jpg").result()
    assert caught.value.key == "cats/1.jpg"
    assert caught.value.finding == Finding("truncated", "stop", "JPEG of 7 bytes")
    assert str(caught.value) == "cats/1.jpg: truncated: JPEG of 7 bytes"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
