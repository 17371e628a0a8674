"""`causalfusion data reference`: three files that `evaluate --reference` takes, and what a refusal says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.evaluation.tiny_extractor import SIZE, TinyExtractor

from causalfusion_platform.evaluation.reference import read_reference

FACTORY = """
from tests.platform.evaluation.tiny_extractor import TinyExtractor

def make(text, device):
    return TinyExtractor(space=text)
"""


def test_a_folder_of_images_becomes_a_reference(
    run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tiny_space.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(own_folder)
    Path("val2014").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"val2014/{number}.png")
    arguments = ("val2014", "val2014.npz", "--extractor", "tiny_space:make?small", "--size", str(SIZE))
    check_refusal(run("data", "reference", *arguments), "val2014 holds 6 images, not 40,504", "--images 6 (0: any)")
    result = run("data", "reference", *arguments, "--images", "6", "--json")
    assert result.status == 0
    *lines, last = result.out.splitlines()
    record = json.loads(last)
    assert lines == [
        f"6 images of val2014, center_crop of ADM to 4×4 (SHA-256 {record['images_sha256'][:12]}…): val2014.npz",
        f"space small, weights {record['weights_sha256'][:12]}…: val2014.record.json",
        "files: val2014.sha256",
    ]
    assert record == json.loads(Path("val2014.record.json").read_text())
    assert read_reference(Path("val2014.npz"), TinyExtractor(space="small")).source in lines[0]
    check_refusal(run("data", "reference", *arguments[:2], "--extractor", "classifier"), "no feature extractor")
