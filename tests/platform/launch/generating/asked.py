"""What tests of sample sets ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from causalfusion import SamplingConfig
from causalfusion_platform.launch.generating.actors import LocalGenerator
from causalfusion_platform.launch.generating.generate import run_generate
from causalfusion_platform.launch.generating.request import GenerateRequest
from causalfusion_platform.sampling.progress import Generating

FEW = SamplingConfig(num_inference_steps=2, num_ar_steps=2, guidance_scale=1.5)
NUM, BATCH = 10, 2


def request_of(weights: Path, out: Path | None, **changes: Any) -> GenerateRequest:
    fields: dict[str, Any] = {"sampling": FEW, "num": NUM, "batch_size": BATCH, "out": out, "seed": 5}
    return GenerateRequest(checkpoint=weights, **{**fields, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the lock and the plan, which names its place."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "samples.json")
    }


class Nobody(LocalGenerator):
    """Fails if anything is to be generated."""

    def start(self) -> None:
        raise AssertionError("it starts")


def interrupted(request: GenerateRequest, parts: int) -> None:
    """Generate some parts, and be killed before the next."""

    def show(report: Generating) -> None:
        if report.done == parts * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_generate(request, LocalGenerator(), show=show)
    assert request.out is not None
    assert {path.name for path in request.out.iterdir()} == {".lock", "samples.json", "parts"}
    assert len(list((request.out / "parts").iterdir())) == parts
