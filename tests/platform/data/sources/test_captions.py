"""Captions from a file beside images in folders: its forms, how names are joined, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.platform.data.sources.makers import (
    STRICT,
    allow,
    contents_of,
    digit,
    keys_of,
    labels_of,
    left_out,
    write_files,
    write_tar,
)

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop
from causalfusion_platform.data.sources import CaptionsFound, Listing, open_source, split_of_shards
from causalfusion_platform.data.sources.selection import EARLIER_RULES

Captions = dict[str, list[str]]


def coco(captions: Captions) -> str:
    """Write captions as COCO does: images in one list, annotations in another."""
    images = [{"id": 100 + number, "file_name": name} for number, name in enumerate(captions)]
    pairs = [(100 + number, text) for number, texts in enumerate(captions.values()) for text in texts]
    annotations = [{"id": row, "image_id": image, "caption": text} for row, (image, text) in enumerate(pairs)]
    return json.dumps({"info": {}, "images": images, "annotations": annotations})


def karpathy(captions: Captions, splits: dict[str, str], folder: str = "val2014", **style: Any) -> str:
    """Write captions as Karpathy does: sentences and a split in each image."""
    images = []
    for number, (name, texts) in enumerate(captions.items()):
        sentences = [
            {"raw": text, "tokens": text.split(), "sentid": 10 * number + at} for at, text in enumerate(texts)
        ]
        images.append(
            {
                "filepath": folder,
                "filename": name,
                "cocoid": number,
                "split": splits[name],
                "sentences": sentences,
            }
        )
    return json.dumps({"images": images, "dataset": "coco"}, **style)


def jsonl(captions: Captions, file: str = "file", caption: str = "captions") -> str:
    return "".join(json.dumps({file: name, caption: texts}) + "\n" for name, texts in captions.items())


def images(folder: Path, *names: str) -> dict[str, bytes]:
    """Write a different image under each name."""
    contents = {name: digit(row) for row, name in enumerate(names)}
    write_files(folder, contents)
    return contents


def captions_of(listing: Listing) -> Captions:
    return dict(zip(keys_of(listing), listing.table["captions"].to_pylist(), strict=True))


def found_in(listing: Listing) -> CaptionsFound:
    assert listing.captions is not None
    return listing.captions


PAIR: Captions = {"b.png": ["two seas", "a boat"], "a.png": ["one"]}


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("captions_val2014.json", coco(PAIR), "COCO"),
        ("any.name", "\ufeff" + coco(PAIR), "COCO"),
        ("dataset_coco.json", karpathy(PAIR, dict.fromkeys(PAIR, "test")), "Karpathy"),
        ("dataset.json", karpathy(PAIR, dict.fromkeys(PAIR, "val"), folder="", indent=1), "Karpathy"),
        ("c.jsonl", jsonl(PAIR), "JSONL"),
        ("c.json", "\ufeff\n" + jsonl(PAIR).replace("\n", "\r\n\r\n"), "JSONL"),
    ],
)
@pytest.mark.parametrize("place", ["", "s/"])
def test_every_form_is_told_by_its_content(tmp_path: Path, place: str, name: str, text: str, form: str) -> None:
    """Images without labels are one class, as those of a label file of captions alone."""
    contents = images(tmp_path / "s", *PAIR)
    write_files(tmp_path, {f"{place}{name}": text})
    source = open_source("s", captions=f"{place}{name}", policies=STRICT)
    listing = source.listing()
    assert captions_of(listing) == PAIR
    assert (listing.kind, listing.has_classes, set(labels_of(listing).values())) == ("flat", False, {"image"})
    assert (found_in(listing).form, found_in(listing).location) == (form, f"{place}{name}")
    assert found_in(listing).captions == 3
    assert contents_of(source) == contents


def test_the_same_captions_have_one_digest_in_any_form(tmp_path: Path) -> None:
    images(tmp_path / "s", *PAIR)
    write_files(
        tmp_path, {"c.json": coco(PAIR), "c.jsonl": jsonl(PAIR), "l.csv": "file,text\na.png,one\nb.png,x\n"}
    )
    first, second = (open_source("s", captions=name, policies=STRICT).listing() for name in ("c.json", "c.jsonl"))
    assert first.digest == second.digest
    assert first.digest != open_source("s", labels="l.csv", caption_column="text", policies=STRICT).listing().digest


def test_lines_beside_class_folders(tmp_path: Path) -> None:
    contents = images(tmp_path / "s", "cat/0.png", "cat/1.png", "dog/0.png")
    write_files(tmp_path, {"s/captions.jsonl": jsonl({name: [f"of {name}"] for name in contents})})
    source = open_source("s", captions="s/captions.jsonl", policies=STRICT)
    listing = source.listing()
    assert labels_of(listing) == {"cat/0.png": "cat", "cat/1.png": "cat", "dog/0.png": "dog"}
    assert captions_of(listing) == {name: [f"of {name}"] for name in contents}
    assert (found_in(listing).by, found_in(listing).keys) == ("path", ("file", "captions"))
    assert contents_of(source) == contents
    flat = open_source("s", kind="flat", captions="s/captions.jsonl", policies=STRICT).listing()
    assert not flat.has_classes and captions_of(flat) == captions_of(listing)


@pytest.mark.parametrize(
    ("file", "caption"),
    [("file_name", "text"), ("image", "caption"), ("filename", "captions"), ("path", "caption")],
)
def test_synonyms_of_keys_are_taken_and_named(tmp_path: Path, file: str, caption: str) -> None:
    images(tmp_path / "s", "a.png")
    write_files(tmp_path, {"c.jsonl": json.dumps({"id": 1, caption: " one\n", file: "./a.png"})})
    listing = open_source("s", captions="c.jsonl", policies=STRICT).listing()
    assert captions_of(listing) == {"a.png": ["one"]}
    assert found_in(listing).keys == (file, caption)


def test_lines_of_one_image_add_up_and_blanks_are_left_out(tmp_path: Path) -> None:
    images(tmp_path / "s", "a.png", "b.png")
    rows: list[dict[str, object]] = [
        {"file": "a.png", "caption": "one"},
        {"file": "b.png", "captions": ["", " ", "two"]},
        {"file": "a.png", "captions": ["three"]},
        {"file": "a.png", "captions": None},
    ]
    write_files(tmp_path, {"c.jsonl": "\n".join(map(json.dumps, rows))})
    listing = open_source("s", captions="c.jsonl", policies=STRICT).listing()
    assert captions_of(listing) == {"a.png": ["one", "three"], "b.png": ["two"]}
    assert found_in(listing).keys == ("file", "caption", "captions")


# Joining


def test_last_parts_of_names_join_where_no_path_does(tmp_path: Path) -> None:
    images(tmp_path / "s", "val2014/7.png", "val2014/8.png")
    write_files(
        tmp_path, {"k.json": karpathy({"7.png": ["x"], "8.png": ["y"]}, {"7.png": "test", "8.png": "test"})}
    )
    write_files(tmp_path, {"c.json": coco({"7.png": ["x"], "8.png": ["y"]})})
    for location, captions, by in (
        ("s", "k.json", "path"),
        ("s/val2014", "k.json", "file name"),
        ("s", "c.json", "file name"),
        ("s/val2014", "c.json", "path"),
    ):
        listing = open_source(location, captions=captions, policies=STRICT).listing()
        assert [text for texts in captions_of(listing).values() for text in texts] == ["x", "y"]
        assert found_in(listing).by == by


@pytest.mark.parametrize(
    ("there", "named", "message"),
    [
        (
            ("a/0.png", "b/0.png"),
            ("0.png",),
            r"'0\.png' is the name of several images, and .*\n.* such as a/0\.png",
        ),
        (("c/0.png",), ("a/0.png", "b/0.png"), r"'0\.png' is the name of several entries"),
        (
            ("a/0.png",),
            ("1.png",),
            r"no entry names an image of s: the first entry is '1\.png', the first image 'a/0",
        ),
    ],
)
def test_names_that_do_not_tell_images_apart(
    tmp_path: Path, there: tuple[str, ...], named: tuple[str, ...], message: str
) -> None:
    images(tmp_path / "s", *there)
    write_files(tmp_path, {"c.jsonl": jsonl({name: ["x"] for name in named})})
    with pytest.raises(UserError, match=message):
        open_source("s", captions="c.jsonl", policies=STRICT).listing()


def test_images_without_captions_stop_or_are_left_out(tmp_path: Path) -> None:
    contents = images(tmp_path / "s", *(f"{row}.png" for row in range(7)))
    write_files(
        tmp_path, {"s/README.txt": "no image", "c.json": coco({"1.png": ["x"], "3.png": [], "gone.png": ["y"]})}
    )
    with pytest.raises(
        FaultStop, match=r"^0\.png: uncaptioned: 6 of 7 images are without: 0\.png, 2\.png, 3\.png, …$"
    ):
        open_source("s", captions="c.json", policies=STRICT).listing()
    source = open_source("s", captions="c.json", policies=allow("uncaptioned=skip"))
    listing = source.listing()
    assert contents_of(source) == {"1.png": contents["1.png"]}
    assert left_out(listing) == [(f"{row}.png", "uncaptioned") for row in (0, 2, 3, 4, 5, 6)]
    assert {finding.detail for _, finding in listing.findings} == {"has no caption", "its captions are empty"}
    found = found_in(listing)
    assert (found.captions, found.uncaptioned, found.other_files) == (1, 6, 1)
    assert (found.absent, found.first_absent) == (1, ("gone.png",))


def test_a_file_that_is_captioned_is_an_image_whatever_its_name(tmp_path: Path) -> None:
    images(tmp_path / "s", "a", "b.png")
    write_files(tmp_path, {"c.jsonl": jsonl({"a": ["x"], "b.png": ["y"]})})
    assert captions_of(open_source("s", captions="c.jsonl", policies=STRICT).listing()) == {
        "a": ["x"],
        "b.png": ["y"],
    }


# Splits

OF_SPLITS = {"0.png": "train", "1.png": "restval", "2.png": "val", "3.png": "test", "4.png": "train"}


@pytest.mark.parametrize(
    ("split", "taken"),
    [
        ("train", "04"),
        ("train+restval", "014"),
        ("restval", "1"),
        ("val", "2"),
        ("test", "3"),
        ("all", "01234"),
    ],
)
def test_the_split_of_karpathys_file(tmp_path: Path, split: str, taken: str) -> None:
    """The images of the other splits are no fault: they are passed over, and counted."""
    images(tmp_path / "s", *OF_SPLITS)
    write_files(tmp_path, {"k.json": karpathy({name: [f"of {name}"] for name in OF_SPLITS}, OF_SPLITS)})
    listing = open_source("s", captions="k.json", split=split, policies=STRICT).listing()
    assert captions_of(listing) == {f"{row}.png": [f"of {row}.png"] for row in taken}
    assert listing.findings == []
    assert listing.selection.split == split
    marks = {"restval": "train", "val": "val", "test": "test"}  # restval counts as train
    assert split_of_shards(listing.location, listing.selection) == marks.get(split, "train")
    assert dict(listing.selection.splits) == {"train": 2, "restval": 1, "val": 1, "test": 1}
    assert found_in(listing).other_splits == 5 - len(taken)


def test_the_split_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    images(tmp_path / "s", *OF_SPLITS)
    file = karpathy({name: ["x"] for name in OF_SPLITS}, OF_SPLITS)
    write_files(tmp_path, {"k.json": file, "one.json": karpathy({"3.png": ["x"]}, {"3.png": "test"})})
    with pytest.raises(
        UserError, match=r"splits train \(2 images\), restval \(1 .*\n.*--split train, or with .*train\+r"
    ):
        open_source("s", captions="k.json", policies=STRICT)
    with pytest.raises(UserError, match=r"no split 'dev', only train \(2 images\).*\n.*--split train"):
        open_source("s", captions="k.json", split="train+dev", policies=STRICT)
    listing = open_source("s", captions="one.json", policies=allow("uncaptioned=skip")).listing()
    assert (listing.selection.split, found_in(listing).uncaptioned) == ("test", 4)
    for name in OF_SPLITS:
        if OF_SPLITS[name] != "val":
            (tmp_path / "s" / name).unlink()
    with pytest.raises(
        UserError, match=r"no entry of the split test names an image of s: the first entry is 'val2014/3"
    ):
        open_source("s", captions="k.json", split="test", policies=STRICT).listing()


def test_other_forms_leave_the_split_to_folders(tmp_path: Path) -> None:
    images(tmp_path / "s", "train/cat/0.png", "train/dog/1.png", "val/cat/2.png")
    images(tmp_path / "coco", "train2014/0.png", "val2014/1.png")
    write_files(tmp_path, {"s/train/c.jsonl": jsonl({"cat/0.png": ["x"], "dog/1.png": ["y"]})})
    write_files(tmp_path, {"coco/annotations/c.json": coco({"1.png": ["z"]})})
    with pytest.raises(UserError, match=r"the splits train/ \(3 files\), val/"):
        open_source("s", captions="s/train/c.jsonl", policies=STRICT)
    listing = open_source("s", captions="s/train/c.jsonl", split="train", policies=STRICT).listing()
    assert labels_of(listing) == {"cat/0.png": "cat", "dog/1.png": "dog"}
    listing = open_source("coco", captions="coco/annotations/c.json", split="val", policies=STRICT).listing()
    assert (listing.kind, captions_of(listing)) == ("flat", {"1.png": ["z"]})


# Labels, and what is refused


def test_labels_of_a_file_and_captions_of_another(tmp_path: Path) -> None:
    images(tmp_path / "s", "a.png", "b.png")
    write_files(tmp_path, {"l.csv": "file,label\na.png,dog\nb.png,cat\n", "c.json": coco(PAIR)})
    listing = open_source("s", labels="l.csv", captions="c.json", policies=STRICT).listing()
    assert (labels_of(listing), captions_of(listing)) == ({"a.png": "dog", "b.png": "cat"}, PAIR)


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        ("s", {"caption_column": "text"}, "captions are of a file or of a column"),
        ("t", {}, r"webdataset sources have their captions inside\n.*--caption-column"),
        ("s", {"kind": "parquet"}, "parquet sources have their captions inside"),
        ("s", {"kind": "folders"}, "s has no class folders"),
        ("s", {"kind": "folders", "labels": "l.csv"}, "folders sources have their labels inside"),
        ("s/a.png", {}, r"a\.png is not a source of images"),
        (
            "s",
            {"captions": "nowhere.json"},
            r"captions nowhere\.json cannot be read: there is no such file\n.*allowed",
        ),
        ("s", {"captions": "s"}, "captions s cannot be read"),
        ("s", {"split": "half"}, "s has no split 'half'"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, location: str, options: dict[str, Any], message: str) -> None:
    images(tmp_path / "s", *PAIR)
    write_files(tmp_path, {"c.json": coco(PAIR)})
    write_tar(tmp_path / "t/0.tar", [("a.png", digit(0)), ("a.txt", "one")])
    with pytest.raises(UserError, match=message):
        open_source(location, **{"captions": "c.json", "policies": STRICT, **options}).listing()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "captions c is empty"),
        (" \n\n", "captions c is empty"),
        ("caption,file\n", "captions c is not JSON"),
        ("[]", "captions c has no list of images"),
        (b"\xff{}", "captions c is not JSON"),
        ('{"file": "a.png"}', "line 1 has none of the keys captions, caption, text, only file"),
        ('{"captions": []}\n', "line 1 has none of the keys file, file_name, filename, image, path, only captions"),
        ('{"file": "a.png", "caption": 3}', "line 1: caption is neither text nor a list of texts"),
        ('{"file": "a.png", "captions": ["x", null]}', "line 1: captions is neither text nor"),
        ('{"file": {"bytes": 1}, "caption": "x"}', r"line 1: file is .* not the name of a file"),
        ('{"file": " ", "caption": "x"}', r"line 1: file is ' ', not the name of a file"),
        (jsonl(PAIR) + '{"file": "a', "line 3 is not JSON"),
        (jsonl(PAIR) + "3", "line 3 is not an object"),
        ('{"file": "a.png", "caption": "\\ud800"}\n', r"captions c is not JSON: .*\n.* COCO .*, or lines such as"),
        (coco(PAIR)[:-20], "captions c is not JSON"),
        (
            karpathy(PAIR, dict.fromkeys(PAIR, "val")).replace('"cocoid": 1', '"cocoid": 0'),
            r"image id repeated: .*\n  each image id is allowed once$",
        ),
        (coco(PAIR).replace("b.png", "a.png"), r"'a\.png' is the file of 2 images"),
        ('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": 3}', "annotations is not a list"),
        ('{"images": [{"filename": "a.png", "sentences": []}]}', "has no 'split'"),
    ],
)
def test_faults_of_caption_files_are_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    images(tmp_path / "s", *PAIR)
    write_files(tmp_path, {"c": text})
    with pytest.raises(UserError, match=message):
        open_source("s", captions="c", policies=STRICT).listing()


def test_a_folder_under_earlier_rules_takes_captions_too(tmp_path: Path) -> None:
    images(tmp_path / "s", *PAIR)
    write_files(tmp_path, {"c.json": coco(PAIR)})
    listing = open_source("s", captions="c.json", policies=STRICT, rules=EARLIER_RULES).listing()
    assert captions_of(listing) == PAIR
