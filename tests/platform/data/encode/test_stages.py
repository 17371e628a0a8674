"""The stages by themselves: Ray only hands blocks from one to the next."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from tests.platform.data.pictures import faulty_images, photo, saved
from tests.platform.data.sources.makers import write_files, write_tar
from tests.platform.data.tiny_vaes import new_kl

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.autoencoder import open_encoder
from causalfusion_platform.data.encode import stages
from causalfusion_platform.data.encode.plan import EncodeSettings, EncodingPlan, make_plan
from causalfusion_platform.data.encode.records import ShardRecord, record_path
from causalfusion_platform.data.faults import FAULT_KINDS, Policies, parse_policies
from causalfusion_platform.data.images import decode_image
from causalfusion_platform.data.sources import open_source

SIZE, BATCH, MAX_PIXELS = 64, 4, 89_478_485
DEFAULTS = parse_policies([])


class Counts:
    """What the stages tell the counter, in place of its actor."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, list[str]]] = []
        self.encoded = SimpleNamespace(remote=lambda *counts: self.told.append(counts))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference to the listing is the listing."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))


def decoder(
    location: Path, policies: Policies = DEFAULTS, rows_per_shard: int = 8, **source: Any
) -> tuple[stages.Decode, EncodingPlan]:
    opened = open_source(str(location), policies=policies, **source)
    listing = opened.listing()
    settings = EncodeSettings(
        size=SIZE,
        policies=policies,
        max_pixels=MAX_PIXELS,
        batch_size=BATCH,
        rows_per_shard=rows_per_shard,
        rows_per_group=3,
        order="source",
    )
    plan = make_plan(listing, open_encoder("identity"), settings)
    chunks = plan.chunks(range(plan.num_shards))
    return stages.Decode(plan, listing.table, opened.reader(), chunks), plan


def decoded(decode: stages.Decode, chunk: int = 0) -> pa.Table:
    return pa.concat_tables(decode({"chunk": np.array([chunk])}))


def pixels_in(block: pa.Table) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = block.column("pixels").combine_chunks().to_numpy_ndarray()
    return pixels


def crops(count: int) -> Iterator[tuple[str, bytes]]:
    whole = photo(160, 90)
    for number in range(count):
        yield f"a/{number:02d}.png", saved(whole[:, 5 * number : 5 * number + 80], "PNG")


def encoder(vae: str, counts: Counts | None = None, *, flip: bool = True, threads: int = 1) -> stages.Encode:
    return stages.Encode(
        vae=vae, flip=flip, bf16=False, batch_size=BATCH, device="cpu", threads=threads, counter=counts or Counts()
    )


# --- decode -----------------------------------------------------------------------------------------------


def test_each_item_is_one_row_also_when_it_is_left_out(tmp_path: Path) -> None:
    images = {f"a/{name}": image for name, image in faulty_images().items()}
    write_files(tmp_path / "s", {key: image.content for key, image in images.items()})
    decode, _ = decoder(tmp_path / "s", rows_per_shard=128)
    assert len(decode.chunks) == 1
    blocks = list(decode({"chunk": np.array([0])}))
    keys = sorted(images)
    assert [block.num_rows for block in blocks] == [BATCH] * (len(keys) // BATCH) + [len(keys) % BATCH] * (
        len(keys) % BATCH > 0
    )
    table = pa.concat_tables(blocks)
    assert table["key"].to_pylist() == keys
    assert table["row_id"].to_pylist() == table["place"].to_pylist() == list(range(len(keys)))
    assert set(table["shard"].to_pylist()) == set(table["label"].to_pylist()) == {0}
    assert table["kept"].to_pylist() == [images[key].kept for key in keys]
    assert [{kind for kind, _, _ in found} for found in table["faults"].to_pylist()] == [
        images[key].kinds for key in keys
    ]
    for key, pixels in zip(keys, pixels_in(table), strict=True):
        expected, _ = decode_image(images[key].content, key, SIZE, DEFAULTS, MAX_PIXELS)
        assert np.array_equal(pixels, np.zeros_like(pixels) if expected is None else expected)


