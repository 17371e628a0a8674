"""Files of every kind of fault, and the pixels that come out, against arithmetic on the samples that went in."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.platform.data.pictures import (
    CROP,
    FaultyImage,
    bundled,
    faulty_images,
    frames,
    photo,
    png_file,
    saved,
    tiff_file,
    with_jpeg_size,
    with_orientation,
)

from causalfusion_platform.data.faults import FAULT_KINDS, FaultStop, Finding, parse_policies
from causalfusion_platform.data.images import decode_image

# pytest undoes what the module does about warnings; the last test here runs without pytest.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MAX_PIXELS = 20_000_000
DEFAULTS = parse_policies([])
NOT_OF_CONTENT = {"unreadable", "unlabelled", "uncaptioned", "missing"}
NAMES = sorted(faulty_images())
SQUARE = photo(CROP, CROP)
Pixels = NDArray[np.uint8]


def decode(
    content: bytes | OSError, name: str, *changes: str, max_pixels: int = MAX_PIXELS
) -> tuple[Pixels | None, list[Finding]]:
    return decode_image(content, name, CROP, parse_policies(changes), max_pixels)


def pixels_of(content: bytes, name: str, *changes: str) -> NDArray[np.int64]:
    pixels, findings = decode(content, name, *changes)
    assert pixels is not None, findings
    return pixels.astype(np.int64)


def kinds_of(content: bytes | OSError, name: str, *changes: str, max_pixels: int = MAX_PIXELS) -> list[str]:
    return [finding.kind for finding in decode(content, name, *changes, max_pixels=max_pixels)[1]]


def gray(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(samples[..., None], 3, axis=-1)


def on_white(colours: NDArray[np.int64], alpha: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.floor((colours * alpha[..., None] + 255 * (255 - alpha[..., None])) / 255 + 0.5).astype(np.int64)


@pytest.mark.parametrize("name", NAMES)
def test_every_fault_is_found_and_no_other(name: str) -> None:
    image = faulty_images()[name]
    pixels, findings = decode(image.content, name)
    assert {finding.kind for finding in findings} == image.kinds
    assert len(findings) == len(image.kinds)
    assert all(finding.action == DEFAULTS[finding.kind] for finding in findings)
    assert (pixels is not None) == image.kept
    if pixels is not None:
        assert pixels.shape == (CROP, CROP, 3)
        assert pixels.dtype == np.uint8


def test_there_is_a_file_of_every_kind() -> None:
    assert set.union(*(image.kinds for image in faulty_images().values())) == set(FAULT_KINDS) - NOT_OF_CONTENT


@pytest.mark.parametrize("kind", sorted(set(FAULT_KINDS) - NOT_OF_CONTENT))
def test_every_kind_can_be_skipped_and_can_stop(kind: str) -> None:
    for name, image in faulty_images().items():
        if kind in image.kinds:
            pixels, findings = decode(image.content, name, f"{kind}=skip")
            assert pixels is None
            assert (findings[-1].kind, findings[-1].action) == (kind, "skip")
            with pytest.raises(FaultStop) as caught:
                decode(image.content, name, f"{kind}=stop")
            assert caught.value.key == name
            assert (caught.value.finding.kind, caught.value.finding.action) == (kind, "stop")


def test_details_do_not_depend_on_the_process_or_the_thread() -> None:
    """Neither addresses nor paths; four threads at once give what one after the other gives."""

    def outcome(item: tuple[str, FaultyImage]) -> tuple[bytes | None, list[Finding]]:
        pixels, findings = decode(item[1].content, item[0])
        return None if pixels is None else pixels.tobytes(), findings

    items = list(faulty_images().items())
    alone = [outcome(item) for item in items]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(outcome, items * 3)) == alone * 3
    details = [finding.detail for _, findings in alone for finding in findings]
    assert all(detail.isprintable() and len(detail) <= 250 for detail in details)
    assert not [detail for detail in details if "0x" in detail or "/" in detail.replace("/255", "")]


def test_a_storage_failure_stops_and_tells_no_path() -> None:
    for error, words in [
        (FileNotFoundError(2, "No such file or directory", "/home/me/my cats/1.jpg"), "No such file or directory"),
        (OSError("Cannot read '/home/me/my cats/1.jpg': I/O error"), "Cannot read …:"),
        (OSError(r"HeadObject at 0x7f3a12345678 of s3://bucket/cats failed, <Client object at 0x7f00>"), "failed"),
        (OSError(), "OSError"),
    ]:
        with pytest.raises(FaultStop) as caught:
            decode(error, "cats/1.jpg")
        detail = caught.value.finding.detail
        assert words in detail and type(error).__name__ in detail
        assert not any(part in detail for part in ("/", "cats", "0x", "home"))
        assert decode(error, "cats/1.jpg", "unreadable=skip")[0] is None


def test_policies_are_whole_and_allowed() -> None:
    content = saved(SQUARE, "PNG")
    without = {kind: action for kind, action in DEFAULTS.items() if kind != "cmyk"}
    with pytest.raises(ValueError, match="cmyk is None; allowed: convert, skip, stop"):
        decode_image(content, "a.png", CROP, without, MAX_PIXELS)
    with pytest.raises(ValueError, match="huge is 'convert'; allowed: skip, stop"):
        decode_image(content, "a.png", CROP, DEFAULTS | {"huge": "convert"}, MAX_PIXELS)


# Pixels. Pictures of the crop's own size, stored without loss: what comes out is a matter of the conversion alone.


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_comes_out_as_it_went_in(image_format: str) -> None:
    content = saved(SQUARE, image_format)
    assert np.array_equal(pixels_of(content, "a"), SQUARE)
    assert kinds_of(content, "a") == []


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    """Gray levels v of 16 bits are v/257 rounded; 12 bits go by 4095, and zero is white where TIFF says so."""
    samples = np.random.default_rng(0).integers(0, 65536, (CROP, CROP))
    samples[0, :4] = [0, 128, 129, 65535]
    scaled = gray(np.rint(samples / 257).astype(np.int64))
    little = samples.astype("<u2").tobytes()
    shape = (CROP, CROP)
    assert np.array_equal(pixels_of(png_file(samples, 0, 16), "a.png"), scaled)
    assert np.array_equal(pixels_of(saved(samples.astype(np.uint16), "TIFF"), "a.tif"), scaled)
    assert np.array_equal(pixels_of(b"P5 64 64 65535 " + samples.astype(">u2").tobytes(), "a.pgm"), scaled)
    assert np.array_equal(pixels_of(tiff_file(*shape, little, {258: 16, 262: 1, 277: 1}), "a.tif"), scaled)
    assert np.array_equal(pixels_of(tiff_file(*shape, little, {258: 16, 262: 0, 277: 1}), "a.tif"), 255 - scaled)

    samples12 = samples >> 4
    pairs = samples12.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    content = tiff_file(*shape, packed.astype(np.uint8).tobytes(), {258: 12, 262: 1, 277: 1})
    assert np.array_equal(pixels_of(content, "a.tif"), gray(np.rint(samples12 * (255 / 4095)).astype(np.int64)))
    assert kinds_of(content, "a.tif") == ["gray16"]


def test_16_bit_colour_keeps_the_high_byte() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (CROP, CROP, 3))
    assert np.array_equal(pixels_of(png_file(samples, 2, 16), "a.png"), samples >> 8)
    tags: dict[int, int | tuple[int, ...]] = {258: (16, 16, 16), 262: 2, 277: 3}
    content = tiff_file(CROP, CROP, samples.astype("<u2").tobytes(), tags)
    assert np.array_equal(pixels_of(content, "a.tif"), samples >> 8)
    assert kinds_of(content, "a.tif") == ["rgb16"]


def test_gray_becomes_three_equal_channels() -> None:
    levels = SQUARE[..., 1].astype(np.int64)
    assert np.array_equal(pixels_of(saved(SQUARE[..., 1], "PNG"), "a.png"), gray(levels))
    for bits in (1, 2, 4):
        samples = levels >> (8 - bits)
        assert np.array_equal(pixels_of(png_file(samples, 0, bits), "a.png"), gray(samples * 255 // (2**bits - 1)))


def test_cmyk_is_multiplied_out_and_not_negative() -> None:
    """R = (255 − C)(255 − K)/255; JPEGs store the inks inverted, as Adobe does, and still give the photograph."""
    inks = np.random.default_rng(0).integers(0, 256, (CROP, CROP, 4))
    expected = np.floor((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255 + 0.5)
    content = saved(Image.fromarray(inks.astype(np.uint8), "CMYK"), "TIFF")
    assert np.abs(pixels_of(content, "a.tif") - expected).max() <= 1
    jpeg = saved(Image.fromarray(SQUARE).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in jpeg[:100]
    assert np.abs(pixels_of(jpeg, "a.jpg") - SQUARE).mean() < 2


def test_a_palette_is_looked_up() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 3), np.uint8)
    indices = np.random.default_rng(1).integers(0, 16, (CROP, CROP))
    opacity = np.random.default_rng(2).integers(0, 256, 16, np.uint8)
    plte = (b"PLTE", colours.tobytes())
    looked_up = colours[indices].astype(np.int64)
    assert np.array_equal(pixels_of(png_file(indices, 3, 4, plte), "a.png"), looked_up)
    content = png_file(indices, 3, 4, plte, (b"tRNS", opacity.tobytes()))
    assert np.array_equal(pixels_of(content, "a.png"), on_white(looked_up, opacity[indices].astype(np.int64)))
    assert np.array_equal(pixels_of(content, "a.png", "transparency=keep"), looked_up)


def test_transparency_is_laid_on_white_or_left_off() -> None:
    alpha = np.tile(np.arange(256).reshape(4, 64), (16, 1))
    rgba = np.dstack([SQUARE, alpha])
    colours = SQUARE.astype(np.int64)
    for content in (png_file(rgba, 6, 8), saved(rgba.astype(np.uint8), "WEBP", lossless=True, exact=True)):
        assert np.array_equal(pixels_of(content, "a"), on_white(colours, alpha))
        assert np.array_equal(pixels_of(content, "a", "transparency=keep"), colours)
    levels = gray(colours[..., 1])
    assert np.array_equal(pixels_of(png_file(rgba[..., [1, 3]], 4, 8), "a.png"), on_white(levels, alpha))
    # Gray multiplied by its opacity beforehand (TIFF's associated alpha).
    opacity = np.where(alpha < 128, 0, 255)
    both = np.stack([colours[..., 1] * (opacity > 0), opacity], -1).astype(np.uint8)
    content = tiff_file(CROP, CROP, both.tobytes(), {258: (8, 8), 262: 1, 277: 2, 338: 1})
    assert np.array_equal(pixels_of(content, "a.tif"), on_white(levels, opacity))


@pytest.mark.parametrize(("colour", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)])
def test_one_value_that_stands_for_transparency_becomes_white(colour: int, bits: int) -> None:
    """PNG's tRNS of gray and RGB, in the file's own samples."""
    samples = SQUARE.astype(np.int64) * 256 + 7 if bits == 16 else SQUARE.astype(np.int64) >> (8 - bits)
    samples = samples[..., 1] if colour == 0 else samples
    key = np.atleast_1d(samples[40, 20])
    hidden = (samples.reshape(CROP, CROP, -1) == key).all(-1)
    assert 0 < hidden.sum() < hidden.size
    content = png_file(samples, colour, bits, (b"tRNS", key.astype(">u2").tobytes()))
    shown = pixels_of(png_file(samples, colour, bits), "a.png")
    assert np.array_equal(pixels_of(content, "a.png"), np.where(hidden[..., None], 255, shown))
    assert np.array_equal(pixels_of(content, "a.png", "transparency=keep"), shown)
    assert kinds_of(content, "a.png")[-1] == "transparency"


STORED = {  # CIPA DC-008, 4.6.4: where the stored picture's first row and first column are in the upright one
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),  # right, top
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda upright: upright[::-1].transpose(1, 0, 2),  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright_or_kept_as_stored(orientation: int, image_format: str) -> None:
    stored = np.ascontiguousarray(STORED[orientation](SQUARE))
    options = {"lossless": True} if image_format == "WEBP" else {}
    content = saved(stored, image_format, exif=with_orientation(orientation), **options)
    assert np.array_equal(pixels_of(content, "a"), SQUARE)
    assert np.array_equal(pixels_of(content, "a", "exif_rotation=keep"), stored)
    assert kinds_of(content, "a") == ["exif_rotation"]


def test_the_first_frame_is_taken() -> None:
    others: Sequence[Pixels] = [photo(CROP, CROP, "flower"), photo(CROP, CROP, "chelsea")]
    for content in (
        frames([SQUARE, *others], "PNG"),
        frames([SQUARE, *others], "TIFF"),
        frames([SQUARE, *others], "WEBP", lossless=True),
    ):
        assert np.array_equal(pixels_of(content, "a"), SQUARE)
        assert kinds_of(content, "a") == ["animated"]
    assert kinds_of(bundled("multipage.tif"), "a.tif")[0] == "animated"


# Limits.


def test_huge_is_told_from_the_header_and_by_one_pixel() -> None:
    content = saved(photo(100, 80), "JPEG")
    assert kinds_of(content, "a.jpg", max_pixels=8000) == []
    assert kinds_of(content, "a.jpg", max_pixels=7999) == ["huge"]
    # There is nothing to decode behind the header, so that decoding first would give another fault.
    header = with_jpeg_size(content, 10_000, 10_000)
    header = header[: header.index(b"\xff\xda") + 20]
    assert kinds_of(header, "a.jpg") == ["huge"]
    assert kinds_of(header, "a.jpg", max_pixels=10**8) == ["truncated"]


def test_a_thread_of_pixels_is_not_enlarged_beyond_the_limit() -> None:
    """2 × 5000 is 64 × 160,000 once enlarged."""
    content = saved(np.zeros((2, 5000, 3), np.uint8), "PNG")
    assert kinds_of(content, "a.png", max_pixels=64 * 160_000) == ["tiny"]
    assert kinds_of(content, "a.png", max_pixels=64 * 160_000 - 1) == ["tiny", "huge"]


def test_text_that_unpacks_to_more_than_it_should_is_corrupt() -> None:
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50 << 20)))
    assert kinds_of(png_file(SQUARE, 2, 8, bomb), "a.png") == ["corrupt"]


@pytest.mark.parametrize("image_format", ["EPS", "ICO", "TGA"])
def test_formats_that_run_programs_or_hide_their_size_are_not_opened(image_format: str) -> None:
    assert kinds_of(saved(SQUARE, image_format), "a") == ["not_image"]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0up\0\0"]
)
def test_exif_data_that_say_nothing_leave_the_picture_as_stored(exif: bytes) -> None:
    assert kinds_of(saved(SQUARE, "JPEG", exif=exif), "a.jpg") == []


@pytest.mark.parametrize("name", ["a", "a.PNG", "a.txt", "v1.0/a", "shard.tar/a.b.png", "x.jpg/a.apng", ".png"])
def test_names_that_do_not_contradict_the_content(name: str) -> None:
    assert kinds_of(saved(SQUARE, "PNG"), name) == []
    assert kinds_of(saved(SQUARE, "BMP"), "a.dib") == []


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "n01/a.gif", "a.psd"])
def test_names_that_contradict_the_content(name: str) -> None:
    assert kinds_of(saved(SQUARE, "PNG"), name) == ["wrong_extension"]


# Files cut short, and files of damaged bytes.


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("sound")])
def test_a_file_cut_anywhere_gives_all_its_pixels_or_none(name: str) -> None:
    content = faulty_images()[name].content
    whole, _ = decode(content, name)
    assert whole is not None
    last = len(content) - 30
    for length in [*range(1, last, last // 60), *range(last, len(content))]:
        pixels, findings = decode(content[:length], name)
        assert (
            (findings[-1].kind in {"truncated", "not_image", "corrupt"})
            if pixels is None
            else (np.array_equal(pixels, whole))
        )
        assert pixels is None or length > last


DAMAGED = [name for name, image in faulty_images().items() if 0 < len(image.content) < 50_000 and "ppm" not in name]


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_bytes_never_raise(data: st.DataObject) -> None:
    """Twice the same outcome, too."""
    name = data.draw(st.sampled_from(DAMAGED))
    content = bytearray(faulty_images()[name].content)
    # Headers are where damage does the most; so half of it goes there.
    places = st.one_of(st.integers(0, min(400, len(content) - 1)), st.integers(0, len(content) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        content[place] = value
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    pixels, findings = decode(damaged, name, max_pixels=500_000)
    again, findings_again = decode(damaged, name, max_pixels=500_000)
    assert findings == findings_again
    assert (pixels is None) == (again is None)
    assert (pixels is None) == bool(findings and findings[-1].action == "skip")
    if pixels is not None and again is not None:
        assert pixels.shape == (CROP, CROP, 3)
        assert np.array_equal(pixels, again)


def test_warnings_neither_show_nor_change_the_outcome(tmp_path: Path) -> None:
    """Under `python -W error`, with EXIF data that Pillow warns about, and pixels beyond its own limit."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x0f\x01\x02\0\xff\xff\0\0\xff\xff\0\0"
    Image.fromarray(SQUARE).save(tmp_path / "broken_exif.jpg", exif=exif)
    Image.new("1", (9500, 9500)).save(tmp_path / "large.png")
    saying = io.StringIO()
    print(
        "import sys, pathlib",
        "from causalfusion_platform.data.images import decode_image",
        "from causalfusion_platform.data.faults import parse_policies",
        "for path in map(pathlib.Path, sys.argv[1:]):",
        "    _, findings = decode_image(path.read_bytes(), path.name, 64, parse_policies([]), 10**8)",
        "    print(path.name, [finding.kind for finding in findings])",
        sep="\n",
        file=saying,
    )
    paths = [str(tmp_path / "broken_exif.jpg"), str(tmp_path / "large.png")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", saying.getvalue(), *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "broken_exif.jpg []\nlarge.png ['gray8']\n", done.stderr
    assert done.stderr == ""
