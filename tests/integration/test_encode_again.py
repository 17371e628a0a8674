"""An encoding that stopped, was damaged, or is finished: what the same command makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import files_of, logged
from tests.platform.data.encode.in_process import without_ray
from tests.platform.data.pictures import photo, saved
from tests.platform.data.sources.makers import write_files
from typer.testing import CliRunner

from causalfusion_platform.cli.main import app
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.encode.plan import EncodeSettings
from causalfusion_platform.data.faults import parse_policies
from causalfusion_platform.data.layout import CARD_FILE, EARLIER_NAMES, NAMES
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.sources import EARLIER_RULES, open_source
from causalfusion_platform.data.validate import open_shards
from causalfusion_platform.launch import encode as launch
from causalfusion_platform.launch.encode import Encoded, encode_source

ON_RAY = {name: getattr(launch, name) for name in ("ray_session", "room_for_encoders", "run_pipeline")}

IMAGES, SHARDS = 30, 8
LAST = "a/29.jpg"
"""In the last shard, since the order is the source's."""


def encode(source: Path, out: Path, *policies: str, **changes: Any) -> tuple[Encoded, list[str]]:
    """Encode in shards of 4; return the result and what was said."""
    chosen = parse_policies(policies)
    settings = EncodeSettings(
        policies=chosen,
        **{
            "size": 32,
            "max_pixels": 10**6,
            "batch_size": 4,
            "rows_per_shard": 4,
            "rows_per_group": 2,
            "order": "source",
            **changes,
        },
    )
    opened = open_source(str(source), policies=chosen)
    with logged() as said:
        return encode_source(opened, "identity", settings, out), said


@contextmanager
def on_ray() -> Iterator[None]:
    """Encode on Ray, as the platform does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, original in ON_RAY.items():
            patch.setattr(launch, name, original)
        yield


def with_earlier_names(folder: Path) -> None:
    """Give the files of a folder the names that an earlier version gave them."""
    for name, earlier in zip(NAMES, EARLIER_NAMES, strict=True):
        if (folder / name).exists():
            (folder / name).rename(folder / earlier)
    (folder / CARD_FILE).unlink()


def times_of(folder: Path) -> dict[str, int]:
    """Return when each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


@pytest.fixture(autouse=True, scope="module")
def in_process() -> Iterator[None]:
    """Encode in this process, but where a test asks for Ray."""
    with without_ray():
        yield


