"""Figure 5: its pictures are the model's own samples, and its captions those of validation digits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from tests.platform.checkpoint.made import facts, hash_files

from causalfusion import DiffusionConfig, Prompts, SamplingConfig, caption, load_weights, sample
from causalfusion.weights.folder import load_tokenizer
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.paper_figure import TextImageFigure
from causalfusion_platform.data.captioned_digits import write_captioned_digits
from causalfusion_platform.data.digits import digits
from causalfusion_platform.data.split_digits import split_rows
from causalfusion_platform.launch.reproduction import both_directions
from causalfusion_platform.launch.reproduction.both_directions import draw_both_directions
from causalfusion_platform.launch.reproduction.rows import Reproduction, reproduction_of, trial_name
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.sampling import text_grid

FIGURE = TextImageFigure(kind="text_image", prompts=("a bold seven", "a thin three"), samples=3, images=3)
CELL, PITCH, GAP, TITLE = 64, 70, 6, 32


@pytest.fixture
def figure5(own_folder: Path, text_weights: Path) -> Reproduction:
    """Figure 5 with the finished run of a tiny model, whose best guidance is 2.5."""
    found = reproduction_of("figure5", "digits", overrides=["sampling.num_inference_steps=2"])
    [(row, seed, run)] = found.runs()
    experiment = found.experiments[trial_name(row, seed)]
    write_captioned_digits(experiment.data.path)
    folder = checkpoint_folder(run.root / "checkpoints", 64_000)
    shutil.copytree(text_weights, folder / "weights")
    write_manifest(folder, facts(64_000), hash_files(folder))
    RunState(tracking_uri="", config=experiment.model_dump(mode="json"), finished=True).write(run.root)
    run.summary_file.write_text(json.dumps({"t2i_guidance_best": 2.5, "weights_path": str(folder / "weights")}))
    return found


def test_both_directions_are_the_models(
    figure5: Reproduction, text_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []

    def caption_grid(images: torch.Tensor, texts: Sequence[str], *, cell: int) -> Image.Image:
        captions.extend(texts)
        return text_grid.caption_grid(images, texts, cell=cell)

    monkeypatch.setattr(both_directions, "caption_grid", caption_grid)
    [picture] = draw_both_directions(figure5, FIGURE, tmp_path / "report")
    path = tmp_path / "report/both_directions.png"
    assert (picture.title, picture.png) == ("both_directions", path.read_bytes())
    assert "guidance 2.5: 3 samples of each prompt" in picture.caption
    assert "first 3 validation images, greedy decoding. Seed 0." in picture.caption
    drawn = np.asarray(Image.open(path).convert("L")).astype(int)

    # (a) The samples of each prompt, made by the model package.
    model, tokenizer = load_weights(text_weights), load_tokenizer(text_weights)
    prompts = Prompts.of([tokenizer.encode(text) for text in FIGURE.prompts for _ in range(3)])
    sampling = SamplingConfig(guidance_scale=2.5, num_inference_steps=2)
    samples = pixels_of(sample(model, prompts, sampling, DiffusionConfig(), seed=0))
    left, top = text_grid._TEXT_WIDTH, TITLE + GAP
    assert np.abs(cells(drawn, left, top, rows=2, columns=3) - samples).max() <= 1

    # (b) The first validation digits in two columns, and their captions, by the model package.
    latents = torch.from_numpy(digits().mean[split_rows(0).validation[:3]].astype(np.float32))
    images, top = pixels_of(latents), top + 2 * PITCH + GAP + TITLE
    assert np.abs(cells(drawn, GAP, top, rows=2, columns=1) - images[:2]).max() <= 1
    left = text_grid._TEXT_WIDTH + PITCH + 3 * GAP
    assert np.abs(cells(drawn, left, top, rows=1, columns=1) - images[2:]).max() <= 1
    expected = caption(model, latents, begin=tokenizer.begin, end=tokenizer.end)
    assert captions == [tokenizer.decode(expected[row]) for row in range(3)]


def cells(drawn: npt.NDArray[np.int64], left: int, top: int, *, rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Return the images of a grid whose first cell lies there: (rows · columns, 8, 8)."""
    corners = [(top + row * PITCH, left + column * PITCH) for row in range(rows) for column in range(columns)]
    return np.stack([drawn[y : y + CELL : CELL // 8, x : x + CELL : CELL // 8] for y, x in corners])


def pixels_of(images: torch.Tensor) -> npt.NDArray[np.int64]:
    """Return images (B, 1, 8, 8) in [−1, 1] as grey levels (B, 8, 8)."""
    levels: npt.NDArray[np.int64] = (127.5 * images[:, 0] + 127.5).clamp(0, 255).round().numpy().astype(np.int64)
    return levels


def test_nothing_is_drawn_before_a_run_has_finished(own_folder: Path) -> None:
    assert draw_both_directions(reproduction_of("figure5", "digits"), FIGURE, own_folder) == []
    assert not (own_folder / "both_directions.png").exists()


def test_lost_validation_digits_are_written_again(figure5: Reproduction, tmp_path: Path) -> None:
    [experiment] = figure5.experiments.values()
    assert experiment.data.validation is not None
    kept = {path.name: path.read_bytes() for path in experiment.data.validation.iterdir()}
    for path in experiment.data.validation.iterdir():
        path.unlink()
    assert draw_both_directions(figure5, FIGURE, tmp_path / "report")
    assert {path.name: path.read_bytes() for path in experiment.data.validation.iterdir()} == kept


def test_a_prompt_that_is_too_long_is_refused(figure5: Reproduction, tmp_path: Path) -> None:
    long = FIGURE.model_copy(update={"prompts": ("a bold seven " * 9,)})
    with pytest.raises(UserError, match="12"):
        draw_both_directions(figure5, long, tmp_path)
