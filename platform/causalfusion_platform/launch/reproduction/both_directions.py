"""Figure 5: one model draws from text and describes images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from PIL import Image

from causalfusion import CaptionConfig

from ...checkpoint.find import find_weights
from ...config.paper_figure import TextImageFigure
from ...config.paper_table import Row
from ...config.schema import DataConfig, Experiment
from ...data.captioned_rows import CaptionedRows, read_captioned_rows
from ...data.manifest import Manifest
from ...data.prepare import prepare_data
from ...report.html import Picture
from ...sampling.describe import describe
from ...sampling.interactive import InteractiveSampler
from ...sampling.text_grid import beside, caption_grid, prompt_grid, stacked, titled
from ..runs.folder import RunFolder
from .rows import Reproduction, trial_name

_CELLS = (64, 256)
"""Least and largest side of a drawn image, in pixels."""
_CAPTION_COLUMNS = 2


def draw_both_directions(reproduction: Reproduction, figure: TextImageFigure, folder: Path) -> list[Picture]:
    """Draw the samples and captions of the first run that has finished. Without one nothing is drawn.

    Raises:
        UserError: a prompt is too long for the model, or validation shards or the autoencoder are missing.
    """
    for row, seed, run in reproduction.runs():
        if row in reproduction.rows and run.finished:
            return [_draw(reproduction, figure, row, seed, run, folder / "both_directions.png")]
    return []


def _draw(
    reproduction: Reproduction, figure: TextImageFigure, row: Row, seed: int, run: RunFolder, path: Path
) -> Picture:
    experiment = reproduction.experiments[trial_name(row, seed)]
    sampler = _open(experiment, run, reproduction.vaes.of(row))
    samples = sampler.sample(sampler.rows(None, figure.prompts), figure.samples, seed).float().cpu()
    validation = _validation(experiment.data, figure.images)
    assert sampler.tokenizer is not None
    decoding = CaptionConfig(beam=figure.beam)
    described = describe(sampler.model, validation.latents, sampler.tokenizer, decoding, seed=seed)
    images = sampler.autoencoder.decode(validation.latents).float().cpu()

    way = "greedy decoding" if figure.beam == 1 else f"beam search of {figure.beam}"
    drawing = f"Images drawn from text, guidance {sampler.sampling.guidance_scale:g}"
    captions = f"Captions of the first {len(validation)} validation images, {way}"
    least, largest = _CELLS
    cell = max(least, min(images.shape[-1], largest))
    size = -(-len(images) // _CAPTION_COLUMNS)
    columns = [
        caption_grid(images[first : first + size], described.texts[first : first + size], cell=cell)
        for first in range(0, len(images), size)
    ]
    picture = stacked(
        [
            titled(f"(a) {drawing}", prompt_grid(figure.prompts, samples, cell=cell)),
            titled(f"(b) {captions}", beside(columns)),
        ]
    )
    _save(picture, path)
    note = f"{drawing}: {figure.samples} samples of each prompt, not selected. {captions}. Seed {seed}."
    return Picture(path.stem, path.read_bytes(), note)


def _open(experiment: Experiment, run: RunFolder, vae: str | None) -> InteractiveSampler:
    """Load the model, to sample at the guidance scale with its best scores, or without scores at the row's own."""
    scale = run.read_summary().get("t2i_guidance_best") or experiment.sampling.guidance_scale
    return InteractiveSampler.open(
        find_weights(run.root).folder,
        dataclasses.replace(experiment.sampling, guidance_scale=scale),
        [],
        Path(vae) if vae else None,
        experiment.diffusion,
        run.autoencoder,
    )


def _validation(data: DataConfig, count: int) -> CaptionedRows:
    """Return the first validation rows. Digits that a run writes are written if their folder is gone."""
    prepare_data(data)
    folder = data.validation or data.path
    return read_captioned_rows(folder, Manifest.read(folder), count)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
