"""`causalfusion evaluate --captions`: the scores of a file, and one message for each wrong input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.platform.cli.conftest import Run, check_refusal

from causalfusion_platform.evaluation.metrics import caption_tokenizers

REFERENCES = {
    1: ["A man rides a horse.", "A person on a brown horse"],
    2: ["Two dogs play with a ball", "Dogs, on the grass!"],
    3: ["A red train at the station"],
}
BLEU = 0.7620425808584571
"""BLEU-4 of the results file by pycocoevalcap 1.2."""
SCORE = 5.133965663192143
"""Returned by pycocoevalcap 1.2's `Cider().compute_score` for the same words, lower-cased and split by hand."""
FILE = ["evaluate", "--captions", "results.json", "--references", "captions.json"]


@pytest.fixture(autouse=True)
def files(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """COCO's and Karpathy's file of the same images, and results of a model. The jar of PTB is not installed."""
    monkeypatch.setattr(caption_tokenizers, "_installed_jar", lambda: None)
    write("captions.json", coco(REFERENCES))
    sentences = {
        number: [{"raw": text, "sentid": 10 * number + place} for place, text in enumerate(texts)]
        for number, texts in REFERENCES.items()
    }
    images = [
        {
            "cocoid": number,
            "filename": f"{number}.jpg",
            "split": "train" if number == 3 else "test",
            "sentences": them,
        }
        for number, them in sentences.items()
    ]
    write("dataset_coco.json", {"images": images})
    write("results.json", results({3: "A red train at the station", 1: "a man rides a horse", 2: "cats"}))
    return own_folder


def write(name: str, content: object) -> None:
    Path(name).write_text(json.dumps(content))


def coco(captions: Mapping[int, list[str]]) -> dict[str, object]:
    pairs = [(number, text) for number, texts in captions.items() for text in texts]
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in captions],
        "annotations": [{"id": i, "image_id": number, "caption": text} for i, (number, text) in enumerate(pairs)],
    }


def results(captions: Mapping[int, str]) -> list[dict[str, object]]:
    return [{"image_id": number, "caption": caption} for number, caption in captions.items()]


def test_scores_of_a_results_file(run: Run, files: Path) -> None:
    result = run(*FILE, "--json")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    record = json.loads(lines[-1])
    assert record["cider_d_words"] == pytest.approx(SCORE, abs=1e-12)
    assert record["bleu4_words"] == pytest.approx(BLEU, abs=1e-12)
    assert lines[:-1] == [
        f"cider_d_words {SCORE:.4f}",
        f"bleu4_words {BLEU:.4f}",
        "3 images, mean length 4.00 words",
        "cider_d_ptb is not measured: it needs Java and stanford-corenlp-3.4.1.jar, see --ptb-jar",
    ]
    assert (record["images"], record["mean_length"], record["split"]) == (3, 4.0, None)
    assert record["tokenizers"] == dict.fromkeys(
        ("cider_d_words", "bleu4_words"), caption_tokenizers.WordTokenizer.identity
    )
    assert "cider_d_ptb" not in record
    assert record["captions_sha256"] == hashlib.sha256((files / "results.json").read_bytes()).hexdigest()
    assert record["references"] == "captions.json"


def test_the_test_split_is_the_default(run: Run) -> None:
    arguments = ["evaluate", "--captions", "results.json", "--references", "dataset_coco.json"]
    check_refusal(run(*arguments), "1 image (id 3) of 3 not in dataset_coco.json, split test, which has 2 images")
    write("results.json", results({1: "a man rides a horse", 2: "cats"}))
    default, named = (run(*arguments, *more, "--json") for more in ([], ["--split", "test"]))
    assert default.out == named.out
    assert "2 images, split test, mean length 3.00 words" in default.out
    check_refusal(
        run(*arguments, "--split", "train"), "2 images (ids 1, 2) of 2 not in dataset_coco.json, split train"
    )


def test_a_given_jar_adds_the_ptb_metric(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = files / "stanford-corenlp-3.4.1.jar"
    jar.write_bytes(b"jar")
    check_refusal(run(*FILE, "--ptb-jar", str(jar)), "it is another file, of SHA-256", "leave --ptb-jar out")
    monkeypatch.setattr(caption_tokenizers, "JAR_SHA256", hashlib.sha256(b"jar").hexdigest())
    java = files / "java"
    java.write_text(
        '#!/bin/sh\n[ "$1" = -version ] && exit 0\nfor last; do :; done\ntr -d .,! < "$last" | tr A-Z a-z\n'
    )
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(files), prepend=":")
    result = run(*FILE, "--ptb-jar", str(jar), "--json")
    assert result.out.startswith(f"cider_d_words {SCORE:.4f}\ncider_d_ptb {SCORE:.4f}\nbleu4_words")
    record = json.loads(result.out.splitlines()[-1])
    assert set(record["tokenizers"]) == {"cider_d_words", "cider_d_ptb", "bleu4_words", "bleu4_ptb"}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("no JSON", ["results.json is not a list of captions"]),
        (results({1: "a", 2: "b"}), ["no caption of 1 image (id 3) of 3 in captions.json"]),
        (
            results({1: "a", 2: "b", 3: "c", 4: "d"}),
            ["1 image (id 4) of 4 not in captions.json, which has 3 images"],
        ),
        (results({1: "a", 2: "b", 3: ""}), ["an empty caption of 1 image (id 3)", "--allow-empty"]),
        (results({1: "a"}) * 2, ["more than one caption of 1 image (id 1)"]),
    ],
)
def test_wrong_captions(run: Run, content: object, parts: list[str]) -> None:
    write("results.json", content)
    check_refusal(run(*FILE), *parts)


def test_empty_captions_can_be_scored(run: Run) -> None:
    write("results.json", results({1: "", 2: "", 3: " "}))
    result = run(*FILE, "--allow-empty")
    assert result.out.startswith("cider_d_words 0.0000\nbleu4_words 0.0000\n3 images, mean length 0.00 words\n")


def test_one_image_is_refused(run: Run) -> None:
    write("results.json", results({1: "a"}))
    write("captions.json", coco({1: ["a"]}))
    check_refusal(run(*FILE), "CIDEr-D of 1 image is not defined, its idf is 0", "allowed: 2 images or more")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["evaluate"],
            ["neither a run nor captions are given", "causalfusion evaluate RUN, or causalfusion evaluate"],
        ),
        (FILE[:3], ["--captions needs the references of its images", "--references dataset_coco.json"]),
        (["evaluate", "runs/x", *FILE[1:]], ["RUN: not with --captions"]),
        ([*FILE, "--num", "8", "--local"], ["--num, --local: not with --captions"]),
        (
            ["evaluate", "runs/x", "--split", "test", "--allow-empty"],
            ["--split, --allow-empty: only with --captions"],
        ),
        ([*FILE, "--split", "test"], ["captions.json has no split 'test'", "leave out --split"]),
        ([*FILE, "--ptb-jar", "none.jar"], ["none.jar: there is no such file"]),
        ([*FILE[:3], "--references", "none.json"], ["none.json: there is no such file"]),
        ([*FILE[:3], "--references", "results.json"], ["results.json has no list of images"]),
        (["evaluate", "--captions", "none.json", *FILE[3:]], ["none.json: there is no such file"]),
    ],
)
def test_wrong_options(run: Run, arguments: list[str], parts: list[str]) -> None:
    check_refusal(run(*arguments), *parts)
