"""Outputs of a finished set: `samples.npz` in ADM's layout, and folders of PNGs."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..config.errors import UserError
from ..data.npz import read_images
from ..storage.atomic import write_atomically
from .adm import write_adm
from .pixels import Pixels
from .prompts_file import read_captions
from .sample_set import PLAN_FILE, Finished, SamplePlan

Output = Literal["npz", "png"]
NPZ_FILE = "samples.npz"
PNG_FOLDER = "png"
PNG_LABELS = "labels.csv"
PNG_PROMPTS = "prompts.csv"

_PNGS_PER_FOLDER = 1000
_READ_AT_ONCE = 256


def outputs_there(folder: Path, finished: Finished | None) -> list[Output]:
    """Return the outputs of a finished set that still exist."""
    if finished is None:
        return []
    npz, there = folder / NPZ_FILE, list[Output]()
    if finished.npz_bytes is not None and npz.is_file() and npz.stat().st_size == finished.npz_bytes:
        there.append("npz")
    if finished.png and any((folder / PNG_FOLDER / name).is_file() for name in (PNG_LABELS, PNG_PROMPTS)):
        there.append("png")
    return there


def read_output(folder: Path, output: Output, plan: SamplePlan) -> Iterator[Pixels]:
    """Yield the images of a finished set in order, (n, H, W, 3) each.

    Raises:
        UserError: a file is missing or damaged.
    """
    if output == "npz":
        yield from read_images(folder / NPZ_FILE).batches(_READ_AT_ONCE)
        return
    with ThreadPoolExecutor() as threads:
        for start in range(0, plan.num, _READ_AT_ONCE):
            some = range(start, min(start + _READ_AT_ONCE, plan.num))
            yield np.stack(list(threads.map(_read_png, (folder / PNG_FOLDER / png_name(index) for index in some))))


def write_output(
    folder: Path, output: Output, plan: SamplePlan, images: Iterable[Pixels], before: Finished | None
) -> Finished:
    """Write `samples.npz` or `png/`, atomically.

    Args:
        images: all of them in parts, in order.
        before: the set's outputs so far, if these images come from it.

    Returns:
        The set's outputs now.

    Raises:
        UserError: the images differ from the digest in `before`, or the file of prompts has changed.
    """
    digest = hashlib.sha256()

    def hashed() -> Iterator[Pixels]:
        for some in images:
            digest.update(np.ascontiguousarray(some).data)
            yield some
        if before is not None and digest.hexdigest() != before.digest:
            raise UserError(
                f"the images in {folder} have changed since they were made\n  remove {folder} to make them again"
            )

    if output == "npz":
        size, labels = (plan.image_size, plan.image_size), None if plan.prompts else plan.label_tensor().numpy()
        write_adm(folder / NPZ_FILE, hashed(), plan.num, size, labels)
    else:
        _write_pngs(folder / PNG_FOLDER, hashed(), _asked(plan))
    finished = before or Finished(digest=digest.hexdigest())
    if output == "png":
        return finished.model_copy(update={"png": True})
    return finished.model_copy(update={"npz_bytes": (folder / NPZ_FILE).stat().st_size})


def clear_half_written(folder: Path) -> None:
    """Remove half-written files of a killed process."""
    for path in (*folder.glob(f".{NPZ_FILE}.*"), *folder.glob(f".{PLAN_FILE}.*")):
        path.unlink()
    for path in folder.glob(f".{PNG_FOLDER}.*"):
        shutil.rmtree(path)


def png_name(index: int) -> str:
    """Return the name of a sample's PNG, a thousand to a folder."""
    return f"{index // _PNGS_PER_FOLDER:03d}/{index:06d}.png"


def _asked(plan: SamplePlan) -> list[int] | list[str]:
    """Return the class or the prompt of each sample."""
    if plan.prompts is not None:
        return read_captions(plan.prompts.file, plan.prompts.sha256)[0][: plan.num]
    labels: list[int] = plan.label_tensor().tolist()
    return labels


def _write_pngs(folder: Path, images: Iterable[Pixels], labels: Sequence[int] | Sequence[str]) -> None:
    """Write a folder of PNGs and labels.csv, or prompts.csv, atomically."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    for start in range(0, len(labels), _PNGS_PER_FOLDER):
        (temporary / png_name(start)).parent.mkdir(parents=True)

    def write(index: int, image: Pixels) -> None:
        with (temporary / png_name(index)).open("wb") as file:
            Image.fromarray(image).save(file, "PNG")
            file.flush()
            os.fsync(file.fileno())

    start = 0
    with ThreadPoolExecutor() as threads:
        for some in images:
            list(threads.map(write, range(start, start + len(some)), some))
            start += len(some)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    of_text = isinstance(labels[0], str)
    rows.writerow(["file", "prompt" if of_text else "label"])
    rows.writerows((png_name(index), label) for index, label in enumerate(labels))
    write_atomically(temporary / (PNG_PROMPTS if of_text else PNG_LABELS), text.getvalue().encode())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _read_png(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken chunk
        raise UserError(f"{path} cannot be read: {error}") from error
