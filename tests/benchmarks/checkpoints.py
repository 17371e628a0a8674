"""What checkpoints cost training: quickstart at its own cadence, beside the same run without them."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.launch.cluster.session import ray_session
from causalfusion_platform.launch.training.train import run_training
from causalfusion_platform.tracking.journal import Checkpointed, Journal, StepReport

ROUNDS = 2
AFTER = 3200
"""Images trained after the checkpoint, while it is copied in the background."""
SHORT = ["data.prepare=true", "evaluation.num_samples=20"]


@dataclass(frozen=True)
class Trained:
    """One run, up to its last metrics."""

    loop_seconds: float
    """Steps, the wait for data, and the stalls for checkpoints."""
    cadence_seconds: float
    """Steps and the wait for data until the first checkpoint was due."""
    checkpoint: Checkpointed | None
    """The first one, unless that is the one that ends every run."""


def train(place: Path, name: str, cadence: int, images: int, *, checkpoints: bool) -> Trained:
    """Train two workers on Ray; return what the journal says."""
    overrides = [f"name={name}", f"runs={place / 'runs'}", f"data.path={place / 'digits'}", *SHORT]
    overrides += [f"train.images={images}", f"train.sample_every_images={images}"]
    if not checkpoints:
        overrides.append(f"train.checkpoint_every_images={images}")
    events = Journal(Path(run_training(compose_experiment("quickstart", overrides)).summary["run_dir"])).events()
    progress = [event for event in events if isinstance(event, StepReport)]
    saved = [event for event in events if isinstance(event, Checkpointed) and event.images < images]
    last = progress[-1]
    until = next(event for event in progress if event.images >= cadence)
    return Trained(
        loop_seconds=last.step_seconds + last.data_seconds + last.checkpoint_seconds,
        cadence_seconds=until.step_seconds + until.data_seconds,
        checkpoint=saved[0] if saved else None,
    )


def run() -> None:
    """Print a checkpoint's stall as a share of the training between two, its bytes/s, and the ratio of the runs."""
    cadence = compose_experiment("quickstart", []).experiment.train.checkpoint_every_images
    images = cadence + AFTER
    print(f"\ncheckpoints of quickstart, every {cadence} images, two workers under ZeRO 1, {images} images a run")
    shares, ratios = [], []
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        place = Path(scratch)
        for index in range(ROUNDS):
            saving = train(place, f"with-{index}", cadence, images, checkpoints=True)
            bare = train(place, f"without-{index}", cadence, images, checkpoints=False)
            saved = saving.checkpoint
            assert saved is not None and bare.checkpoint is None
            shares.append(saved.stall_seconds / saving.cadence_seconds)
            ratios.append(saving.loop_seconds / bare.loop_seconds)
            print(
                f"stall {saved.stall_seconds:.2f} s for {saved.bytes / 1e6:.1f} MB ({_rate(saved)}), "
                f"complete {saved.upload_seconds:.2f} s later; {saving.cadence_seconds:.1f} s of steps before: "
                f"{shares[-1]:.2%}; with/without {ratios[-1]:.3f}"
            )
    print(f"stall as a share of training time, median of {ROUNDS}: {statistics.median(shares):.2%}")
    print(f"time with checkpoints to time without, median of {ROUNDS}: {statistics.median(ratios):.3f}")


def _rate(saved: Checkpointed) -> str:
    return f"{saved.bytes / saved.stall_seconds / 1e6:.0f} MB/s"
