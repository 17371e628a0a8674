"""IDX files, in the layout of MNIST and of the data sets that took its names."""

from __future__ import annotations

import gzip
import io
import pickle
import shlex
import struct
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlxtend.data import loadlocal_mnist
from numpy.typing import NDArray
from PIL import Image
from tests.conftest import files_of
from tests.object_store import FaultyServer
from tests.platform.data.encode.in_process import MAX_PIXELS, encode_without_ray, without_ray
from tests.platform.data.sources.makers import STRICT, allow, digit, keys_of, write_files

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.encode.plan import EncodeSettings
from causalfusion_platform.data.images import decode_image
from causalfusion_platform.data.layout import names_in
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.sources import Listing, Source, open_source, split_of_shards
from causalfusion_platform.launch.encode import encode_source

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


class Pair(NamedTuple):
    """Random pixels (count, rows, columns) and their labels."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @property
    def image_file(self) -> bytes:
        return struct.pack(">4I", 0x803, *self.pixels.shape) + self.pixels.tobytes()

    @property
    def label_file(self) -> bytes:
        return struct.pack(">2I", 0x801, len(self.labels)) + self.labels.tobytes()


def pair(count: int = 12, rows: int = 28, columns: int = 28, seed: int = 0) -> Pair:
    """Return images of which the last has the largest label, 9."""
    draws = np.random.default_rng([seed, count])
    labels = draws.integers(0, 10, count, np.uint8)
    labels[-1:] = 9
    return Pair(draws.integers(0, 256, (count, rows, columns), np.uint8), labels)


def write_pair(folder: Path, made: Pair, begin: str = "train-", separator: str = "-") -> Path:
    images, labels = f"{begin}images{separator}idx3-ubyte", f"{begin}labels{separator}idx1-ubyte"
    return write_files(folder, {images: made.image_file, labels: made.label_file})


def listed(location: str | Path, split: str | None = None, **options: Any) -> Listing:
    return open_source(str(location), split=split, policies=STRICT, **options).listing()


def refusal(location: str | Path, split: str | None = None, **options: Any) -> tuple[str, str]:
    """Return the fault and the advice of the message that refuses a source."""
    with pytest.raises(UserError) as caught:
        listed(location, split, **options)
    fault, advice = str(caught.value).split("\n  ")
    return fault, advice


def decoded(content: bytes | OSError) -> NDArray[np.uint8]:
    assert isinstance(content, bytes)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        assert image.mode == "L"
        return np.asarray(image)


def pixels_of(source: Source, table: pa.Table | None = None) -> NDArray[np.uint8]:
    table = source.listing().table if table is None else table
    return np.stack([decoded(content) for content in source.reader().read(table)])


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("kind", ["auto", "idx"])
def test_every_pixel_and_label_is_that_of_the_files(tmp_path: Path, separator: str, kind: Any) -> None:
    """Also as mlxtend reads them. More images than are read together, so that some lie in two reads."""
    made = pair(300)
    write_pair(tmp_path / "s", made, separator=separator)
    images, labels = (f"train-{name}" for name in (f"images{separator}idx3-ubyte", f"labels{separator}idx1-ubyte"))
    source = open_source("s", kind=kind, policies=STRICT)
    listing = source.listing()
    assert (listing.kind, listing.shuffled, listing.findings) == ("idx", False, [])
    assert keys_of(listing) == [f"{images}#{row:09d}" for row in range(300)]
    assert listing.class_names == [str(number) for number in range(10)]
    assert listing.table["label"].to_pylist() == made.labels.tolist()
    assert set(listing.table["size"].to_pylist()) == {28 * 28}
    assert set(listing.table["row_group"].to_pylist()) == {-1}
    content = (tmp_path / "s" / images).read_bytes()
    for row in listing.table.slice(0, 3).to_pylist():
        stored = content[row["offset"] :][: row["size"]]
        assert stored == made.pixels[int(row["key"][-9:])].tobytes()
    pixels = pixels_of(source)
    assert np.array_equal(pixels, made.pixels)
    theirs, their_labels = loadlocal_mnist(str(tmp_path / "s" / images), str(tmp_path / "s" / labels))
    assert np.array_equal(pixels.reshape(300, -1), theirs)
    assert listing.table["label"].to_pylist() == their_labels.tolist()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 50), (50, 3), (200, 300)])
def test_images_of_any_sides(tmp_path: Path, rows: int, columns: int) -> None:
    made = pair(3, rows, columns)
    write_pair(tmp_path / "s", made)
    assert np.array_equal(pixels_of(open_source("s", policies=STRICT)), made.pixels)


def test_the_reader_jumps_between_files_after_pickling(tmp_path: Path) -> None:
    """Files of different sides, in any order."""
    train, test = pair(7, 5, 6), pair(4, 6, 5, seed=1)
    write_pair(write_pair(tmp_path / "s", train), test, "t10k-")
    source = open_source("s", split="all", policies=STRICT)
    table = source.listing().table
    assert [key.partition("#")[0] for key in keys_of(source.listing())] == [TEST_IMAGES] * 4 + [IMAGES] * 7
    expected = [*test.pixels, *train.pixels]
    order = [10, 0, 3, 4, 9, 9, 2, 5]
    reader = pickle.loads(pickle.dumps(source.reader()))
    for _ in range(2):
        contents = list(reader.read(table.take(order)))
        for content, row in zip(contents, order, strict=True):
            assert np.array_equal(decoded(content), expected[row])


def test_the_pipeline_takes_the_images_as_gray(tmp_path: Path) -> None:
    made = pair(2)
    write_pair(tmp_path / "s", made)
    source = open_source("s", policies=STRICT)
    table = source.listing().table
    for key, content, pixels in zip(
        table["key"].to_pylist(), source.reader().read(table), made.pixels, strict=True
    ):
        image, findings = decode_image(content, key, 28, STRICT, MAX_PIXELS)
        assert image is not None
        assert np.array_equal(image, np.repeat(pixels[:, :, None], 3, axis=2))
        assert [finding.kind for finding in findings] == ["gray8"]


def test_a_folder_a_pattern_a_file_and_a_url_agree(tmp_path: Path) -> None:
    """The labels of a file of images are found, although only the images are named."""
    made = pair()
    write_pair(tmp_path / "s", made)
    (tmp_path / "s/README.md").write_text("about the data")
    whole = listed("s")
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "s").iterdir():
        memory.pipe(f"/sources-idx/{path.name}", path.read_bytes())
    try:
        for place in (
            f"s/{IMAGES}",
            "s/*-idx?-ubyte",
            "s/*images*",
            str(tmp_path / "s"),
            f"file://{tmp_path}/s",
            "memory://sources-idx",
            f"memory://sources-idx/{IMAGES}",
        ):
            source = open_source(place, policies=STRICT)
            assert source.listing().digest == whole.digest, place
            assert np.array_equal(pixels_of(source), made.pixels), place
    finally:
        memory.rm("/sources-idx", recursive=True)


def test_an_object_store(tmp_path: Path, s3_bucket: str, s3_server: FaultyServer) -> None:
    """Consecutive images are read together, and a read that failed is tried again."""
    import boto3

    made = pair(40)
    write_pair(tmp_path / "s", made)
    client = boto3.client("s3", endpoint_url=s3_server.url)
    for path in (tmp_path / "s").iterdir():
        client.upload_file(str(path), s3_bucket.removeprefix("s3://"), f"mnist/{path.name}")
    address = s3_server.url.removeprefix("http://")
    place = f"{s3_bucket}/mnist?endpoint_override={address}&scheme=http&region=us-east-1"
    source = open_source(place, policies=STRICT)
    listing = source.listing()
    assert listing.digest == listed("s").digest
    before = len(s3_server.requests)
    assert np.array_equal(pixels_of(source, listing.table), made.pixels)
    assert len(s3_server.requests) - before < 10
    s3_server.fail("GET", 1, ("400 Bad Request", "BadDigest"))  # PyArrow itself does not repeat it
    assert np.array_equal(pixels_of(source, listing.table), made.pixels)
    assert s3_server.faults_left == 0


# --- splits -----------------------------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path: Path) -> tuple[Pair, Pair]:
    """Train and test pair in the folder mnist."""
    train, test = pair(9), pair(5, seed=1)
    write_pair(write_pair(tmp_path / "mnist", train), test, "t10k-")
    return train, test


@pytest.mark.parametrize("kind", ["auto", "idx"])
def test_two_pairs_need_a_split(mnist: tuple[Pair, Pair], kind: str) -> None:
    fault, advice = refusal("mnist", kind=kind)
    assert fault == "mnist is not clear: it holds the splits train (2 files), test (2 files)"
    assert advice == "name one: --split train, or encode them together: --split all"
    for split, made in zip(("train", "test"), mnist, strict=True):
        source = open_source("mnist", split=split, policies=STRICT)
        listing = source.listing()
        assert np.array_equal(pixels_of(source), made.pixels)
        assert listing.table["label"].to_pylist() == made.labels.tolist()
        assert (listing.selection.split, listing.selection.splits) == (split, {"train": 2, "test": 2})
        assert split_of_shards(listing.location, listing.selection) == split
    assert listed("mnist", "all").table.num_rows == 14
    assert refusal("mnist", "val")[0] == "mnist has no split 'val': only train, test"


@pytest.mark.parametrize(
    ("location", "split"),
    [
        (f"mnist/{TEST_IMAGES}", "test"),
        ("mnist/t10k-*", "test"),
        ("mnist/*10k-images*", "test"),
        (f"mnist/{IMAGES}", "train"),
        ("mnist/{train,t10k}-images-idx3-ubyte", "train"),
    ],
)
@pytest.mark.usefixtures("mnist")
def test_files_that_are_named_need_no_split(location: str, split: str) -> None:
    listing = listed(location)
    assert split_of_shards(listing.location, listing.selection) == split


def test_one_pair_needs_no_split(tmp_path: Path) -> None:
    write_pair(tmp_path / "train", pair())
    write_pair(tmp_path / "test", pair(), "t10k-", ".")
    write_pair(tmp_path / "plain", pair(), "")
    for folder, split in (("train", "train"), ("test", "test"), ("plain", "train")):
        listing = listed(folder)
        assert split_of_shards(listing.location, listing.selection) == split
    assert refusal("test", "train")[0] == "test has no split 'train': only test"
    listing = listed("plain", "test")
    assert split_of_shards(listing.location, listing.selection) == "test"


def test_t10k_is_a_split_in_names_of_idx_files_alone(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"t10k/0.png": digit(0), "train-t10k/0.png": digit(1)})
    assert listed("s").class_names == ["t10k", "train-t10k"]


def test_several_data_sets_in_one_folder(tmp_path: Path) -> None:
    """EMNIST's archive holds six, whose labels do not mean the same."""
    balanced = pair(8)
    for begin, made in (("emnist-balanced-", balanced), ("emnist-letters-", pair(6, seed=2))):
        for split in ("train-", "test-"):
            write_pair(tmp_path / "emnist", made, begin + split)
    assert "splits train (4 files), test (4 files)" in refusal("emnist")[0]
    fault, advice = refusal("emnist", "train")
    names = [f"emnist-{name}-{IMAGES}" for name in ("balanced", "letters")]
    assert fault == f"emnist is not clear: it holds several files of images: {', '.join(names)}"
    location = advice.removeprefix("name one, and its labels are found: ")
    assert np.array_equal(pixels_of(open_source(location, policies=STRICT)), balanced.pixels)
    assert listed("emnist/emnist-balanced-*", "test").table.num_rows == 8
    assert listed("emnist/*-train-*").table.num_rows == 14  # as named


