"""Records for MLflow are lines of the journal, written without a network and without ever failing."""

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
from tests.platform.tracking.recorded import waiting

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Rows
from causalfusion_platform.storage.run_layout import JOURNAL_FILE
from causalfusion_platform.tracking.outbox import Outbox
from causalfusion_platform.tracking.records import Metrics, Tags


def contents(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / JOURNAL_FILE).read_text().splitlines()]


def files_of(folder: Path) -> list[Path]:
    return list((folder / "outbox").glob("*/*"))


def test_records_lie_in_the_order_of_recording(own_folder: Path) -> None:
    outbox = Outbox(own_folder)
    before = time.time()
    outbox.create("tests", "run", artifacts=Path("art"), parameters={"a": 1}, tags={"t": "u"}, parent="p")
    outbox.metrics({"loss": 1.0}, 128)
    outbox.image("samples", Image.new("L", (4, 4)), 128)
    outbox.finish("FAILED")
    outbox.reopen()
    found = contents(own_folder)
    assert [one["kind"] for one in found] == ["create", "params", "tags", "metrics", "image", "status", "status"]
    assert found[0]["artifacts"] == str(own_folder / "art")
    assert [one["status"] for one in found[-2:]] == ["FAILED", "RUNNING"]
    times = [one["time"] for one in found]
    assert times == sorted(times)  # type: ignore[type-var]
    assert before <= times[0] <= times[-1] <= time.time()  # type: ignore[operator]


def test_numbers_that_json_does_not_have(own_folder: Path) -> None:
    given = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e-300}
    Outbox(own_folder).metrics(given, 1)
    (found,) = contents(own_folder)
    assert repr(found["values"]) == repr(given)
    (read,) = waiting(own_folder)
    assert isinstance(read, Metrics)
    assert repr(read.values) == repr(given)


def test_an_image_lies_beside_its_record_under_the_name_of_mlflows_grid(own_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image, before = Image.fromarray(pixels), time.time_ns() // 10**6
    Outbox(own_folder).image("final/γ=0.9", image, 512)
    (record,), (file,) = contents(own_folder), files_of(own_folder)
    assert file.parent.name == record["files"]
    found = re.fullmatch(r"final~__0\.9\+step\+512\+timestamp\+(\d{13})\+[0-9a-f-]{36}\.png", file.name)
    assert found
    assert before <= int(found[1]) <= 1000 * record["time"]  # type: ignore[operator]
    assert np.array_equal(np.asarray(Image.open(file)), pixels)


@pytest.mark.parametrize(("posterior", "flip"), [(False, False), (True, True)])
def test_the_data_set_says_what_its_shards_hold(
    own_folder: Path, write_small: Callable[..., tuple[Path, Rows, Manifest]], posterior: bool, flip: bool
) -> None:
    folder, _, manifest = write_small(30, rows_per_shard=20, rows_per_group=10, posterior=posterior, flip=flip)
    Outbox(own_folder).data(manifest, Path("small"))
    (found,) = contents(own_folder)
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
    Outbox(own_folder).data(elsewhere, Path("small"))
    (found,) = contents(own_folder)
    assert found["name"] == name
    assert location in found["profile"]["source"]  # type: ignore[index]


def test_an_artifact_is_kept_as_it_was(own_folder: Path) -> None:
    (own_folder / "summary.json").write_bytes(b"first")
    Outbox(own_folder).artifact(own_folder / "summary.json", "inner")
    (own_folder / "summary.json").write_bytes(b"second")
    (record,), (file,) = contents(own_folder), files_of(own_folder)
    assert (file.name, file.read_bytes()) == ("summary.json", b"first")
    assert (record["folder"], record["files"]) == ("inner", file.parent.name)


def test_several_threads_and_outboxes_of_one_folder(own_folder: Path) -> None:
    def record(outbox: Outbox, writer: int) -> None:
        for step in range(100):
            outbox.metrics({f"writer {writer}": float(step)}, step)

    shared = Outbox(own_folder)
    outboxes = [shared, shared, Outbox(own_folder), Outbox(own_folder)]
    threads = [threading.Thread(target=record, args=(outbox, n)) for n, outbox in enumerate(outboxes)]
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
    """No file may be larger than 400 bytes, for a while: a record that does not fit leaves no trace."""
    code = """if True:
        import resource
        from pathlib import Path
        from PIL import Image
        from causalfusion_platform.tracking.outbox import Outbox
        outbox = Outbox(Path())
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
        outbox.metrics({"loss": 1.0}, 1)
        outbox.image("samples", Image.effect_noise((64, 64), 90), 1)
        outbox.metrics({f"a long name, the {i}th": 1.0 for i in range(100)}, 2)
        outbox.metrics({"loss": 2.0}, 3)
        outbox.artifact(Path("no such file"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        outbox.metrics({"loss": 3.0}, 4)
        print(outbox.journal.lost)
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "4\n"
    assert done.stderr.count("journal.jsonl is lost, training goes on: ") == 1
    assert "File too large" in done.stderr
    assert [record.step for record in waiting(own_folder) if isinstance(record, Metrics)] == [1, 4]
    assert list((own_folder / "outbox").iterdir()) == []


def test_a_folder_that_cannot_be_made(own_folder: Path) -> None:
    (own_folder / "file").write_text("")
    outbox = Outbox(own_folder / "file" / "run")
    outbox.metrics({"loss": 1.0}, 1)
    outbox.image("samples", Image.new("L", (4, 4)), 1)
    outbox.finish()
    assert outbox.journal.lost == 3


def test_a_status_that_mlflow_does_not_have(own_folder: Path) -> None:
    with pytest.raises(ValueError, match="'DONE' is not one of"):
        Outbox(own_folder).finish("DONE")


def test_a_run_does_not_begin_without_the_record_that_makes_it(own_folder: Path) -> None:
    (own_folder / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"journal\.jsonl cannot be written\n  free space"):
        Outbox(own_folder).create("experiment", "run", artifacts=own_folder, parameters={}, tags={})


def test_a_text_that_is_not_utf8_ends_nothing(own_folder: Path) -> None:
    own_folder.mkdir(parents=True, exist_ok=True)
    outbox = Outbox(own_folder)
    outbox.tags({"path": "\udcff"})
    outbox.tags({"later": "yes"})
    (record,) = waiting(own_folder)
    assert isinstance(record, Tags)
    assert record.values == {"later": "yes"}
