"""Captions of COCO's and Karpathy's files, written here by hand as their publishers describe them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.coco_captions import CaptionedImage, count_and_first, parse_coco, read_coco

COCO: dict[str, Any] = {
    "info": {"year": 2014},
    "licenses": [{"id": 1, "name": "CC"}],
    "images": [
        {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 360, "width": 640, "license": 3},
        {"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "height": 478, "width": 640, "license": 3},
        {"id": 73, "file_name": "COCO_val2014_000000000073.jpg", "height": 640, "width": 564, "license": 3},
    ],
    "annotations": [
        {"id": 641613, "image_id": 42, "caption": "This wire metal rack holds several pairs of shoes"},
        {"id": 770337, "image_id": 391895, "caption": "A man with a red helmet on a small moped."},
        {"id": 645261, "image_id": 42, "caption": "A dog asleep on shoes. "},
    ],
}
KARPATHY: dict[str, Any] = {
    "images": [
        {
            "filepath": "val2014",
            "sentids": [770337, 771687],
            "filename": "COCO_val2014_000000391895.jpg",
            "imgid": 0,
            "split": "test",
            "sentences": [
                {"tokens": ["a", "man"], "raw": "A man.", "imgid": 0, "sentid": 770337},
                {"tokens": ["dirt", "road"], "raw": "Dirt road,  naïve", "imgid": 0, "sentid": 771687},
            ],
            "cocoid": 391895,
        },
        {
            "filename": "1000092795.jpg",
            "sentids": [5],
            "imgid": 1,
            "split": "restval",
            "sentences": [{"raw": "Two.", "sentid": 5}],
        },
    ],
    "dataset": "coco",
}


def test_cocos_own_file(tmp_path: Path) -> None:
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps(COCO))
    assert read_coco(path) == [
        CaptionedImage(
            391895,
            "COCO_val2014_000000391895.jpg",
            None,
            ("A man with a red helmet on a small moped.",),
            (770337,),
        ),
        CaptionedImage(
            42,
            "COCO_val2014_000000000042.jpg",
            None,
            ("This wire metal rack holds several pairs of shoes", "A dog asleep on shoes. "),
            (641613, 645261),
        ),
        CaptionedImage(73, "COCO_val2014_000000000073.jpg", None, (), ()),
    ]


def test_karpathys_file_has_splits_and_folders() -> None:
    content = b"\xef\xbb\xbf" + json.dumps(KARPATHY, ensure_ascii=False).encode()
    assert parse_coco(content, "dataset_coco.json") == [
        CaptionedImage(
            391895,
            "val2014/COCO_val2014_000000391895.jpg",
            "test",
            ("A man.", "Dirt road,  naïve"),
            (770337, 771687),
        ),
        CaptionedImage(1, "1000092795.jpg", "restval", ("Two.",), (5,)),
    ]


def changed(tree: dict[str, Any], key: str, number: int, **values: object) -> dict[str, Any]:
    """Return a copy of a file whose entry `number` of a list has other values."""
    copy: dict[str, Any] = json.loads(json.dumps(tree))
    copy[key][number] |= values
    return copy


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[1, 2", ["x.json is not JSON"]),
        ("[" * 100_000, ["x.json is not JSON"]),
        ("[]", ["x.json has no list of images"]),
        ({"images": []}, ["x.json has no list of images"]),
        ({**COCO, "annotations": {}}, ["annotations is not a list"]),
        ({"images": COCO["images"]}, ["x.json image 1 has no list of sentences, and the file no annotations"]),
        (changed(COCO, "images", 1, id="42"), ["x.json image 2: id is '42', not an integer"]),
        (changed(COCO, "images", 1, id=True), ["x.json image 2: id is True, not an integer"]),
        (changed(COCO, "images", 2, id=42), ["image id repeated: 1 image (id 42)"]),
        (
            changed(COCO, "annotations", 1, image_id=5),
            ["annotations of 1 image (id 5) that `images` does not list"],
        ),
        (changed(COCO, "annotations", 2, id=641613), ["caption id repeated: 1 caption (id 641613)"]),
        (changed(COCO, "annotations", 0, caption=None), ["x.json annotation 1: caption is None, not text"]),
        ({**COCO, "annotations": [{"id": 1, "image_id": 42}]}, ["x.json annotation 1 has no 'caption'"]),
        (changed(KARPATHY, "images", 1, split="dev"), ["image 2: split 'dev'", "train, restval, val, test"]),
        (changed(KARPATHY, "images", 0, sentences=["A man."]), ["x.json image 1 has no 'raw'"]),
    ],
)
def test_a_wrong_file_is_one_clear_error(content: object, parts: list[str]) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(UserError) as error:
        parse_coco(text.encode(), "x.json")
    for part in parts:
        assert part in str(error.value)
    assert "allowed" in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: there is no such file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(UserError, match="it is a folder, not a file"):
        read_coco(tmp_path)


def test_counts_name_the_first_ids() -> None:
    assert count_and_first([7], "image") == "1 image (id 7)"
    assert count_and_first([7, 8], "image") == "2 images (ids 7, 8)"
    assert count_and_first([*range(5000)], "caption") == "5,000 captions (ids 0, 1, 2, …)"
