"""The encoding pipeline in this process: the same stages as on Ray, one chunk after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from causalfusion_platform.data.encode.plan import EncodeSettings, EncodingPlan
from causalfusion_platform.data.encode.stages import Decode, Encode, Write
from causalfusion_platform.data.faults import parse_policies
from causalfusion_platform.data.sources import Listing, Reader, open_source
from causalfusion_platform.launch import encode
from causalfusion_platform.launch.encode import encode_source

MAX_PIXELS = 10**8


def pipeline(
    plan: EncodingPlan,
    listing: Listing,
    reader: Reader,
    vae: str,
    shards: Sequence[int],
    folder: Path,
    records: Path,
    *_: Any,
) -> None:
    """Make the missing shards as `run_pipeline` does."""
    settings, chunks = plan.settings, plan.chunks(shards)
    decode, write = Decode(plan, listing.table, reader, chunks), Write(plan, folder, records)
    threads = torch.get_num_threads()
    tally = SimpleNamespace(encoded=SimpleNamespace(remote=lambda *_: None))
    encoder = Encode(vae, settings.flip, settings.bf16, settings.batch_size, "cpu", 1, tally)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get", lambda reference: reference)  # here, what refers to the listing is the listing
        for _shard, indices in groupby(range(len(chunks)), lambda index: chunks[index].shard):
            blocks = [encoder(block) for index in indices for block in decode({"chunk": np.array([index])})]
            write(pa.concat_tables(blocks))
    torch.set_num_threads(threads)


@contextmanager
def without_ray() -> Iterator[None]:
    """Have launches of an encoding use this pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "ray_session", nullcontext)
        patch.setattr(encode, "room_for_encoders", lambda _: None)
        patch.setattr(encode, "run_pipeline", pipeline)
        yield


def encode_without_ray(source: Path, vae: str, out: Path, **layout: Any) -> None:
    """Encode a source as the command does with its own policies; `layout` names sizes of the settings."""
    policies = parse_policies([])
    settings = EncodeSettings(policies=policies, max_pixels=MAX_PIXELS, **layout)
    with without_ray():
        encode_source(open_source(str(source), policies=policies), vae, settings, out)