# --- compressed files -------------------------------------------------------------------------------------


def compress(*paths: Path) -> None:
    for path in paths:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize("kind", ["auto", "idx"])
def test_compressed_files_are_refused_with_a_command_that_unpacks_them(
    tmp_path: Path, mnist: tuple[Pair, Pair], kind: str
) -> None:
    folder = tmp_path / "mnist"
    packed = sorted(folder.iterdir())
    compress(*packed)
    assert listed("mnist", "test", kind=kind).table.num_rows == 5  # torchvision keeps both
    for path in packed:
        path.unlink()
    for location in ("mnist", "mnist/*", f"mnist/{IMAGES}.gz"):
        fault, advice = refusal(location, kind=kind)
        assert fault.endswith("-ubyte.gz is compressed, so images cannot be read out of its middle")
        assert advice.startswith("unpack it: gunzip ")
        assert advice.count(".gz") == (1 if location.endswith(".gz") else 4)
    assert refusal("mnist", "train", kind=kind)[1].count(".gz") == 2
    subprocess.run(shlex.split(refusal("mnist", kind=kind)[1].removeprefix("unpack it: ")), check=True)
    assert listed("mnist", "train", kind=kind).table.num_rows == len(mnist[0].labels)


def test_compressed_files_of_another_split_do_no_harm(tmp_path: Path) -> None:
    write_pair(write_pair(tmp_path / "s", pair(9)), pair(5), "t10k-")
    for name in (TEST_IMAGES, TEST_LABELS):
        compress(tmp_path / "s" / name)
        (tmp_path / "s" / name).unlink()
    assert listed("s", "train").table.num_rows == 9
    assert refusal("s", "test")[0].startswith(f"{TEST_IMAGES}.gz is compressed")
    assert refusal("s")[0].startswith(f"{TEST_IMAGES}.gz is compressed")


