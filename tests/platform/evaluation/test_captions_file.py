"""COCO's results format: what is written is read, and each fault is one message with a count and the first ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.coco_captions import CaptionedImage
from causalfusion_platform.evaluation.captions_file import (
    match_references,
    read_results,
    references_of,
    write_results,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    captions = {42: 'a "naïve" dog\n', 7: "一只狗 🐕", 2**40: ""}
    path = tmp_path / "new" / "results.json"
    write_results(path, captions)
    assert json.loads(path.read_text()) == [
        {"image_id": 42, "caption": 'a "naïve" dog\n'},
        {"image_id": 7, "caption": "一只狗 🐕"},
        {"image_id": 2**40, "caption": ""},
    ]
    assert [*read_results(path, allow_empty=True).items()] == [*captions.items()]


def test_other_keys_and_a_byte_order_mark_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b'\xef\xbb\xbf[{"image_id": 1, "id": 5, "caption": "a"}]')
    assert read_results(path) == {1: "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", "results.json is not JSON: "),
        ("", "results.json is not JSON: "),
        ("[" * 100_000, "results.json is not JSON: "),
        ("[]", "results.json is not a list of captions"),
        ('{"images": []}', "results.json is not a list of captions"),
        ('["a dog"]', "results.json entry 1 is 'a dog', without an integer image_id or a caption of text"),
        (
            '[{"image_id": 1, "caption": "a"}, {"image_id": "2", "caption": "a"}]',
            "results.json entry 2 is {'image_id'",
        ),
        ('[{"image_id": true, "caption": "a"}]', "entry 1 is {'image_id': True"),
        ('[{"image_id": 1}]', "entry 1 is {'image_id': 1}, without"),
        ('[{"image_id": 1, "caption": null}]', "entry 1 is {'image_id': 1, 'caption': None}"),
        (
            json.dumps([{"image_id": image, "caption": "a"} for image in [5, 1, 2, 3, 4, 5, 4, 3, 2, 5]]),
            "results.json: more than one caption of 4 images (ids 5, 2, 3, …)",
        ),
        (
            json.dumps([{"image_id": image, "caption": " \n"[: image % 2]} for image in [8, 9]]),
            "results.json: an empty caption of 2 images (ids 8, 9)",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_results(path)
    assert message in str(error.value)
    assert "\n  " in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: there is no such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(UserError, match="it is a folder, not a file"):
        read_results(tmp_path)


def image(number: int, split: str | None, *captions: str) -> CaptionedImage:
    return CaptionedImage(number, f"{number}.jpg", split, captions, tuple(range(len(captions))))


def test_references_are_of_one_split() -> None:
    place = Path("dataset_coco.json")
    images = [image(1, "test", "a", "b"), image(2, "val", "c"), image(3, "test", "d"), image(4, "restval")]
    assert references_of(images, None, place) == {1: ("a", "b"), 3: ("d",)}
    assert references_of(images, "val", place) == {2: ("c",)}
    with pytest.raises(UserError, match=r"no caption of 1 image \(id 4\)"):
        references_of(images, "restval", place)
    with pytest.raises(
        UserError, match=r"no split 'train'\n.*restval \(1 images\), val \(1 images\), test \(2 images\)"
    ):
        references_of(images, "train", place)
    with pytest.raises(UserError, match=r"no split 'test'\n"):
        references_of(images[1:2], None, place)


def test_references_without_splits() -> None:
    images = [image(1, None, "a"), image(2, None, "b")]
    assert references_of(images, None, Path("captions_val2014.json")) == {1: ("a",), 2: ("b",)}
    with pytest.raises(UserError, match=r"no split 'test'\n  it has no splits at all: leave out --split"):
        references_of(images, "test", Path("captions_val2014.json"))


def test_results_and_references_are_of_the_same_images() -> None:
    references = {1: ["a"], 2: ["b", "c"], 3: ["d"]}
    path = Path("results.json")
    assert match_references({3: "x", 1: "y", 2: "z"}, references, path, "r.json") == [["d"], ["a"], ["b", "c"]]
    with pytest.raises(
        UserError, match=r"2 images \(ids 9, 8\) of 3 not in r\.json, which has 3 images \(ids 1, 2, 3\)"
    ):
        match_references({9: "x", 1: "y", 8: "z"}, references, path, "r.json")
    with pytest.raises(UserError, match=r"no caption of 2 images \(ids 1, 3\) of 3 in r\.json"):
        match_references({2: "x"}, references, path, "r.json")