def test_places_count_in_the_shard(tmp_path: Path) -> None:
    write_files(tmp_path / "s", dict(crops(14)))
    decode, _ = decoder(tmp_path / "s")
    table = decoded(decode, chunk=1)
    assert table["shard"].to_pylist() == [1] * 6
    assert table["place"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["row_id"].to_pylist() == [8, 9, 10, 11, 12, 13]


OF_SOURCES = ("missing", "unlabelled", "uncaptioned", "unreadable")
SKIPPED = [name for name in FAULT_KINDS if name not in OF_SOURCES]


@pytest.mark.parametrize("kind", SKIPPED)
def test_a_fault_that_stops_names_the_image_and_the_way_out(tmp_path: Path, kind: str) -> None:
    name, image = next((name, image) for name, image in faulty_images().items() if image.kinds == {kind})
    write_files(tmp_path / "s", {**dict(crops(3)), f"a/{name}": image.content})
    decode, _ = decoder(tmp_path / "s", parse_policies([f"{kind}=stop"]))
    with pytest.raises(UserError) as stopped:
        decoded(decode)
    first, advice = str(pickle.loads(pickle.dumps(stopped.value))).split("\n")
    assert first.startswith(f"image a/{name}: {kind} ({FAULT_KINDS[kind].meaning}): ")
    others = [action for action in FAULT_KINDS[kind].allowed if action != "stop"]
    assert [f"--on {kind}={action}" in advice for action in others] == [True] * len(others)
    assert f"{kind}=stop" not in advice


def test_a_file_that_cannot_be_read_stops_by_default(tmp_path: Path) -> None:
    write_files(tmp_path / "s", dict(crops(3)))
    (tmp_path / "s/a/gone.png").symlink_to("nowhere")
    decode, _ = decoder(tmp_path / "s")
    with pytest.raises(UserError, match=r"image a/gone\.png: unreadable .*\n.*--on unreadable=skip;"):
        decoded(decode)
    decode, _ = decoder(tmp_path / "s", parse_policies(["unreadable=skip"]))
    assert decoded(decode)["kept"].to_pylist() == [True, True, True, False]


# --- encode -----------------------------------------------------------------------------------------------


@pytest.fixture
def vae(tmp_path: Path) -> str:
    new_kl().save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


def latents_in(block: pa.Table) -> dict[str, NDArray[np.float16]]:
    return {
        name: block.column(name).combine_chunks().to_numpy_ndarray()
        for name in ("mean", "std", "mean_flip", "std_flip")
        if name in block.column_names
    }


def test_left_out_images_leave_no_trace_in_others(tmp_path: Path, vae: str) -> None:
    """The latents of a block with bad images are those of the same block without."""
    files = dict(crops(8))
    write_files(tmp_path / "sound", files)
    write_files(tmp_path / "bad", {**files, "a/02.png": b"", "a/03.png": b"?", "a/07.png": files["a/07.png"][:99]})
    counts = Counts()
    encode = encoder(vae, counts, threads=2)
    sound, bad = (latents_in(encode(decoded(decoder(tmp_path / name)[0]))) for name in ("sound", "bad"))
    assert list(sound) == list(bad) == ["mean", "std", "mean_flip", "std_flip"]
    kept, gone = [0, 1, 4, 5, 6], [2, 3, 7]
    for name, latents in sound.items():
        assert latents.shape == (8, 4, 8, 8)
        assert np.array_equal(bad[name][kept], latents[kept])
        assert not bad[name][gone].any()
        assert latents.all(axis=(1, 2, 3)).all()
    assert counts.told[:2] == [(4, 4, []), (4, 4, [])]
    assert counts.told[2:] == [(4, 2, ["zero_bytes", "not_image"]), (4, 3, ["truncated"])]


def test_a_batch_without_any_image_is_zeros(tmp_path: Path, vae: str) -> None:
    write_files(tmp_path / "s", {f"a/{number}.png": b"" for number in range(3)})
    counts = Counts()
    latents = latents_in(encoder(vae, counts)(decoded(decoder(tmp_path / "s")[0])))
    assert {(name, column.shape, bool(column.any())) for name, column in latents.items()} == {
        (name, (3, 4, 8, 8), False) for name in ("mean", "std", "mean_flip", "std_flip")
    }
    assert counts.told == [(3, 0, ["zero_bytes"] * 3)]


def test_latents_do_not_depend_on_threads(tmp_path: Path, vae: str) -> None:
    write_files(tmp_path / "s", dict(crops(8)))
    block = decoded(decoder(tmp_path / "s")[0])
    one, three = (latents_in(encoder(vae, threads=threads)(block)) for threads in (1, 3))
    for name, latents in one.items():
        assert np.array_equal(three[name], latents)


@pytest.mark.parametrize(("flip", "columns"), [(True, ["mean", "mean_flip"]), (False, ["mean"])])
def test_columns_are_those_that_were_asked_for(tmp_path: Path, flip: bool, columns: list[str]) -> None:
    write_files(tmp_path / "s", dict(crops(3)))
    block = decoded(decoder(tmp_path / "s")[0])
    latents = latents_in(encoder("identity", flip=flip)(block))
    expected = (np.moveaxis(pixels_in(block), 3, 1) / np.float32(127.5) - np.float32(1)).astype(np.float16)
    assert list(latents) == columns
    assert np.array_equal(latents["mean"], expected)
    if flip:
        assert np.array_equal(latents["mean_flip"], expected[..., ::-1])


@pytest.mark.parametrize("cut", [slice(1, 8), slice(2, 4), slice(3, 3)])
def test_a_batch_that_was_cut_is_refused(tmp_path: Path, cut: slice) -> None:
    write_files(tmp_path / "s", dict(crops(8)))
    block = decoded(decoder(tmp_path / "s")[0])[cut]
    with pytest.raises(RuntimeError, match="cut a batch in two"):
        encoder("identity", flip=False)(block)


@pytest.mark.parametrize("factor", [1e9, float("nan")])
def test_latents_beyond_float16_name_their_image(tmp_path: Path, factor: float) -> None:
    write_files(tmp_path / "s", {**dict(crops(6)), "a/00.png": b""})
    block = decoded(decoder(tmp_path / "s")[0])
    vae = new_kl()
    vae.quant_conv.weight.data *= factor
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match=r"NaN, or numbers beyond float16, for image a/01\.png \(mean\)\n"):
        encoder(str(tmp_path / "vae"))(block)


