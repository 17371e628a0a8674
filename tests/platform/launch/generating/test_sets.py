"""Sample sets made in this process, whole and finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from tests.platform.launch.generating.asked import NUM, Nobody, files_of, request_of

from causalfusion import DiffusionConfig, load_weights, save_weights
from causalfusion_platform.data.npz import read_images
from causalfusion_platform.launch.generating.actors import LocalGenerator
from causalfusion_platform.launch.generating.generate import GeneratedSet, run_generate
from causalfusion_platform.sampling.progress import Generating


def test_a_set_is_there_with_its_labels(whole: GeneratedSet) -> None:
    assert (whole.made, whole.outputs) == (NUM, ["npz", "png"])
    assert whole.plan.num_parts == 5
    opened = read_images(whole.npz)
    assert opened.shape == (NUM, 8, 8, 3)
    labels = opened.labels()
    assert labels is not None
    assert labels.tolist() == list(range(10))
    assert len(list(whole.png.rglob("*.png"))) == NUM
    assert {path.name for path in whole.folder.iterdir()} == {".lock", "samples.json", "samples.npz", "png"}


def test_progress_is_told_by_part(tmp_path: Path, weights: Path) -> None:
    seen: list[Generating] = []
    run_generate(request_of(weights, tmp_path / "out"), LocalGenerator(), show=seen.append)
    assert [report.done for report in seen] == [2, 4, 6, 8, 10]
    assert {report.total for report in seen} == {NUM}
    assert all(report.samples_per_second > 0 for report in seen)
    assert seen[-1].eta_seconds == 0


def test_finished_says_finished(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole.folder, tmp_path / "out"))
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    again = run_generate(request_of(weights, out, png=True), Nobody())
    assert (again.made, again.digest, again.outputs) == (0, whole.digest, ["npz", "png"])
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before


def test_samples_are_numbered_whatever_their_number(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    """A longer set begins with the shorter one, batch for batch."""
    longer = run_generate(request_of(weights, tmp_path / "out", num=13), LocalGenerator())
    images = np.concatenate(list(read_images(longer.npz).batches(100)))
    assert np.array_equal(images[:NUM], np.concatenate(list(read_images(whole.npz).batches(3))))


def test_one_generator_serves_many_sets(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    generator = LocalGenerator()
    done = [
        run_generate(request_of(weights, tmp_path / f"{seed}", seed=seed, png=True), generator) for seed in (4, 5)
    ]
    assert done[0].digest != done[1].digest
    assert files_of(done[1].folder) == files_of(whole.folder)


def test_one_generator_serves_other_weights(whole: GeneratedSet, weights: Path, tmp_path: Path) -> None:
    model, generator = load_weights(weights), LocalGenerator()
    state = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    save_weights(tmp_path / "weights", model.config, state, DiffusionConfig(num_train_steps=100))
    other = run_generate(request_of(tmp_path / "weights", tmp_path / "other"), generator)
    assert other.digest != whole.digest
    assert run_generate(request_of(weights, tmp_path / "same"), generator).digest == whole.digest
