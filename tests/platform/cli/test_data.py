"""`causalfusion data`: `verify`, `encode`, `inspect`, `stats`, and the digits that come with the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tests.conftest import files_of
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.conftest import description_of, small_rows
from tests.platform.data.damage import put, rewrite
from tests.platform.data.encode.in_process import without_ray
from tests.platform.data.sources.makers import digit, write_files
from tests.platform.data.tiny_vaes import new_kl

from causalfusion_platform.data.autoencoder import open_encoder
from causalfusion_platform.data.manifest import AutoencoderId, Manifest
from causalfusion_platform.data.shards import Rows, write_shards

SHARDS = [f"shard-{index:05d}-of-00004.parquet" for index in range(4)]


@pytest.fixture
def digits(digits_folder: Path, own_folder: Path) -> Path:
    """Return a copy of the digits, to be damaged."""
    return Path(shutil.copytree(digits_folder, own_folder / "digits"))


# verify


@pytest.mark.parametrize("options", [[], ["--quick"], ["--quarantine"]])
def test_a_folder_in_order(run: Run, digits: Path, options: list[str]) -> None:
    before = files_of(digits)
    result = run("data", "verify", "digits", *options)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("digits: 4 shards and 1797 rows are whole")
    assert result.out.count("\n") == 1
    assert files_of(digits) == before


def test_every_bad_shard_is_named(run: Run, digits: Path) -> None:
    rewrite(digits, 1, put("mean", 130, np.nan))
    (digits / SHARDS[3]).unlink()
    before = files_of(digits)
    result = run("data", "verify", "digits")
    assert (result.status, result.err) == (2, "")
    lines = result.out.splitlines()
    assert lines[:3] == [
        "digits: 2 of 4 shards are bad, 897 of 1797 rows",
        f"  {SHARDS[1]}: row group 1: mean holds NaN or infinity in row 2 (row id 580)",
        f"  {SHARDS[3]}: the file is missing",
    ]
    assert "causalfusion data verify digits --quarantine" in result.out
    assert files_of(digits) == before
    quick = run("data", "verify", "digits", "--quick")
    assert quick.status == 2
    assert quick.out.startswith(f"digits: 1 of 4 shards are bad, 447 of 1797 rows\n  {SHARDS[3]}: ")


def test_quarantine_and_back(run: Run, digits: Path, digits_folder: Path) -> None:
    """Set aside, verified without them, and made anew as the command says."""
    rewrite(digits, 1, put("mean", 130, np.nan))
    (digits / SHARDS[3]).unlink()
    result = run("data", "verify", "digits", "--quarantine")
    assert (result.status, result.err) == (0, "")
    assert "NaN" in result.out
    rest = Manifest.read(digits)
    assert f"900 of 1797 rows are left in 2 shards, digest {rest.digest[:16]}" in result.out
    assert (digits / "_quarantine" / SHARDS[1]).is_file()
    assert run("data", "verify", "digits").out.startswith("digits: 2 shards and 900 rows are whole")
    assert "set aside     2 shards with 897 rows" in run("data", "inspect", "digits").out
    assert "make them anew: causalfusion data digits digits" in result.out
    assert run("data", "digits", "digits").status == 0
    assert Manifest.read(digits) == Manifest.read(digits_folder)


def test_an_encoded_folder_is_restored_by_encoding(run: Run, own_folder: Path) -> None:
    rows = small_rows(20)
    write_shards(rows, description_of(rows), own_folder / "mine", rows_per_shard=5, rows_per_group=5)
    (own_folder / "mine" / SHARDS[0]).unlink()
    for options in ([], ["--quarantine"]):
        assert "causalfusion data encode 'numbers in turn' mine" in run("data", "verify", "mine", *options).out


def test_nothing_is_left(run: Run, digits: Path) -> None:
    for file in SHARDS:
        (digits / file).write_bytes(b"nothing")
    result = run("data", "verify", "digits", "--quarantine")
    assert result.status == 2
    assert result.err.startswith("error: all 4 shards in digits are bad; none was moved")
    assert result.out.count("it has 7 bytes") == 4
    assert not (digits / "_quarantine").exists()


def test_images_that_are_there_twice(run: Run, own_folder: Path) -> None:
    rows = small_rows(20)
    rows.mean[13] = rows.mean[4]
    write_shards(rows, description_of(rows), own_folder / "mine", rows_per_shard=5, rows_per_group=5)
    result = run("data", "verify", "mine")
    assert result.status == 0
    assert result.out.splitlines()[1:] == [
        "note: 1 row holds the latent of an earlier row under another key, such as",
        "  key 13 = key 4",
    ]


@pytest.mark.parametrize("verb", ["verify", "inspect", "stats"])
def test_no_data_set(run: Run, own_folder: Path, verb: str) -> None:
    check_refusal(run("data", verb, "nowhere"), "nowhere", "does not exist", "causalfusion data digits")
    assert not list(own_folder.iterdir())


# encode


def test_a_dry_run_says_what_would_be_encoded(run: Run, own_folder: Path) -> None:
    """Classes, split and what is left out, before anything is written."""
    names = [f"{name}/{row}.png" for name in ("cat", "dog") for row in range(2)]
    for split in ("train", "val"):
        write_files(own_folder / "pets" / split, {name: digit(row) for row, name in enumerate(names)})
    write_files(own_folder / "pets/train", {"__MACOSX/._0.png": b"", "cat/.DS_Store": b"", "owl/.DS_Store": b""})
    command = ("data", "encode", "pets", "out", "--vae", "identity", "--size", "8", "--dry-run")
    refused = run(*command)
    check_refusal(refused, "train/ (4 files)", "val/ (4 files)", "--split train")
    result = run(*command, "--split", "train", "--json")
    assert result.status == 0
    assert not Path("out").exists()
    *lines, last = result.out.splitlines()
    text = "\n".join(line.strip("│").strip() for line in lines)
    assert "source     folders, pets/train" in text
    assert "images     4" in text
    assert "split      train, of train (4 files), val (4 files)" in text
    assert "classes    3: cat, dog, owl" in text
    assert "no images  in 1: owl" in text
    assert "left out   system files: 2 .DS_Store, 1 __MACOSX/" in text
    assert json.loads(last) == {
        "dry_run": True,
        "shards": 1,
        "kind": "folders",
        "items": 4,
        "classes": 3,
        "class_names": ["cat", "dog", "owl"],
        "empty_classes": ["owl"],
        "split": "train",
        "splits": {"train": 4, "val": 4},
        "counts_as": "train",
        "left_out": {".DS_Store": 2, "__MACOSX/": 1},
    }


def test_an_encoding_says_it_before_and_names_a_class_without_rows(run: Run, own_folder: Path) -> None:
    write_files(own_folder / "pets", {"cat/0.png": digit(0), "dog/0.png": b"no image", "dog/.DS_Store": b""})
    with without_ray():
        result = run("data", "encode", "pets", "out", "--vae", "identity", "--size", "8", "--json")
    assert result.status == 0
    before, after = result.out.split("encoded into")
    assert "classes   2: cat, dog" in before
    assert "split     not named: every file is taken" in before
    assert "no rows      in 1: dog" in after
    summary = json.loads(result.out.splitlines()[-1])
    assert (summary["rows"], summary["classes"], summary["empty_classes"]) == (1, 2, ["dog"])
    assert summary["left_out"] == {".DS_Store": 1}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("--captions", "k.json", "--split", "test"), {"0.png": ["zero", "nought"], "2.png": ["two"]}),
        (("--captions", "c.jsonl", "--on", "uncaptioned=skip"), {"0.png": ["a"], "1.png": ["b"]}),
    ],
)
def test_captions_of_a_file_reach_the_shards(
    run: Run, own_folder: Path, command: tuple[str, ...], expected: dict[str, list[str]]
) -> None:
    """Begin, end and dry run say which form was taken; the shards hold what the file says."""
    write_files(own_folder / "coco", {f"{row}.png": digit(row) for row in range(3)})
    sentences = {0: ["zero", "nought"], 1: ["one"], 2: ["two "]}
    described = [
        {
            "filename": f"{row}.png",
            "cocoid": row,
            "split": "val" if row == 1 else "test",
            "sentences": [{"raw": text, "sentid": 10 * row + at} for at, text in enumerate(texts)],
        }
        for row, texts in sentences.items()
    ]
    lines = [
        {"image": "0.png", "caption": "a"},
        {"image": "1.png", "caption": "b"},
        {"image": "9.png", "caption": ""},
    ]
    write_files(own_folder, {"k.json": json.dumps({"images": described})})
    write_files(own_folder, {"c.jsonl": "\n".join(map(json.dumps, lines))})
    options = ("data", "encode", "coco", "out", "--vae", "identity", "--size", "8", "--json", *command)
    dry = run(*options, "--dry-run")
    with without_ray():
        result = run(*options)
    assert (dry.status, result.status) == (0, 0)
    before, after = result.out.split("encoded into")
    form = "Karpathy, k.json" if "k.json" in command else "JSONL (keys image, caption), c.jsonl"
    for text in (dry.out, before, after):
        assert f"{sum(map(len, expected.values()))}, {form}, joined by path" in " ".join(text.split())
        assert ("1 image of other splits" in text) == ("k.json" in command)
        assert ("1 captioned image not there: 9.png" in text) == ("c.jsonl" in command)
    facts = [json.loads(text.splitlines()[-1])["captions"] for text in (dry.out, result.out)]
    assert facts[0] == facts[1]
    assert (facts[0]["form"], facts[0]["uncaptioned"]) == (form.split(",")[0].split()[0], int("c.jsonl" in command))
    table = pq.read_table("out")
    assert dict(zip(table["key"].to_pylist(), table["captions"].to_pylist(), strict=True)) == expected
    assert table["label"].to_pylist() == [0, 0]


def test_images_without_captions_are_refused_with_the_way_out(run: Run, own_folder: Path) -> None:
    write_files(own_folder / "pets", {f"cat/{row}.png": digit(row) for row in range(6)})
    write_files(own_folder, {"pets/c.jsonl": json.dumps({"file": "cat/5.png", "captions": ["x"]})})
    refused = run("data", "encode", "pets", "out", "--vae", "identity", "--size", "8", "--captions", "pets/c.jsonl")
    check_refusal(refused, "5 of 6 images are without: cat/0.png, cat/1.png, cat/2.png, …", "--on uncaptioned=skip")
    assert not Path("out").exists()


# inspect


def test_inspect_the_digits(run: Run, digits: Path) -> None:
    result = run("data", "inspect", "digits", "--out", "new/p.png", "--samples", "25")
    assert (result.status, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert "rows          1,797 in 4 shards, 16 row groups" in result.out
    assert "per class     174 (8), median 180, 183 (3)" in result.out
    assert "warning" not in result.out
    assert result.out.endswith("20 images: new/p.png\n")
    first = Path("new/p.png").read_bytes()
    run("data", "inspect", "digits", "--out", "new/p.png", "--samples", "25", "--seed", "1")
    assert Path("new/p.png").read_bytes() != first
    run("data", "inspect", "digits", "--out", "new/p.png", "--samples", "25", "--seed", "0")
    assert Path("new/p.png").read_bytes() == first


def test_inspect_goes_on_without_a_bad_shard(run: Run, digits: Path) -> None:
    (digits / SHARDS[1]).unlink()
    result = run("data", "inspect", "digits")
    assert result.status == 0
    assert "left out: 1 of 4 shards in digits, 450 of 1797 rows" in result.out
    assert "rows          1,347 in 3 shards" in result.out


def test_inspect_refuses_what_is_no_picture(run: Run, digits: Path) -> None:
    check_refusal(run("data", "inspect", "digits", "--out", "preview.txt"), "preview.txt has no suffix of pictures")


def test_inspect_latents_of_an_autoencoder(run: Run, own_folder: Path) -> None:
    new_kl().save_pretrained("vae")
    encoder = open_encoder("vae")
    latents = np.random.default_rng(0).standard_normal((6, 4, 2, 2)).astype(np.float16)
    rows = Rows(row_ids=np.arange(6), labels=np.arange(6) % 3, keys=list("abcdef"), mean=latents)
    made = AutoencoderId(name=encoder.name, scale=encoder.scale, weights_sha256=encoder.weights_sha256)
    description = description_of(rows).model_copy(update={"autoencoder": made})
    write_shards(rows, description, own_folder / "mine", rows_per_shard=6, rows_per_group=6)
    without = run("data", "inspect", "mine")
    assert (without.status, without.err) == (0, "")
    assert "no images drawn: latents of an AutoencoderKL need it" in without.out
    assert "--vae PATH" in without.out
    assert not Path("preview.png").exists()
    shown = run("data", "inspect", "mine", "--vae", "vae")
    assert shown.status == 0
    assert shown.out.endswith("6 images: preview.png\n")
    with Image.open("preview.png") as image:
        assert image.height > 3 * 48
    check_refusal(run("data", "inspect", "mine", "--vae", "identity"), "--vae identity is another autoencoder")
    check_refusal(run("data", "inspect", "mine", "--vae", "nothing"), "no autoencoder in nothing")


# stats


def test_stats(run: Run, digits: Path) -> None:
    pixels = load_digits().data / 8 - 1
    result = run("data", "stats", "digits", "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["rows"] == 1797
    assert found["channels"] == [found["overall"]]
    assert found["overall"]["std"] == pytest.approx(pixels.std(), rel=1e-12)
    assert found["suggested_scale"] == pytest.approx(1 / pixels.std(), rel=1e-12)
    table = run("data", "stats", "digits")
    assert f"all     {pixels.mean():9.4g} {pixels.std():9.4g}        -1         1" in table.out
    assert max(map(len, table.out.splitlines())) <= 80


def test_stats_of_a_folder_that_is_not_whole(run: Run, digits: Path) -> None:
    (digits / SHARDS[1]).unlink()
    check_refusal(run("data", "stats", "digits"), SHARDS[1], "the file is missing", "data verify digits")


# digits


def test_digits_with_captions(run: Run, own_folder: Path) -> None:
    result = run("data", "digits", "mine", "--captions")
    assert (result.status, result.err) == (0, "")
    first, _, second, _, last = result.out.splitlines()
    assert first == "1497 latents of 1×8×8 in 4 shards, 10 classes, split train"
    assert second == "300 latents of 1×8×8 in 1 shard, 10 classes, split val"
    assert last.startswith("five captions a row; 70 of 270 combinations of class, ink, slant and width")
    assert Manifest.read(own_folder / "mine-validation").digest[:16] in result.out
    assert "captions yes" in run("data", "inspect", "mine").out
    assert run("data", "digits", "mine", "--captions", "--seed", "1").status == 0
    (own_folder / "mine-validation" / "shard-00000-of-00001.parquet").unlink()
    verdict = run("data", "verify", "mine-validation")
    assert "make them anew: causalfusion data digits mine --captions --seed 1" in verdict.out


def test_digits_in_two_parts(run: Run, own_folder: Path) -> None:
    result = run("data", "digits", "mine", "--split")
    assert (result.status, result.err) == (0, "")
    assert [line for line in result.out.splitlines() if "latents" in line] == [
        "1497 latents of 1×8×8 in 4 shards, 10 classes, split train",
        "300 latents of 1×8×8 in 1 shard, 10 classes, split val",
    ]
    assert "split         val" in run("data", "inspect", "mine-validation").out
    assert run("data", "verify", "mine-validation").out.startswith("mine-validation (val): ")
    assert run("data", "verify", "mine").out.startswith("mine: ")


def test_digits_that_are_not_written(run: Run, own_folder: Path) -> None:
    check_refusal(run("data", "digits", "mine", "--seed", "3"), "--seed 3", "data digits mine --split --seed 3")
    (own_folder / "mine-validation").write_text("a file")
    check_refusal(
        run("data", "digits", "mine", "--captions"), "mine-validation exists", "name a new or empty folder"
    )
    assert [path.name for path in own_folder.iterdir()] == ["mine-validation"]


# mnist


def test_mnist_in_two_parts(run: Run, own_folder: Path) -> None:
    result = run("data", "mnist", "mine")
    assert (result.status, result.err) == (0, "")
    first, where, second, beside = result.out.splitlines()
    assert first == "4500 latents of 1×16×16 in 3 shards, 10 classes, split train"
    assert second == "500 latents of 1×16×16 in 1 shard, 10 classes, split val"
    for line, folder in ((where, "mine"), (beside, "mine-validation")):
        assert line.startswith(f"{folder}/_manifest.json")
        assert Manifest.read(own_folder / folder).digest[:16] in line
    before = files_of(own_folder)
    assert run("data", "mnist", "mine").status == 0
    assert files_of(own_folder) == before
    assert "split         val" in run("data", "inspect", "mine-validation").out
    assert run("data", "verify", "mine").out.startswith("mine: 3 shards and 4500 rows are whole")
    assert run("data", "verify", "mine-validation").out.startswith("mine-validation (val): ")


def test_a_lost_part_of_mnist_names_its_command(run: Run, own_folder: Path) -> None:
    assert run("data", "mnist", "mine", "--captions").out.endswith(
        "five captions a row; 31 of 270 combinations of class, ink, slant and width are in no training row\n"
    )
    before = files_of(own_folder)
    for part in ("mine", "mine-validation"):
        [lost, *_] = sorted((own_folder / part).glob("*.parquet"))
        lost.unlink()
        verdict = run("data", "verify", part)
        assert verdict.status == 2
        assert "make them anew: causalfusion data mnist mine --captions\n" in verdict.out
    assert run("data", "mnist", "mine", "--captions").status == 0
    assert files_of(own_folder) == before


def test_mnist_that_is_not_written(run: Run, own_folder: Path) -> None:
    check_refusal(
        run("data", "mnist", "s3://bucket/mnist"), "s3://bucket/mnist is on object storage", "data upload"
    )
    for name in ("mine", "mine-validation"):
        (own_folder / name).mkdir()
        (own_folder / name / "notes.txt").write_text("mine")
        check_refusal(run("data", "mnist", "mine"), f"{name} exists", "name a new or empty folder")
        assert files_of(own_folder) == {f"{name}/notes.txt": b"mine"}
        shutil.rmtree(own_folder / name)
