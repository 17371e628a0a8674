"""`causalfusion caption`: captions of image files, and what is said instead of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.data.tiny_vaes import new_kl, pixels_of

from causalfusion import (
    CaptionConfig,
    CausalFusion,
    CausalFusionConfig,
    TextConfig,
    build_model,
    caption,
    load_weights,
    preset,
    save_weights,
)
from causalfusion.weights.folder import load_config, load_tokenizer
from causalfusion_platform.evaluation.captions_file import read_results

NAMES = ["digit_7.png", "digit_012.png", "digit_3.png"]


@pytest.fixture
def images(own_folder: Path) -> Path:
    """A folder of three gray images of 8×8 pixels and a text file."""
    folder = own_folder / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def expected_of(weights: Path, files: list[Path], **options: object) -> list[str]:
    """Return the captions by the model package, of pixels read by hand."""
    tokenizer = load_tokenizer(weights)
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    latents = torch.from_numpy(pixels).float()[:, None] / 127.5 - 1
    config = CaptionConfig(**options)  # type: ignore[arg-type]
    model = load_weights(weights)
    found = caption(model, latents, begin=tokenizer.begin, end=tokenizer.end, config=config, seed=5)
    return [tokenizer.decode(found[row]) for row in range(len(found))]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--beam", "3"], {"beam": 3}),
        (["--top-p", ".9"], {"top_p": 0.9, "temperature": 1.0}),
        (["--temperature", "2", "--max-tokens", "5"], {"temperature": 2.0, "max_tokens": 5}),
        (["--ar-steps", "3"], {"num_ar_steps": 3}),
    ],
)
def test_captions_are_those_of_the_model(
    run: Run, text_weights: Path, images: Path, arguments: list[str], options: dict[str, object]
) -> None:
    files = [images / name for name in NAMES]
    result = run("caption", str(text_weights), *map(str, files), "--seed", "5", "--json", *arguments)
    assert result.status == 0
    *lines, last = result.out.splitlines()
    rows = json.loads(last)
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert [row["caption"] for row in rows] == expected_of(text_weights, files, **options)
    assert all(row["log_probability"] < 0 for row in rows)
    shown = [" ".join(row["caption"].split()) for row in rows]
    assert lines == [f"{file} → {text}" for file, text in zip(files, shown, strict=True)]


def test_a_beginning_is_part_of_the_caption(run: Run, text_weights: Path, images: Path) -> None:
    result = run("caption", str(text_weights), str(images / NAMES[0]), "--prompt", "a bold", "--json")
    assert json.loads(result.out.splitlines()[-1])[0]["caption"].startswith("a bold")


def test_a_folder_is_read_by_name_and_written_as_coco_has_it(
    run: Run, text_weights: Path, images: Path, own_folder: Path
) -> None:
    result = run("caption", str(text_weights), str(images), "--results", "out/r.json", "--grid", "out/c.png")
    assert result.status == 0
    assert result.out.splitlines()[-2:] == ["out/r.json", "out/c.png"]
    files = [images / name for name in sorted(NAMES)]
    texts = expected_of(text_weights, files)
    assert read_results(own_folder / "out/r.json", allow_empty=True) == dict(zip([12, 3, 7], texts, strict=True))
    with Image.open(own_folder / "out/c.png") as picture:
        assert picture.height == 3 * (48 + 6) + 6


def test_colours_and_sizes_of_any_image(run: Run, text_weights: Path, images: Path) -> None:
    """The centred square of an image in colour, as `data encode` crops it, described as its gray."""
    gray = np.asarray(Image.open(images / NAMES[0]))
    wide = np.pad(gray, ((0, 0), (4, 4)))[..., None].repeat(3, axis=2)
    Image.fromarray(wide).save(images / "wide.png")
    files = [str(images / NAMES[0]), str(images / "wide.png")]
    rows = json.loads(run("caption", str(text_weights), *files, "--json").out.splitlines()[-1])
    assert rows[0]["caption"] == rows[1]["caption"]
    assert rows[0]["log_probability"] == rows[1]["log_probability"]


def test_images_go_through_the_autoencoder(run: Run, text_weights: Path, images: Path, own_folder: Path) -> None:
    """Latents of 8×8 with 4 channels, of images of 64×64 pixels, by diffusers alone."""
    tokenizer, vae = load_tokenizer(text_weights), new_kl()
    vae.save_pretrained(own_folder / "vae")
    text = TextConfig(vocabulary=tokenizer.size, max_tokens=12)
    torch.manual_seed(0)
    model = build_model(preset("tiny", in_channels=4, class_tokens=0, text=text))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    save_weights(own_folder / "weights", model.config, model.state_dict(), tokenizer=tokenizer)
    files = [images / f"colour_{number}.png" for number in range(3)]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    result = run("caption", "weights", *map(str, files), "--vae", "vae", "--json", "--grid", "c.png")
    assert result.status == 0
    with torch.no_grad():
        latents = vae.encode(pixels_of(pixels)).latent_dist.mean * vae.config.scaling_factor
    found = caption(model.eval(), latents, begin=tokenizer.begin, end=tokenizer.end, vocabulary=tokenizer.size)
    rows = json.loads(result.out.splitlines()[-1])
    assert [row["caption"] for row in rows] == [tokenizer.decode(found[row]) for row in range(3)]
    expected = [pytest.approx(float(total), rel=1e-3) for total in found.log_probabilities]
    assert [row["log_probability"] for row in rows] == expected
    assert len({row["log_probability"] for row in rows}) == 3
    check_refusal(run("caption", "weights", str(files[0])), "latents of 4 channels need an autoencoder", "--vae")


# What is said instead


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere.png"], ["there is no image nowhere.png"]),
        (["images/digit_3.png", "images"], ["images/digit_3.png is named twice"]),
        (["images/notes.txt"], ["images/notes.txt is not a readable image: not_image"]),
        (["."], [". has no images", ".png"]),
        (["images", "--beam", "3", "--top-p", ".9"], ["--beam searches and --top-p samples", "leave one"]),
        (["images", "--beam", "3", "--temperature", "1"], ["--beam searches and --temperature samples"]),
        (["images", "--top-p", "1.5"], ["top_p must lie in (0, 1], got 1.5"]),
        (["images", "--top-p", ".5", "--temperature", "0"], ["needs a temperature above 0"]),
        (["images", "--max-tokens", "13"], ["--max-tokens 13 is more than the 12 tokens"]),
        (["images", "--ar-steps", "17"], ["17", "leave out --ar-steps"]),
        (["images", "--prompt", "xyz" * 9], ["has 28 tokens", "a caption has at most 12", "shorten it"]),
        (["images", "--grid", "c.xyz"], ["c.xyz has no suffix of pictures"]),
    ],
)
def test_refusals(run: Run, text_weights: Path, images: Path, arguments: list[str], parts: list[str]) -> None:
    check_refusal(run("caption", str(text_weights), *arguments), *parts)


def test_a_transfusion_reads_images_in_one_step(
    run: Run, text_weights: Path, images: Path, own_folder: Path
) -> None:
    config = load_config(text_weights)
    assert isinstance(config, CausalFusionConfig)
    config = dataclasses.replace(config, architecture="transfusion")
    state = build_model(config).state_dict()
    save_weights(own_folder / "weights", config, state, tokenizer=load_tokenizer(text_weights))
    files = ("weights", str(images / NAMES[0]))
    check_refusal(
        run("caption", *files, "--ar-steps", "2"),
        "a Transfusion reads images in one AR step: num_ar_steps must be 1, got 2",
        "leave out --ar-steps",
    )
    assert run("caption", *files, "--ar-steps", "1").status == 0


def test_ids_end_the_names_of_files(run: Run, text_weights: Path, images: Path, own_folder: Path) -> None:
    (images / "digit_3.png").rename(images / "three.png")
    arguments = ["caption", str(text_weights), "images", "--results", "r.json"]
    check_refusal(run(*arguments), "the name three.png does not end in a number", "COCO_val2014_000000000042.jpg")
    (images / "three.png").rename(images / "other_7.png")
    check_refusal(run(*arguments), "both end in 7")
    assert not (own_folder / "r.json").exists()


def test_a_model_of_classes_describes_nothing(run: Run, images: Path, random_model: CausalFusion) -> None:
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(Path("classes"), random_model.config, state)
    check_refusal(run("caption", "classes", "images"), "draws classes and knows no text", "causalfusion train text")
    check_refusal(run("caption", "nowhere", "images"), "no weights in nowhere")
