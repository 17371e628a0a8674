"""Stages of the Ray Data pipeline: decode → encode → write.

Every item of the source remains one row until its shard is written, even if its image is left out. Ray Data can
therefore cut the stream into shards by counting rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ...config.errors import UserError
from ..autoencoder import encode_both, open_encoder
from ..faults import FAULT_KINDS, FaultStop
from ..images import decode_image
from ..manifest import latent_columns
from ..shards import LATENT_COLUMNS, Rows, write_shard
from ..sources import Reader
from .plan import Chunk, EncodingPlan, take_items
from .records import Fault, ShardRecord, record_path


@dataclass(frozen=True)
class Decode:
    """Stage that reads and decodes chunks: one row per item, with zero pixels for images that are left out."""

    plan: EncodingPlan
    listing: Any
    """Reference to the listing's table in Ray's object store."""
    reader: Reader
    """Opens the source in the process that reads."""
    chunks: list[Chunk]
    """Chunks that the pipeline's input rows number."""

    def __call__(self, entries: dict[str, NDArray[np.generic]]) -> Iterator[pa.Table]:
        import ray

        table = ray.get(self.listing)
        for index in entries["chunk"]:
            chunk = self.chunks[int(index)]
            step = self.plan.settings.batch_size
            for start in range(chunk.start, chunk.stop, step):
                items = self.plan.items(chunk.shard, start, min(start + step, chunk.stop))
                yield self._decode(chunk.shard, start, items, take_items(table, items))

    def _decode(self, shard: int, start: int, items: NDArray[np.int64], rows: pa.Table) -> pa.Table:
        settings = self.plan.settings
        size = settings.size
        pixels = np.zeros((len(items), size, size, 3), np.uint8)
        kept, faults = [], []
        keys = rows.column("key").to_pylist()
        for place, (key, content) in enumerate(zip(keys, self.reader.read(rows), strict=True)):
            try:
                image, findings = decode_image(content, key, size, settings.policies, settings.max_pixels)
            except FaultStop as stop:
                raise stopped(stop) from stop
            if image is not None:
                pixels[place] = image
            kept.append(image is not None)
            faults.append([[finding.kind, finding.action, finding.detail] for finding in findings])
        columns = {
            "shard": pa.array(np.full(len(items), shard)),
            "place": pa.array(np.arange(start, start + len(items))),
            "row_id": pa.array(items),
            "label": rows.column("label").combine_chunks(),
            "key": rows.column("key").combine_chunks(),
            "kept": pa.array(kept),
            "faults": pa.array(faults, pa.list_(pa.list_(pa.string()))),
            "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        }
        if "captions" in rows.column_names:
            columns["captions"] = rows.column("captions").combine_chunks()
        return pa.table(columns)


def stopped(stop: FaultStop) -> UserError:
    """Return the error for an image that stops the encoding."""
    kind = FAULT_KINDS[stop.finding.kind]
    others = " or ".join(f"--on {kind.name}={action}" for action in kind.allowed if action != "stop")
    return UserError(
        f"image {stop.key}: {kind.name} ({kind.meaning}): {stop.finding.detail}\n"
        f"  mend it, or name another policy: {others}; the same command goes on from the shards that are finished"
    )


class Encode:
    """Stage that encodes pixels to latents, in an actor with an autoencoder.

    On a CPU each thread encodes whole images. Sums that threads share would round differently with another number
    of threads, and thus on another machine or with another number of encoders.
    """

    def __init__(
        self, vae: str, flip: bool, bf16: bool, batch_size: int, device: str, threads: int, counter: Any
    ) -> None:
        torch.set_num_threads(1)
        self.threads = None
        if device == "cpu":
            self.threads = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self.encoder = open_encoder(vae, device, bf16=bf16)
        self.flip, self.batch_size, self.counter = flip, batch_size, counter

    def __call__(self, block: pa.Table) -> pa.Table:
        places = block.column("place").to_numpy()
        starts = np.flatnonzero(places % self.batch_size == 0)
        if not len(starts) or starts[0] != 0:
            raise RuntimeError("Ray Data cut a batch in two: the arithmetic of its images would change")
        pixels = block.column("pixels").combine_chunks().to_numpy_ndarray()
        kept = block.column("kept").to_numpy(zero_copy_only=False)
        faults = block.column("faults").to_pylist()
        parts = []
        for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
            taken = np.flatnonzero(kept[start:stop]) + start
            part = self._encode(pixels[taken], taken - start, stop - start)
            _check_finite(part, block.column("key").slice(int(start), int(stop - start)))
            parts.append(part)
            kinds = [kind for found in faults[start:stop] for kind, _, _ in found]
            self.counter.encoded.remote(int(stop - start), len(taken), kinds)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        block = block.drop_columns(["pixels"])
        for name, latents in columns.items():
            block = block.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(latents))
        return block

    def _encode(
        self, pixels: NDArray[np.uint8], places: NDArray[np.int64], rows: int
    ) -> dict[str, NDArray[np.float16]]:
        """Return the latents of one batch, with zeros for images that were left out."""
        size = pixels.shape[1]
        columns: dict[str, NDArray[np.float16]] = {}
        encoded = self.moments(pixels) if len(pixels) else {}
        for name in latent_columns(posterior=self.encoder.has_posterior, flip=self.flip):
            columns[name] = np.zeros((rows, *self.encoder.latent_shape(size)), np.float16)
            if len(pixels):
                with np.errstate(over="ignore"):  # too large numbers become infinite, which is checked later
                    columns[name][places] = encoded[name].numpy().astype(np.float16)
        return columns

    def moments(self, pixels: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """Return the posterior of images (B, H, H, 3) and of their mirror images."""

        def encode(images: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
            return encode_both(self.encoder, images, flip=self.flip)

        if self.threads is None:
            return encode(pixels)
        each = list(self.threads.map(encode, np.split(pixels, len(pixels))))
        return {name: torch.cat([image[name] for image in each]) for name in each[0]}


def _check_finite(latents: dict[str, NDArray[np.float16]], keys: pa.ChunkedArray) -> None:
    for name, values in latents.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise UserError(
                f"the autoencoder gives NaN, or numbers beyond float16, for image {keys[int(finite.argmin())]} "
                f"({name})\n  see that its weights are whole and its scale is right"
            )


@dataclass(frozen=True)
class Write:
    """Stage that writes whole shards, each followed by its record."""

    plan: EncodingPlan
    folder: Path
    records: Path

    def __call__(self, rows: pa.Table) -> dict[str, list[int]]:
        (shard,) = set(rows.column("shard").to_pylist()) or {-1}
        expected = self.plan.items(shard)
        if not np.array_equal(rows.column("row_id").to_numpy(), expected):
            raise RuntimeError(f"Ray Data handed {rows.num_rows} rows for shard {shard} of {len(expected)}")
        faults = [
            Fault(key=key, kind=kind, action=action, detail=detail)
            for key, found in zip(rows.column("key").to_pylist(), rows.column("faults").to_pylist(), strict=True)
            for kind, action, detail in found
        ]
        kept = np.flatnonzero(rows.column("kept").to_numpy(zero_copy_only=False))
        written = None
        if len(kept):
            path = self.folder / self.plan.file(shard)
            written = write_shard(_take_rows(rows, kept), path, self.plan.settings.rows_per_group)
        record = ShardRecord(items=rows.num_rows, shard=written, faults=faults)
        record.write(record_path(self.records, shard))
        return {"shard": [shard]}


def _take_rows(table: pa.Table, taken: NDArray[np.int64]) -> Rows:
    def strings(name: str) -> list[Any]:
        column = table.column(name).to_pylist()
        return [column[row] for row in taken]

    latents = {
        name: table.column(name).combine_chunks().to_numpy_ndarray()[taken]
        for name in LATENT_COLUMNS
        if name in table.column_names
    }
    return Rows(
        row_ids=table.column("row_id").to_numpy()[taken],
        labels=table.column("label").to_numpy()[taken],
        keys=strings("key"),
        captions=strings("captions") if "captions" in table.column_names else None,
        **latents,
    )