def test_a_compressed_file_without_its_ending(tmp_path: Path) -> None:
    made = pair()
    write_files(tmp_path / "s", {IMAGES: gzip.compress(made.image_file), LABELS: made.label_file})
    fault, advice = refusal("s")
    assert fault == f"{IMAGES} in s is compressed by gzip, so images cannot be read out of its middle"
    assert advice == "end its name in .gz, and unpack it with gunzip"


# --- faults -----------------------------------------------------------------------------------------------

MADE = pair(12)
WHOLE, LABELLED = MADE.image_file, MADE.label_file


NO_IMAGES, NO_LABELS = struct.pack(">4I", 0x803, 0, 28, 28), struct.pack(">2I", 0x801, 0)
HUGE = 2**32 - 1
HUGE_IMAGES = struct.pack(">4I", 0x803, HUGE, HUGE, HUGE) + bytes(12)
HUGE_LABELS = struct.pack(">2I", 0x801, HUGE) + bytes(12)
COPY = "copy it again, or make it anew"
OTHER = "name the right file, or copy it again"


@pytest.mark.parametrize(
    ("images", "labels", "fault", "advice"),
    [
        (
            WHOLE,
            None,
            f"{IMAGES} in s has no file of labels beside it: {LABELS} or train-labels.idx1-ubyte",
            "put it there. If it is compressed (.gz), unpack it with gunzip",
        ),
        (
            None,
            LABELLED,
            f"{LABELS} in s holds labels, and their images are not there: {IMAGES} or train-images.idx3-ubyte",
            "put the images there, or remove the labels. One pair is named by its file of images",
        ),
        (
            WHOLE,
            pair(11).label_file,
            f"s contradicts itself: {IMAGES} has 12 images, and {LABELS} 11 labels",
            "fetch both files from one place again",
        ),
        (
            LABELLED,
            WHOLE,
            f"{IMAGES} in s begins with 0x00000801, a file of labels; allowed: 0x00000803, images of unsigned",
            OTHER,
        ),
        (
            WHOLE,
            WHOLE,
            f"{LABELS} in s begins with 0x00000803, a file of images; allowed: 0x00000801, labels of unsigned",
            OTHER,
        ),
        (b"\0\0\r\3" + WHOLE[4:], LABELLED, f"{IMAGES} in s begins with 0x00000d03; allowed: 0x00000803,", OTHER),
        (b"<!DOCTYPE html><html></html>", LABELLED, f"{IMAGES} in s begins with 0x3c21444f; allowed: 0x", OTHER),
        (
            WHOLE[:-1],
            LABELLED,
            f"{IMAGES} in s has 9,423 bytes, and its header gives 12 images of 28×28, which are 9,424 bytes",
            COPY,
        ),
        (WHOLE + b"\0", LABELLED, f"{IMAGES} in s has 9,425 bytes, and its header gives 12 images of 28×28,", COPY),
        (WHOLE[:15], LABELLED, f"{IMAGES} in s has 15 bytes, and the header of an IDX file has 16", COPY),
        (b"", LABELLED, f"{IMAGES} in s has 0 bytes, and the header of an IDX file has 16", COPY),
        (
            WHOLE,
            LABELLED[:-3],
            f"{LABELS} in s has 17 bytes, and its header gives 12 labels, which are 20 bytes",
            COPY,
        ),
        (WHOLE, LABELLED[:7], f"{LABELS} in s has 7 bytes, and the header of an IDX file has 8", COPY),
        (
            HUGE_IMAGES,
            LABELLED,
            f"{IMAGES} in s has 28 bytes, and its header gives 4,294,967,295 images of 4294967295×4294967295,",
            COPY,
        ),
        (WHOLE, HUGE_LABELS, f"{LABELS} in s has 20 bytes, and its header gives 4,294,967,295 labels, which", COPY),
        (struct.pack(">4I", 0x803, 12, 0, 28), LABELLED, f"{IMAGES} in s has images of 0×28 pixels", COPY),
        (NO_IMAGES, NO_LABELS, "s holds no image with a label (0 items without)", "name another source"),
    ],
)
def test_faults_are_named(
    tmp_path: Path, images: bytes | None, labels: bytes | None, fault: str, advice: str
) -> None:
    contents = {IMAGES: images, LABELS: labels}
    write_files(tmp_path / "s", {name: content for name, content in contents.items() if content is not None})
    before = files_of(tmp_path)
    found = refusal("s")
    assert found[0].startswith(fault)
    assert found[1] == advice
    assert files_of(tmp_path) == before


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    write_pair(tmp_path / "s", pair())
    (tmp_path / "s" / IMAGES).unlink()
    (tmp_path / "s" / IMAGES).symlink_to("nowhere")
    fault, advice = refusal("s")
    assert fault.startswith(f"{IMAGES} in s cannot be read: ")
    assert advice == "mend or remove it"


