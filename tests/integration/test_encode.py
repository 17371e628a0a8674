"""Images of every kind of source and fault become shards, through Ray; each number is computed again without it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from tests.platform.data.pictures import faulty_images, photo, saved
from tests.platform.data.sources.makers import write_files, write_tar
from tests.platform.data.tiny_vaes import moments_of, new_kl

from causalfusion import draws
from causalfusion_platform.data.encode.plan import EncodeSettings
from causalfusion_platform.data.encode.progress import EncodingProgress
from causalfusion_platform.data.faults import parse_policies
from causalfusion_platform.data.images import decode_image
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.scan import scan_shards
from causalfusion_platform.data.sources import open_source
from causalfusion_platform.launch.encode import Encoded, encode_source

pytestmark = pytest.mark.ray

SIZE, BATCH, SHARD, GROUP = 64, 8, 16, 8
POLICIES = parse_policies([])
FAULTY = {f"class{number % 3}/{name}": image for number, (name, image) in enumerate(faulty_images().items())}


@dataclass(frozen=True)
class Done:
    """A finished encoding, and what it showed on the way."""

    encoded: Encoded
    folder: Path
    seen: list[EncodingProgress]

    @property
    def rows(self) -> dict[int, dict[str, Any]]:
        """All rows of the shards, by row id."""
        return {row["row_id"]: row for row in read_rows(self.folder, self.encoded.manifest)}


def read_rows(folder: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    for shard in manifest.shards:
        table = pq.read_table(folder / shard.file)
        columns = {
            name: column.combine_chunks().to_numpy_ndarray()
            if isinstance(column.type, pa.FixedShapeTensorType)
            else column.to_pylist()
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        for row in range(table.num_rows):
            yield {name: column[row] for name, column in columns.items()}


def encode(location: Path | str, vae: str, out: Path, encoders: int = 1, **options: Any) -> Done:
    seen: list[EncodingProgress] = []
    settings = EncodeSettings(
        size=SIZE,
        policies=POLICIES,
        max_pixels=89_478_485,
        batch_size=BATCH,
        rows_per_shard=SHARD,
        rows_per_group=GROUP,
    )
    source = open_source(str(location), policies=POLICIES, **options)
    return Done(encode_source(source, vae, settings, out, encoders=encoders, show=seen.append), out, seen)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vae")
    new_kl().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vae_folder: str, ray_cluster: None) -> Callable[[int], Done]:
    """Return a function that encodes every faulty image with so many encoders."""
    source = write_files(tmp_path_factory.mktemp("images"), {key: image.content for key, image in FAULTY.items()})
    return lambda encoders: encode(source, vae_folder, tmp_path_factory.mktemp("shards") / "out", encoders)


@pytest.fixture(scope="module")
def done(run: Callable[[int], Done]) -> Done:
    return run(1)


def test_every_fault_is_on_record_and_none_is_silent(done: Done) -> None:
    manifest = done.encoded.manifest
    kept = {key for key, image in FAULTY.items() if image.kept}
    assert manifest.source.items == len(FAULTY)
    assert manifest.rows == sum(shard.rows for shard in manifest.shards) == len(kept)
    assert {row["key"] for row in done.rows.values()} == kept
    assert Manifest.read(done.folder) == manifest
    assert not scan_shards(done.folder).checked.bad
    with (done.folder / "_faults.csv").open(newline="") as file:
        faults = list(csv.DictReader(file))
    kinds: dict[str, set[str]] = {key: set() for key in FAULTY}
    for fault in faults:
        kinds[fault["key"]].add(fault["kind"])
        assert fault["action"] == POLICIES[fault["kind"]]
        assert fault["detail"]
    assert kinds == {key: image.kinds for key, image in FAULTY.items()}
    counts = Counter(kind for image in FAULTY.values() for kind in image.kinds)
    assert manifest.faults == {kind: {POLICIES[kind]: count} for kind, count in counts.items()}
    assert done.seen[-1].items == done.seen[-1].total == len(FAULTY)
    assert done.seen[-1].faults == counts


def test_rows_are_those_of_one_process(done: Done) -> None:
    """Each image by itself through the autoencoder, in the one permutation, with no trace of those left out."""
    keys = sorted(FAULTY, key=str.encode)
    order = torch.randperm(len(keys), generator=draws.stream(0, "order of encoding")).tolist()
    manifest, vae = done.encoded.manifest, new_kl()
    sizes = [shard.rows for shard in manifest.shards]
    assert sizes == [sum(FAULTY[keys[i]].kept for i in order[s : s + SHARD]) for s in range(0, len(keys), SHARD)]
    assert [shard.row_groups for shard in manifest.shards] == [
        [8] * (n // 8) + [n % 8] * (n % 8 > 0) for n in sizes
    ]
    assert list(done.rows) == [i for i in order if FAULTY[keys[i]].kept]
    assert manifest.latent_columns == ("mean", "std", "mean_flip", "std_flip")
    for row_id, row in done.rows.items():
        key = keys[row_id]
        assert (row["key"], manifest.class_names[row["label"]]) == (key, key.partition("/")[0])
        pixels, _ = decode_image(FAULTY[key].content, key, SIZE, POLICIES, 89_478_485)
        assert pixels is not None
        expected = moments_of(vae, pixels[None]) + moments_of(vae, pixels[None, :, ::-1].copy())
        for name, moment in zip(manifest.latent_columns, expected, strict=True):
            # Half a unit in fp16's last place, and float32's rounding, which norms of an even image amplify.
            np.testing.assert_allclose(row[name], moment[0].numpy() * 0.5, rtol=2**-11, atol=1e-5)


def test_bytes_do_not_depend_on_encoders(done: Done, run: Callable[[int], Done]) -> None:
    other = run(2)
    assert files_of(other.folder) == files_of(done.folder)
    assert other.encoded.made == done.encoded.made == len(done.encoded.manifest.shards)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def small_pictures() -> dict[str, NDArray[np.uint8]]:
    """Name → square crop of a photograph; 20 of them."""
    whole = photo(264, 64)
    return {f"{number:02d}": whole[:, 10 * number : 10 * number + 64] for number in range(20)}


CAPTIONS = [["one line", "and “another”"], ["γ"], []]


def test_tar_with_captions(tmp_path: Path, ray_cluster: None) -> None:
    """Samples in the order of the tar's keys; the captions of each travel with it, past one that is left out."""
    pictures = small_pictures()
    members: list[tuple[str, bytes | str]] = []
    for number, (name, pixels) in enumerate(pictures.items()):
        members += [
            (f"{name}.png", saved(pixels, "PNG") if number != 5 else b""),
            (f"{name}.cls", str(number % 3)),
            (f"{name}.txt", f"picture {number}"),
        ]
    source = write_tar(tmp_path / "part.tar", members)
    done = encode(source, "identity", tmp_path / "out", caption_column="txt")
    manifest = done.encoded.manifest
    assert (manifest.source.kind, manifest.order, manifest.captions) == ("webdataset", "source", True)
    assert manifest.faults == {"zero_bytes": {"skip": 1}}
    assert list(done.rows) == [number for number in range(20) if number != 5]
    for number, row in done.rows.items():
        assert row["captions"] == [f"picture {number}"]
        assert manifest.class_names[row["label"]] == str(number % 3)
        assert_pixels(row, pictures[f"{number:02d}"])


