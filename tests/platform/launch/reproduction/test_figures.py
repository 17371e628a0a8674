"""Figures of a table: what they are drawn from, and the numbers under them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tests.platform.checkpoint.made import put_weights

from causalfusion import DiffusionConfig, load_weights
from causalfusion.analysis import validation_loss
from causalfusion_platform.data.split_digits import write_split_digits
from causalfusion_platform.launch.reproduction import figures
from causalfusion_platform.launch.reproduction.figures import draw_more
from causalfusion_platform.launch.reproduction.rows import Reproduction, reproduction_of, trial_name
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.report import figures as report_figures
from causalfusion_platform.tracking.journal import Journal, StepReport

IMAGES = 6400


@pytest.fixture
def figure4(own_folder: Path) -> Reproduction:
    """Figure 4 with two rows and seeds; seed 1 of the second row has not finished."""
    found = reproduction_of(
        "figure4",
        "mnist",
        rows=["s-1", "random"],
        seeds=[0, 1],
        overrides=["model=tiny", "train.images=6400", "data.path=digits", "data.validation=digits-validation"],
    )
    write_split_digits(found.job.experiment.data.path)
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


def held_out_losses(run: RunFolder, ar_steps: int) -> list[float]:
    """Return the losses of a run's AR steps on the 300 digits of scikit-learn's split, 8 draws each."""
    images, labels = load_digits(return_X_y=True)
    rows = np.tile(np.sort(train_test_split(np.arange(1797), test_size=300, random_state=0)[1]), 8)
    latents = torch.from_numpy(images[rows].reshape(-1, 1, 8, 8) / 8 - 1).float()
    model = load_weights(run.root / f"checkpoints/images-{IMAGES:012d}/weights", device="cpu")
    losses: list[float] = validation_loss(
        model,
        latents,
        torch.from_numpy(labels[rows]).long(),
        DiffusionConfig(),
        num_ar_steps=ar_steps,
        seed=1_000_000,
    ).tolist()
    return losses


def test_figure_4(figure4: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_rows: dict[str, list[float]] = {}
    bars_of_rows: dict[str, list[float | None]] = {}

    def loss_figure(losses: dict[str, list[float]], *, title: str, **more: Any) -> None:
        if title == "Held-out loss of each of 8 AR steps":
            drawn_rows.update(losses)
            bars_of_rows.update(more["bars"])
        draw(losses, title=title, **more)

    draw = report_figures.loss_figure
    monkeypatch.setattr(figures, "loss_figure", loss_figure)
    images = np.full((10, 8, 8, 1), 60, np.uint8)
    first = {("s-1", "S_eval = S_train", 1): images, ("random", "S_eval = S_train", 1): images}
    pictures = {picture.title: picture for picture in draw_more(figure4, first, tmp_path / "report")}
    assert list(pictures) == ["samples", "loss", "loss_of_rows", "ar_step_sizes", "loss_by_step"]
    for title, picture in pictures.items():
        assert (tmp_path / "report" / f"{title}.png").read_bytes() == picture.png

    # Samples are of the first seed that has any.
    assert "seed 1" in pictures["samples"].caption
    drawn = np.asarray(Image.open(tmp_path / "report" / "samples.png").convert("L"))
    assert (drawn == 60).sum() >= 2 * 10 * 40 * 40

    # The mean over both seeds of the last quarter.
    assert "S_train 1: 0.5500; S_train random (S_eval = 1): 0.3000" in pictures["loss"].caption

    # Of held-out images, the mean over the seeds that have finished: both of the first row, one of the second.
    runs = {(row.file, seed): run for row, seed, run in figure4.runs()}
    of = {key: held_out_losses(runs[key], 8) for key in (("s-1", 0), ("s-1", 1), ("random", 0))}
    both = np.mean([of["s-1", 0], of["s-1", 1]], axis=0)
    assert list(drawn_rows) == ["S_train 1", "S_train random (S_eval = 1)"]
    assert drawn_rows["S_train 1"] == pytest.approx(both.tolist(), rel=1e-6)
    assert drawn_rows["S_train random (S_eval = 1)"] == pytest.approx(of["random", 0], rel=1e-6)
    half = student.ppf(0.975, 1) * abs(np.subtract(of["s-1", 0], of["s-1", 1])) / 2
    assert bars_of_rows["S_train 1"] == pytest.approx(half.tolist(), rel=1e-6)
    assert bars_of_rows["S_train random (S_eval = 1)"] == [None] * 8
    falls = [f"{loss[-1] / loss[0] - 1:+.0%}" for loss in drawn_rows.values()]
    assert pictures["loss_of_rows"].caption == (
        "Mean over seeds with its 95% interval, on common draws. From the first AR step to the last: "
        f"S_train 1: {falls[0]}; S_train random (S_eval = 1): {falls[1]}."
    )

    # Of 16 tokens under uniform S: Σ S(S−1)/15 of Σ S steps have one token.
    assert "γ = 1: 66.7%" in pictures["ar_step_sizes"].caption

    # A new model predicts zero, the loss of which is the mean of ε²: 1. Only the model that draws S counts, of
    # finished runs only, on the images that no training sees.
    caption = pictures["loss_by_step"].caption
    assert caption.startswith("Mean of 1 seed(s).")
    ends = re.findall(r"S = (\d+): (\d+\.\d+), (\d+\.\d+)", caption)
    assert [int(steps) for steps, _, _ in ends] == [2, 4, 8, 16]
    for steps, *both_ends in ends:
        first_loss, *_, last_loss = held_out_losses(runs["random", 0], int(steps))
        assert both_ends == [f"{first_loss:.4f}", f"{last_loss:.4f}"]
        assert all(float(loss) == pytest.approx(1, abs=0.02) for loss in both_ends)


def test_nothing_to_draw(own_folder: Path) -> None:
    """Before anything was trained there are neither samples nor losses; the law of |κ| needs none."""
    for table, titles in (("table3a", []), ("figure4", ["ar_step_sizes"])):
        found = reproduction_of(table, "mnist", seeds=[0])
        assert [picture.title for picture in draw_more(found, {}, own_folder / table)] == titles


def test_a_table_of_one_ar_step_draws_no_losses_of_steps(own_folder: Path) -> None:
    """The loss of S = 1 has nothing to draw over AR steps."""
    write_split_digits(Path("digits"))
    overrides = ["model=tiny", "data.path=digits", "data.validation=digits-validation"]
    found = reproduction_of("table7", "mnist", rows=["shared"], seeds=[0], overrides=overrides)
    assert {column.ar_steps for column in found.table.columns} == {1}
    [(row, seed, run)] = [one for one in found.runs() if one[0] in found.rows]
    run.root.mkdir(parents=True)
    config = found.experiments[trial_name(row, seed)].model_dump(mode="json")
    RunState(tracking_uri="", config=config, finished=True).write(run.root)
    put_weights(run.root, IMAGES, 0)
    assert draw_more(found, {}, own_folder / "report") == []