@pytest.fixture(scope="module")
def make_source() -> Callable[[Path], Path]:
    whole = photo(400, 60)

    def make(folder: Path) -> Path:
        return write_files(
            folder,
            {f"a/{number:02d}.jpg": saved(whole[:, 10 * number :][:, :60], "JPEG") for number in range(IMAGES)},
        )

    return make


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, make_source: Callable[[Path], Path], in_process: None
) -> tuple[Path, Path]:
    """A source and its finished folder, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    source = make_source(folder / "source")
    encode(source, folder / "out")
    return source, folder / "out"


@pytest.fixture
def copy(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same source, and a copy of the finished folder."""
    source, out = finished
    return source, write_files(tmp_path / "out", dict(files_of(out)))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything starts to be encoded."""

    def refuse() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("causalfusion_platform.launch.encode.ray_session", refuse)


def test_a_finished_folder_is_left_as_it_is(copy: tuple[Path, Path], no_ray: None) -> None:
    source, out = copy
    before, times = files_of(out), times_of(out)
    encoded, said = encode(source, out)
    assert encoded.made == 0
    assert not said
    assert files_of(out) == before
    assert times_of(out) == times
    assert len(times) == SHARDS


def test_a_quarantined_shard_comes_back(copy: tuple[Path, Path]) -> None:
    source, out = copy
    before, digest = files_of(out), Manifest.read(out).digest
    bad = out / "shard-00002-of-00008.parquet"
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    CliRunner().invoke(app, ["data", "verify", str(out), "--quarantine"])
    assert not bad.exists()
    assert Manifest.read(out).rows == IMAGES - 4
    assert Manifest.read(out).digest != digest
    times = times_of(out)
    encoded, said = encode(source, out)
    assert (encoded.made, encoded.manifest.digest) == (1, digest)
    assert said == ["7 of 8 shards are finished and whole; 1 to do"]
    aside = {"_quarantine/shard-00002-of-00008.parquet": bytes(content)}
    assert files_of(out) == {**before, **aside}
    assert times.items() <= times_of(out).items()
    assert open_shards(out).manifest.digest == digest


def test_no_manifest_is_to_be_trusted_while_shards_are_missing(
    copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = copy
    (out / "shard-00004-of-00008.parquet").unlink()

    def fail(*_: object) -> None:
        assert not (out / "_manifest.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("causalfusion_platform.launch.encode.run_pipeline", fail)
    with pytest.raises(KeyboardInterrupt):
        encode(source, out)


def test_a_folder_begun_under_the_earlier_rules_is_continued_under_them(tmp_path: Path) -> None:
    """What a Mac left was a class then, and `train` and `val` were two. The command makes the same bytes still."""
    picture = saved(photo(60, 60), "JPEG")
    names = ["train/0.jpg", "train/.ipynb_checkpoints/0.jpg", "val/0.jpg", "__MACOSX/train/0.jpg"]
    source = write_files(tmp_path / "source", dict.fromkeys(names, picture))
    chosen, out = parse_policies([]), tmp_path / "out"
    settings = EncodeSettings(policies=chosen, size=8, max_pixels=10**6, batch_size=2, rows_per_shard=2)
    opened = open_source(str(source), policies=chosen, rules=EARLIER_RULES)
    encoded = encode_source(opened, "identity", settings, out)
    assert encoded.manifest.class_names == ["__MACOSX", "train", "val"]
    assert "rules" not in json.loads((out / "_encoding/plan.json").read_bytes())
    with_earlier_names(out)
    before = files_of(out)
    next(out.glob("shard-00001-*")).unlink()

    layout = ["--size=8", "--max-pixels=1000000", "--batch-size=2", "--rows-per-shard=2"]
    command = ["data", "encode", str(source), str(out), "--vae=identity", *layout]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "those that this folder was begun under" in result.output
    assert files_of(out) == before
    command[3] = str(tmp_path / "new")
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UserError)
    assert "the splits train/ (1 file), val/ (1 file)" in str(result.exception)
    result = CliRunner().invoke(app, [*command, "--split=train"])
    assert isinstance(result.exception, UserError)  # train/ holds images and no class folders
    assert "has no class folders" in str(result.exception)


@pytest.mark.ray
def test_stopped_by_a_fault_then_continued_without_it(
    tmp_path: Path, make_source: Callable[[Path], Path], ray_cluster: None
) -> None:
    """Shards that were finished stay, and the result is that of a policy that skipped from the start."""
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    policies = ("truncated=stop", "cmyk=stop")
    encode(source, out, *policies)
    for path in (out / "shard-00007-of-00008.parquet", out / "_encoding/shard-00007.json", out / "_manifest.json"):
        path.unlink()  # as if stopped before
    content = (source / LAST).read_bytes()
    (source / LAST).write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))  # it goes bad in between
    times = times_of(out)
    assert len(times) == SHARDS - 1

    with on_ray(), pytest.raises(UserError) as stopped:
        encode(source, out, *policies)
    first, advice = str(stopped.value).split("\n")
    assert first.startswith(f"image {LAST}: truncated (the file ends before its image does): JPEG of ")
    assert "--on truncated=skip" in advice
    assert times_of(out) == times
    assert not (out / "_manifest.json").exists()

    encoded, said = encode(source, out, "cmyk=stop")  # skip is the default
    assert encoded.made == 1
    assert said == ["7 of 8 shards are finished and whole; 1 to do"]
    assert times.items() <= times_of(out).items()
    assert encoded.manifest.faults == {"truncated": {"skip": 1}}
    encode(source, tmp_path / "fresh", "cmyk=stop")
    assert files_of(out) == files_of(tmp_path / "fresh")
    with pytest.raises(UserError, match=r"policies\.truncated: was 'skip', now 'stop'"):
        encode(source, out, *policies)


def test_an_image_without_a_class_stops_before_anything_is_made(
    tmp_path: Path, make_source: Callable[[Path], Path], no_ray: None
) -> None:
    source = make_source(tmp_path / "source")
    (source / "stray.jpg").write_bytes((source / LAST).read_bytes())
    with pytest.raises(UserError, match=r"image stray\.jpg: unlabelled .*\n.*--on unlabelled=skip;"):
        encode(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_of_bad_images_says_where_to_look(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", {f"a/{number}.jpg": b"no image" for number in range(6)})
    message = r"every image of .*source was left out; .*out/_faults\.csv says why"
    with pytest.raises(UserError, match=message):
        encode(source, tmp_path / "out")
    assert (tmp_path / "out/_faults.csv").read_text().count(",not_image,skip,") == 6
    assert not (tmp_path / "out/_manifest.json").exists()
    assert not times_of(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        encode(source, tmp_path / "out")