def test_parquet_with_captions(tmp_path: Path, ray_cluster: None) -> None:
    pictures = list(small_pictures().values())
    table = pa.table(
        {
            "image": [{"bytes": saved(pixels, "PNG"), "path": None} for pixels in pictures],
            "label": [number % 2 for number in range(20)],
            "text": [CAPTIONS[number % 3] for number in range(20)],
        }
    )
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=7)
    done = encode(tmp_path / "images.parquet", "identity", tmp_path / "out", caption_column="text")
    assert done.encoded.manifest.source.kind == "parquet"
    assert list(done.rows) == list(range(20))
    for number, row in done.rows.items():
        assert row["captions"] == CAPTIONS[number % 3]
        assert row["label"] == number % 2
        assert_pixels(row, pictures[number])


def assert_pixels(row: dict[str, Any], pixels: NDArray[np.uint8]) -> None:
    expected = (np.moveaxis(pixels, 2, 0) / np.float32(127.5) - np.float32(1)).astype(np.float16)
    assert np.array_equal(row["mean"], expected)
    assert np.array_equal(row["mean_flip"], expected[:, :, ::-1])


def test_batches_beyond_the_blocks_of_ray_data(tmp_path: Path, ray_cluster: None) -> None:
    """256 images of 512 pixels are 201 MB, more than the block that Ray Data hands on in one piece by default."""
    tile = photo(64, 64)
    write_files(tmp_path / "images/a", {f"{number:03d}.jpg": saved(tile, "JPEG") for number in range(256)})
    settings = EncodeSettings(
        size=512, policies=POLICIES, max_pixels=10**8, flip=False, batch_size=256, rows_per_shard=256
    )
    source = open_source(str(tmp_path / "images"), policies=POLICIES)
    encoded = encode_source(source, "identity", settings, tmp_path / "out")
    assert encoded.manifest.rows == 256
