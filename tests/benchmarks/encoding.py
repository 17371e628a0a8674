"""Encoding with everything around the autoencoder, beside the autoencoder alone on the same images."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from causalfusion.weights.vae import new_autoencoder
from causalfusion_platform.data.encode.plan import EncodeSettings
from causalfusion_platform.data.encode.progress import EncodingProgress
from causalfusion_platform.data.encode.stages import Encode
from causalfusion_platform.data.faults import parse_policies
from causalfusion_platform.data.images import decode_image
from causalfusion_platform.data.sources import open_source
from causalfusion_platform.launch.cluster.session import ray_session
from causalfusion_platform.launch.encode import encode_source

IMAGES, BATCH, SIZE = 24, 4, 256
ROUNDS = 2


def write_photographs(folder: Path) -> None:
    """Write crops of photographs as JPEG in the sizes of ImageNet's, two classes."""
    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    for index in range(IMAGES):
        photograph = photographs[index % 2]
        top, left = (int(random.integers(0, side - 375)) for side in photograph.shape[:2])
        path = folder / str(index % 2) / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top : top + 375, left : left + 375]).save(path, quality=92)


def alone(vae: Path, pixels: np.ndarray) -> float:
    """Return seconds per image of the autoencoder by itself, as the pipeline's actors run it."""
    threads = torch.get_num_threads()
    stage = Encode(str(vae), flip=True, bf16=False, batch_size=BATCH, device="cpu", threads=threads, counter=None)
    stage.moments(pixels[:BATCH])
    started = time.perf_counter()
    for start in range(0, IMAGES, BATCH):
        stage.moments(pixels[start : start + BATCH])
    torch.set_num_threads(threads)
    return (time.perf_counter() - started) / IMAGES


def whole(vae: Path, source: Path, out: Path) -> float:
    """Return seconds per image of `data encode`, from its first batch to its last."""
    policies = parse_policies([])
    settings = EncodeSettings(
        size=SIZE, policies=policies, max_pixels=10**8, batch_size=BATCH, rows_per_shard=4 * BATCH
    )
    seen: list[tuple[float, EncodingProgress]] = []

    def show(report: EncodingProgress) -> None:
        if not seen or report.items != seen[-1][1].items:
            seen.append((time.perf_counter(), report))

    encode_source(open_source(str(source), policies=policies), str(vae), settings, out, show=show)
    reports = [(when, report.items) for when, report in seen if report.items]
    (first, items), (last, total) = reports[0], reports[-1]
    return (last - first) / (total - items)


def run() -> None:
    """Print seconds per image of both, and the share of the time that is not the autoencoder's."""
    print(f"\nencoding {IMAGES} JPEGs of 375×375 at {SIZE}, batches of {BATCH}, KL-16 with random weights")
    with tempfile.TemporaryDirectory() as scratch:
        source, vae = Path(scratch) / "images", Path(scratch) / "vae"
        write_photographs(source)
        torch.manual_seed(0)
        new_autoencoder("kl16").save_pretrained(vae)
        paths = sorted(source.rglob("*.jpg"))
        decoded = [decode_image(path.read_bytes(), path.name, SIZE, parse_policies([]), 10**8)[0] for path in paths]
        pixels = np.stack([image for image in decoded if image is not None])
        shares = []
        with ray_session():
            for index in range(ROUNDS):
                by_itself = alone(vae, pixels)
                together = whole(vae, source, Path(scratch) / f"out{index}")
                shares.append(1 - by_itself / together)
                print(f"autoencoder {by_itself:.3f} s an image, all of it {together:.3f} s: {shares[-1]:.1%} lost")
    print(f"share of the time outside the autoencoder, median of {ROUNDS}: {statistics.median(shares):.1%}")
