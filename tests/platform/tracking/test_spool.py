"""What training does towards MLflow: files, written without a network and without ever failing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Rows
from causalfusion_platform.tracking.spool import Spool, files_of, waiting


def contents(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_names_sort_in_the_order_of_recording(own_folder: Path) -> None:
    spool = Spool(own_folder / "spool")
    before = time.time_ns()
    spool.create("tests", "run", artifacts=Path("art"), parameters={"a": 1}, tags={"t": "u"}, parent="p")
    spool.metrics({"loss": 1.0}, 128)
    spool.image("samples", Image.new("L", (4, 4)), 128)
    spool.finish("FAILED")
    spool.reopen()
    found = contents(own_folder / "spool")
    assert [one["kind"] for one in found] == ["create", "params", "tags", "metrics", "image", "status", "status"]
    assert found[0]["artifacts"] == str(own_folder / "art")
    assert [one["status"] for one in found[-2:]] == ["FAILED", "RUNNING"]
    names = [path.name for path in waiting(own_folder / "spool")]
    assert all(re.fullmatch(r"\d{20}-[0-9a-f]{8}\.[a-z]+\.json", name) for name in names)
    assert before - 10**6 < int(names[0][:20]) < time.time_ns() + 10**8


def test_no_two_records_share_a_time(own_folder: Path) -> None:
    """MLflow would sort them by value, or take them for one."""
    spool = Spool(own_folder)
    for _ in range(200):
        spool.metrics({"loss": 1.0}, 1)
    times = [one["time"] for one in contents(own_folder)]
    assert len(set(times)) == 200
    assert times == sorted(times)  # type: ignore[type-var]


def test_a_clock_that_was_set_back(own_folder: Path) -> None:
    """A record of an earlier launch lies an hour ahead: those of this one still come after it."""
    spool = Spool(own_folder)
    spool.finish("KILLED")
    (old,) = waiting(own_folder)
    ahead = old.with_name(f"{int(old.name[:20]) + 3600 * 10**9:020d}{old.name[20:]}")
    old.rename(ahead)
    Spool(own_folder).reopen()
    assert waiting(own_folder)[0] == ahead
    assert len(waiting(own_folder)) == 2


def test_numbers_that_json_does_not_have(own_folder: Path) -> None:
    Spool(own_folder).metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e-300}, 1)
    (found,) = contents(own_folder)
    assert found["values"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1e-300}


def test_an_image_lies_beside_its_record_under_the_name_of_mlflows_grid(own_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    Spool(own_folder).image("final/γ=0.9", image, 512)
    (record,) = waiting(own_folder)
    (file,) = files_of(record).iterdir()
    moment = json.loads(record.read_text())["time"]
    assert re.fullmatch(rf"final~__0\.9\+step\+512\+timestamp\+{moment}\+[0-9a-f-]{{36}}\.png", file.name)
    assert np.array_equal(np.asarray(Image.open(file)), pixels)


@pytest.mark.parametrize(("posterior", "flip"), [(False, False), (True, True)])
def test_the_data_set_says_what_its_shards_hold(
    own_folder: Path, write_small: Callable[..., tuple[Path, Rows, Manifest]], posterior: bool, flip: bool
) -> None:
    folder, _, manifest = write_small(30, rows_per_shard=20, rows_per_group=10, posterior=posterior, flip=flip)
    Spool(own_folder / "spool").data(manifest, Path("small"))
    (found,) = contents(own_folder / "spool")
    (_, first) = sorted(folder.glob("*.parquet"))
    kinds = {"row_id": "int64", "label": "int64", "key": "string"}
    schema = pq.read_schema(first)
    assert found["columns"] == {name: kinds.get(name, "float16 1×2×2") for name in schema.names}
    assert len(schema.names) == 3 + (2 if posterior else 1) * (2 if flip else 1)
    assert found["source"] == str(own_folder / "small")
    assert found["digest"] == manifest.digest[:36]
    assert found["profile"] == {
        "num_rows": 30,
        "num_classes": 3,
        "autoencoder": "identity",
        "num_shards": 2,
        "source": "folders numbers in turn",
    }


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("digits of someone (a set), 8x8", "digits of someone"),
        ("/data/a (copy)/train", "a (copy)/train"),
        ("/data/imagenet/train/", "imagenet/train"),
        ("s3://bucket/train", "bucket/train"),
        ("x" * 600, "x" * 500),
    ],
)
def test_a_data_set_has_a_short_name(
    own_folder: Path,
    write_small: Callable[..., tuple[Path, Rows, Manifest]],
    location: str,
    name: str,
) -> None:
    _, _, manifest = write_small(3, rows_per_shard=3, rows_per_group=3)
    elsewhere = manifest.model_copy(update={"source": manifest.source.model_copy(update={"location": location})})
    Spool(own_folder / "spool").data(elsewhere, Path("small"))
    (found,) = contents(own_folder / "spool")
    assert found["name"] == name
    assert location in found["profile"]["source"]  # type: ignore[index]


def test_an_artifact_is_kept_as_it_was(own_folder: Path) -> None:
    (own_folder / "summary.json").write_bytes(b"first")
    Spool(own_folder / "spool").artifact(own_folder / "summary.json", "inner")
    (own_folder / "summary.json").write_bytes(b"second")
    (record,) = waiting(own_folder / "spool")
    assert (files_of(record) / "summary.json").read_bytes() == b"first"
    assert json.loads(record.read_text())["folder"] == "inner"


def test_several_threads_and_spools_of_one_folder(own_folder: Path) -> None:
    def record(spool: Spool, writer: int) -> None:
        for step in range(100):
            spool.metrics({f"writer {writer}": float(step)}, step)

    shared = Spool(own_folder)
    spools = [shared, shared, Spool(own_folder), Spool(own_folder)]
    threads = [threading.Thread(target=record, args=(spool, n)) for n, spool in enumerate(spools)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = contents(own_folder)
    assert len(found) == 400
    for writer in range(4):
        steps = [one["step"] for one in found if f"writer {writer}" in one["values"]]  # type: ignore[operator]
        assert steps == list(range(100))


def test_a_full_disk_loses_records_and_nothing_else(own_folder: Path) -> None:
    """The process may write no file of more than 400 bytes: what fits is kept, what does not leaves no trace."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from PIL import Image
        from causalfusion_platform.tracking.spool import Spool
        spool = Spool(Path("spool"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
        spool.metrics({"loss": 1.0}, 1)
        spool.image("samples", Image.effect_noise((64, 64), 90), 1)
        spool.metrics({f"a long name, the {i}th": 1.0 for i in range(100)}, 2)
        spool.metrics({"loss": 2.0}, 3)
        spool.artifact(Path("no such file"))
        print(spool.dropped)
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "3\n"
    assert done.stderr.count("a record for MLflow is lost, training goes on: ") == 1
    assert "File too large" in done.stderr
    assert [one["step"] for one in contents(own_folder / "spool")] == [1, 3]
    assert len(list((own_folder / "spool").iterdir())) == 2


def test_a_folder_that_cannot_be_made(own_folder: Path) -> None:
    (own_folder / "file").write_text("")
    spool = Spool(own_folder / "file" / "spool")
    spool.metrics({"loss": 1.0}, 1)
    spool.finish()
    assert spool.dropped == 2


def test_a_status_that_mlflow_does_not_have(own_folder: Path) -> None:
    with pytest.raises(ValueError, match="'DONE' is not one of"):
        Spool(own_folder).finish("DONE")
