"""`causalfusion generate --prompts`, and the other verbs of runs with a model of text."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.sampling.plans import make_plan

from causalfusion import CausalFusion, DiffusionConfig, Prompts, SamplingConfig, load_weights, sample, save_weights
from causalfusion.weights.folder import load_tokenizer

FAST = ["num_inference_steps=2", "--local", "--batch-size", "4", "--out", "out"]
TEXTS = ["a bold seven", "a thin three", "a bold three", "seven", "three, bold"]


@pytest.fixture
def prompts(own_folder: Path) -> Path:
    """Five prompts, as `data prompts` writes them."""
    rows = [{"annotation_id": number, "image_id": 1, "caption": text} for number, text in enumerate(TEXTS)]
    (own_folder / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return own_folder / "p.jsonl"


def test_a_sample_of_each_prompt(run: Run, text_weights: Path, prompts: Path, own_folder: Path) -> None:
    arguments = ["generate", str(text_weights), *FAST, "--prompts", "p.jsonl", "--cfg", "2", "--json"]
    result = run(*arguments, "--png")
    assert result.status == 0
    digest = hashlib.sha256(prompts.read_bytes()).hexdigest()
    assert f"p.jsonl, {digest[:12]}…" in result.out
    summary = json.loads(result.out.splitlines()[-1])
    assert (summary["samples"], summary["made"]) == (5, 5)
    plan = json.loads((own_folder / "out/samples.json").read_text())["plan"]
    assert plan["prompts"] == {"file": str(prompts), "sha256": digest, "cut": None}

    tokenizer = load_tokenizer(text_weights)
    plane = SamplingConfig(num_inference_steps=2, guidance_scale=2)
    asked = Prompts.of([tokenizer.encode(text) for text in TEXTS])
    expected = sample(load_weights(text_weights), asked, plane, DiffusionConfig(), seed=0)
    pixels = (127.5 * expected + 127.5).clamp(0, 255).round().numpy()[:, 0]
    with np.load(own_folder / "out/samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        assert np.abs(file["arr_0"][..., 0].astype(np.int64) - pixels).max() <= 1
        with Image.open(own_folder / "out/png/000/000004.png") as image:
            assert np.array_equal(np.asarray(image), file["arr_0"][4])
    with (own_folder / "out/png/prompts.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [["file", "prompt"], *([f"000/{n:06d}.png", text] for n, text in enumerate(TEXTS))]

    prompts.rename(own_folder / "elsewhere.jsonl")
    again = run(*arguments[:-4], "elsewhere.jsonl", "--cfg", "2", "--json")
    assert again.out.startswith("all samples were there; nothing was generated\n")
    with (own_folder / "elsewhere.jsonl").open("a") as file:
        file.write('{"caption": "a seven"}\n')
    check_refusal(run(*arguments[:-4], "elsewhere.jsonl", "--cfg", "2"), "prompts.sha256: was")


def test_long_prompts_are_refused_or_cut(run: Run, text_weights: Path, prompts: Path, own_folder: Path) -> None:
    with prompts.open("a") as file:
        file.write(json.dumps({"caption": "xyz" * 9}) + "\n")
    arguments = ["generate", str(text_weights), *FAST, "--prompts", "p.jsonl"]
    said = ["p.jsonl: prompt 6 of 6, 'xyz", "has 29 tokens", "takes at most 12", "--cut-prompts"]
    check_refusal(run(*arguments), *said)
    assert not (own_folder / "out").exists()
    assert ", 1 cut" in run(*arguments, "--cut-prompts").out
    assert run("generate", str(text_weights), *FAST[:-1], "five", "--prompts", "p.jsonl", "--num", "5").status == 0
    images = [np.load(own_folder / name / "samples.npz")["arr_0"] for name in ("out", "five")]
    assert [len(some) for some in images] == [6, 5]
    assert np.array_equal(images[0][:4], images[1][:4])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["p.jsonl is empty", "causalfusion data prompts"]),
        (b"{", ["p.jsonl line 1 is not JSON"]),
        (b'{"caption": "a"}\n{"text": "b"}\n', ["p.jsonl line 2 has no caption of text"]),
        (b'{"caption": " "}\n', ["p.jsonl line 1 has no caption of text"]),
        (b'["a"]\n', ["p.jsonl line 1 has no caption of text"]),
    ],
)
def test_malformed_files(run: Run, text_weights: Path, prompts: Path, content: bytes, parts: list[str]) -> None:
    prompts.write_bytes(content)
    check_refusal(run("generate", str(text_weights), *FAST, "--prompts", "p.jsonl"), *parts)


def test_what_does_not_go_together(run: Run, text_weights: Path, prompts: Path, random_model: CausalFusion) -> None:
    text, asked = ["generate", str(text_weights), *FAST], ["--prompts", "p.jsonl"]
    said = ["draws from text, so that its samples need prompts", "--prompts FILE.jsonl", "data prompts"]
    check_refusal(run(*text), *said)
    check_refusal(run(*text, "--prompts", "no.jsonl"), "no.jsonl: there is no such file")
    check_refusal(run(*text, *asked, "--num", "6"), "6 samples of 5 prompts", "--num N")
    check_refusal(run(*text, *asked, "--classes", "0-3"), "--prompts are drawn in turn, in place of classes")
    check_refusal(run(*text, "--cut-prompts"), "--cut-prompts needs prompts")
    check_refusal(run("evaluate", str(text_weights), "--local"), *said)
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(Path("classes"), random_model.config, state)
    for verb, extra in (("generate", FAST), ("evaluate", ["--local"])):
        check_refusal(run(verb, "classes", *extra, *asked), "draws classes, not text", "leave out --prompts")


def test_sets_of_classes_keep_their_names() -> None:
    """A plan without prompts has no such key among those that name it."""
    assert not [key for key in make_plan().identity if "prompts" in key]


def test_the_authors_format_has_no_text(run: Run, text_weights: Path, own_folder: Path) -> None:
    said = "the release has models of classes only, and this one has text"
    check_refusal(run("weights", "export", str(text_weights), "out.pt"), said)
    assert not (own_folder / "out.pt").exists()
