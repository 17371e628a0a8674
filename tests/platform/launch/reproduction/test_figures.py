"""Figures of a table: what they are drawn from, and the numbers under them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.platform.checkpoint.made import put_weights

from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.launch.reproduction.figures import draw_more
from causalfusion_platform.launch.reproduction.rows import Reproduction, reproduction_of, trial_name
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.tracking.journal import Journal, StepReport

IMAGES = 6400


@pytest.fixture
def figure4(own_folder: Path) -> Reproduction:
    """Figure 4 with two rows and seeds; seed 1 of the second row has not finished."""
    found = reproduction_of(
        "figure4", "digits", rows=["s-1", "random"], seeds=[0, 1], overrides=["model=tiny", "train.images=6400"]
    )
    write_digits(found.job.experiment.data.path)
    for row, seed, run in found.runs():
        run_dir = run.root
        if row not in found.rows:
            continue
        experiment = found.experiments[trial_name(row, seed)]
        run_dir.mkdir(parents=True)
        finished = (row.file, seed) != ("random", 1)
        RunState(tracking_uri="", config=experiment.model_dump(mode="json"), finished=finished).write(run_dir)
        put_weights(run_dir, IMAGES, seed)
        late = {"s-1": 0.5, "random": 0.25}[row.file] + 0.1 * seed
        for images in range(64, IMAGES + 1, 64):
            Journal(run_dir).add(progress(images, late if images > 0.75 * IMAGES else 3.0))
    return found


def progress(images: int, loss: float) -> StepReport:
    counts = {
        name: 0 for name in StepReport.model_fields if name not in ("kind", "time", "loss", "images", "interval")
    }
    return StepReport.model_validate({**counts, "images": images, "loss": loss})


def test_figure_4(figure4: Reproduction, tmp_path: Path) -> None:
    images = np.full((10, 8, 8, 1), 60, np.uint8)
    first = {("s-1", "S_eval = S_train", 1): images, ("random", "S_eval = S_train", 1): images}
    pictures = {picture.title: picture for picture in draw_more(figure4, first, tmp_path / "report")}
    assert list(pictures) == ["samples", "loss", "ar_step_sizes", "loss_by_step"]
    for title, picture in pictures.items():
        assert (tmp_path / "report" / f"{title}.png").read_bytes() == picture.png

    # Samples are of the first seed that has any.
    assert "seed 1" in pictures["samples"].caption
    drawn = np.asarray(Image.open(tmp_path / "report" / "samples.png").convert("L"))
    assert (drawn == 60).sum() >= 2 * 10 * 40 * 40

    # The mean over both seeds of the last quarter.
    assert "S_train 1: 0.5500; S_train random (S_eval = 1): 0.3000" in pictures["loss"].caption

    # Of 16 tokens under uniform S: Σ S(S−1)/15 of Σ S steps have one token.
    assert "γ = 1: 66.7%" in pictures["ar_step_sizes"].caption

    # A new model predicts zero, the loss of which is the mean of ε²: 1. Only the model that draws S counts, of
    # finished runs only.
    caption = pictures["loss_by_step"].caption
    assert caption.startswith("Mean of 1 seed(s).")
    ends = re.findall(r"S = (\d+): (\d+\.\d+), (\d+\.\d+)", caption)
    assert [int(steps) for steps, _, _ in ends] == [2, 4, 8, 16]
    assert all(float(loss) == pytest.approx(1, abs=0.02) for _, *both in ends for loss in both)


def test_nothing_to_draw(own_folder: Path) -> None:
    """Before anything was trained there are neither samples nor losses; the law of |κ| needs none."""
    for table, titles in (("table3a", []), ("figure4", ["ar_step_sizes"])):
        found = reproduction_of(table, "digits", seeds=[0])
        assert [picture.title for picture in draw_more(found, {}, own_folder / table)] == titles