@pytest.mark.parametrize(
    ("location", "options", "fault", "advice"),
    [
        ("s", {"labels": "l.csv", "kind": "idx"}, "idx sources have their labels inside", "leave out --labels"),
        ("s", {"label_column": "digit"}, "IDX files have no columns", "leave out the options that name columns"),
        ("s", {"caption_column": "text"}, "IDX files have no columns", "leave out the options that name columns"),
        ("s", {"captions": "c.jsonl"}, "IDX files are not named in a file of captions", "leave out --captions"),
        ("other", {"kind": "idx"}, "other: 0.png is not named as an IDX file", "allowed: names that end in"),
        ("other/0.png", {"kind": "idx"}, "other/0.png: 0.png is not named as an IDX file", "allowed: names that"),
        ("{s,other}/*", {}, "{s,other}/* is not clear: it holds 1 images (other/0.png), 2 IDX files (", "name one"),
        ("{s,other}/*", {"kind": "idx"}, "{s,other}/*: other/0.png is not named as an IDX file", "allowed: names"),
        (f"s/{LABELS}", {}, f"{LABELS} in s/{LABELS} holds labels, and their images are not there", "put the"),
    ],
)
def test_options_and_names_that_do_not_fit(
    tmp_path: Path, location: str, options: dict[str, str], fault: str, advice: str
) -> None:
    write_pair(tmp_path / "s", pair())
    write_files(tmp_path, {"other/0.png": digit(0), "c.jsonl": f'{{"file": "{IMAGES}", "captions": ["a"]}}'})
    found = refusal(location, **options)
    assert found[0].startswith(fault)
    assert found[1].startswith(advice)


