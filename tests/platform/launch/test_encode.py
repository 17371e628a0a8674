"""What `data encode` refuses before it starts Ray, and how it shares a cluster."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from tests.platform.data.sources.makers import digit, write_files

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.encode.plan import EncodeSettings
from causalfusion_platform.data.faults import parse_policies
from causalfusion_platform.data.shards import classifier_folder
from causalfusion_platform.data.sources import open_source
from causalfusion_platform.launch import encode as launch
from causalfusion_platform.launch.encode import encode_source


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(launch, "ray_session", refuse)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path / "source", {f"a/{row}.png": digit(row) for row in range(6)})


def encode(source: Path, out: Path, vae: str = "identity", size: int = 8) -> None:
    policies = parse_policies([])
    settings = EncodeSettings(size=size, policies=policies, max_pixels=10**9, batch_size=2, rows_per_shard=2)
    encode_source(open_source(str(source), policies=policies), vae, settings, out)


def test_started_with_all_that_is_needed(source: Path, tmp_path: Path) -> None:
    """The other tests of this file go no further than this."""
    with pytest.raises(AssertionError, match="Ray was started"):
        encode(source, tmp_path / "out")
    with pytest.raises(AssertionError, match="Ray was started"):
        encode(source, tmp_path / "out")  # begun, and nothing finished


def test_missing_autoencoder_is_told_first(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no autoencoder in .*kl16\.ckpt: there is no such file or folder\n"):
        encode(source, tmp_path / "out", str(tmp_path / "kl16.ckpt"))
    assert not (tmp_path / "out").exists()


def test_a_second_encoder_of_a_folder_is_refused(source: Path, tmp_path: Path) -> None:
    half_written = tmp_path / "out/_encoding/.shard-00000.json.17"

    def second() -> None:
        half_written.touch()
        encode(source, tmp_path / "out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "ray_session", second)  # while the first one holds the folder
        with pytest.raises(UserError, match=r"another process is encoding into .*out\n  wait for it"):
            encode(source, tmp_path / "out")
    assert half_written.exists()
    with pytest.raises(AssertionError, match="Ray was started"):  # none holds it any more
        encode(source, tmp_path / "out")
    assert not half_written.exists()


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["notes.txt"], "notes.txt"),
        (["shard-00000-of-00002.parquet", "holiday.jpg", "_encoding/plan.json"], "holiday.jpg"),
        ([".git/HEAD"], ".git"),
        (["shard-00000-of-00002.parquet", "_manifest.json"], "shards of another kind"),
    ],
)
def test_a_folder_of_something_else_is_refused(source: Path, tmp_path: Path, files: list[str], names: str) -> None:
    out = write_files(tmp_path / "out", dict.fromkeys(files, "mine"))
    with pytest.raises(UserError, match=f"out holds {names}: it was not made by this command\n"):
        encode(source, out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(files)


def test_a_file_in_the_place_of_the_folder_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out is a file\n"):
        encode(source, tmp_path / "out")


def test_an_empty_folder_will_do_and_so_will_one_with_the_classifier_of_its_data(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AssertionError, match="Ray was started"):
        encode(source, tmp_path / "out")
    classifier_folder(tmp_path / "out", "0123456789abcdef" * 4).mkdir()
    with pytest.raises(AssertionError, match="Ray was started"):
        encode(source, tmp_path / "out")


def test_what_a_killed_one_left_half_written_is_cleared(source: Path, tmp_path: Path) -> None:
    left = [".shard-00000-of-00003.parquet.17", "._manifest.json.4", "._faults.csv.4", "..huggingface.yaml.4"]
    left += ["_encoding/.shard-00001.json.17", "_encoding/.plan.json.4"]
    out = write_files(tmp_path / "out", dict.fromkeys([*left, "shard-00000-of-00003.parquet"], "half"))
    with pytest.raises(AssertionError, match="Ray was started"):
        encode(source, out)
    assert sorted(path.name for path in out.rglob("*")) == [
        "_encoding",
        "lock",
        "plan.json",
        "shard-00000-of-00003.parquet",  # without a record it is not trusted, and will be written again
    ]


def test_a_disk_that_is_too_small_is_told_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 images of 3 × 8 × 8 fp16 numbers, twice: 4608 bytes."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4607))
    with pytest.raises(UserError, match=r"out has 0\.0 GiB left\n.*--no-flip"):
        encode(source, tmp_path / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4608))
    with pytest.raises(AssertionError, match="Ray was started"):
        encode(source, tmp_path / "out")


def test_lost_processes_are_replaced_but_not_for_ever(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three losses in a row without a finished shard end it; what was finished is not asked for again."""
    asked: list[list[int]] = []
    looks = iter([{}, {}, {0: None}, {0: None}, {0: None}, {0: None}])

    def lose(plan: Any, listing: Any, reader: Any, vae: str, shards: list[int], *_: Any) -> None:
        asked.append(shards)
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(launch, "ray_session", nullcontext)
    monkeypatch.setattr(launch, "room_for_encoders", lambda _: None)
    monkeypatch.setattr(launch, "run_pipeline", lose)
    monkeypatch.setattr(launch, "finished_shards", lambda *_: next(looks))
    with pytest.raises(UserError, match="died 3 times without a shard being finished"):
        encode(source, tmp_path / "out")
    assert asked == [[0, 1, 2], [0, 1, 2], [1, 2], [1, 2], [1, 2]]