# --- write ------------------------------------------------------------------------------------------------


def test_captions_and_labels_travel_past_images_left_out(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = []
    for number, (_, content) in enumerate(crops(8)):
        members += [
            (f"{number}.png", content if number not in (0, 5) else b""),
            (f"{number}.txt", f"γ {number}"),
            (f"{number}.cls", str(number % 3)),
        ]
    decode, plan = decoder(write_tar(tmp_path / "part.tar", members), caption_column="txt")
    block = decoded(decode)
    out = tmp_path / "out"
    (out / "encoding").mkdir(parents=True)
    encoded = encoder("identity", flip=False)(block)
    assert stages.Write(plan, out, out / "encoding")(encoded) == {"shard": [0]}
    kept = [1, 2, 3, 4, 6, 7]
    table = pq.read_table(out / "shard-00000-of-00001.parquet")
    assert table["row_id"].to_pylist() == kept
    assert table["captions"].to_pylist() == [[f"γ {number}"] for number in kept]
    assert table["label"].to_pylist() == [number % 3 for number in kept]
    assert table["key"].to_pylist() == [f"part.tar/{number}.png" for number in kept]
    mean = table["mean"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(mean, latents_in(encoded)["mean"][kept])
    record = ShardRecord.model_validate_json(record_path(out / "encoding", 0).read_bytes())
    assert record.shard is not None
    assert (record.items, record.shard.rows, record.shard.row_groups) == (8, 6, [3, 3])
    assert [(fault.key, fault.kind, fault.action) for fault in record.faults] == [
        ("part.tar/0.png", "zero_bytes", "skip"),
        ("part.tar/5.png", "zero_bytes", "skip"),
    ]


def test_a_shard_without_any_image_is_a_record_only(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {f"a/{number}.png": b"" for number in range(3)})
    decode, plan = decoder(tmp_path / "s")
    block = encoder("identity", flip=False)(decoded(decode))
    (tmp_path / "out/encoding").mkdir(parents=True)
    stages.Write(plan, tmp_path / "out", tmp_path / "out/encoding")(block)
    record = ShardRecord.model_validate_json(record_path(tmp_path / "out/encoding", 0).read_bytes())
    assert (record.items, record.shard, len(record.faults)) == (3, None, 3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["encoding"]


@pytest.mark.parametrize("part", [slice(0, 7), slice(1, 8)])
def test_part_of_a_shard_is_not_written(tmp_path: Path, part: slice) -> None:
    write_files(tmp_path / "s", dict(crops(8)))
    decode, plan = decoder(tmp_path / "s")
    block = encoder("identity", flip=False)(decoded(decode))
    (tmp_path / "out/encoding").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="7 rows for shard 0 of 8"):
        stages.Write(plan, tmp_path / "out", tmp_path / "out/encoding")(block[part])
    assert not list((tmp_path / "out").rglob("*.*"))