def test_a_file_that_shrank_since_it_was_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first images are still read. Of one that has other sides now, none is."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    made = pair(4)
    write_pair(tmp_path / "s", made)
    source = open_source("s", policies=STRICT)
    table = source.listing().table
    write_files(tmp_path / "s", {IMAGES: made.image_file[:-800]})
    *first, third, fourth = source.reader().read(table)
    assert np.array_equal(np.stack([decoded(content) for content in first]), made.pixels[:2])
    assert isinstance(third, OSError)
    assert str(third) == "the IDX file ends 16 bytes before the end of the image"
    assert isinstance(fourth, OSError)
    for content in (pair(4, 28, 27).image_file, made.label_file, b""):
        write_files(tmp_path / "s", {IMAGES: content})
        assert all(isinstance(found, OSError) for found in source.reader().read(table))


# --- the whole of an encoding -----------------------------------------------------------------------------

LAYOUT = {"size": 28, "batch_size": 4, "rows_per_shard": 8, "rows_per_group": 4}


def test_the_shards_hold_the_pixels_and_an_encoding_is_continued(tmp_path: Path) -> None:
    made = pair(20)
    write_pair(tmp_path / "s", made)
    encode_without_ray(Path("s"), "identity", tmp_path / "out", **LAYOUT)
    table = pq.read_table(tmp_path / "out")
    assert table["key"].to_pylist() == [f"{IMAGES}#{row:09d}" for row in range(20)]
    assert table["label"].to_pylist() == made.labels.tolist()
    mean = table["mean"].combine_chunks().to_numpy_ndarray()
    expected = np.repeat(made.pixels[:, None] / 127.5 - 1, 3, axis=1)
    assert np.abs(mean - expected).max() < 1e-3  # of float16
    assert np.array_equal(np.round((mean.astype(np.float64) + 1) * 127.5), np.round((expected + 1) * 127.5))
    manifest = Manifest.read(tmp_path / "out")
    assert (manifest.source.kind, manifest.order, manifest.split) == ("idx", "source", "train")
    assert manifest.faults == {"gray8": {"convert": 20}}
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / manifest.shards[1].file).unlink()
    (tmp_path / "out" / names_in(tmp_path / "out").manifest).unlink()
    encode_without_ray(Path("s"), "identity", tmp_path / "out", **LAYOUT)
    assert files_of(tmp_path / "out") == before


def test_an_encoding_of_one_split(mnist: tuple[Pair, Pair], tmp_path: Path) -> None:
    policies = allow()
    settings = EncodeSettings(policies=policies, max_pixels=MAX_PIXELS, **LAYOUT)  # type: ignore[arg-type]
    with without_ray():
        source = open_source("mnist", split="test", policies=policies)
        encode_source(source, "identity", settings, tmp_path / "out")
    manifest = Manifest.read(tmp_path / "out")
    assert (manifest.rows, manifest.split) == (5, "test")
    assert pq.read_table(tmp_path / "out")["label"].to_pylist() == mnist[1].labels.tolist()
