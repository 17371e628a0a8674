"""Reading what waits for MLflow: order and times, the cursor, broken lines, and records of the version before."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from causalfusion_platform.tracking import pending as pending_module
from causalfusion_platform.tracking.journal import Interval, Journal, JournalReader, Launched, Measured, StepReport
from causalfusion_platform.tracking.outbox import Outbox
from causalfusion_platform.tracking.pending import Item, Pending
from causalfusion_platform.tracking.records import Create, Ending, Metrics, RunFiles

INTERVAL = Interval(
    means={"mse": 0.25},
    learning_rate=1e-3,
    grad_norm=2.0,
    numbers={"ar_steps": 3.0},
    images_per_second=10.0,
    tokens_per_second=100.0,
    tflops_per_worker=0.5,
    data_wait=0.1,
    checkpoint_stall=0.2,
    mfu=0.3,
    system={"system/cpu_utilization_percentage": 50.0},
)
REPORT = StepReport(
    attempt=1,
    images=64,
    step=1,
    step_seconds=1,
    data_seconds=0,
    checkpoint_seconds=0,
    grid_seconds=0,
    flops=1e12,
    tokens=100,
    loss=0.5,
    skipped_steps=4,
    gpu_bytes=2**31,
    cpu_bytes=2**30,
    interval=INTERVAL,
)


def steps(items: list[Item]) -> list[int]:
    return [item.record.step for item in items if isinstance(item.record, Metrics)]


def test_a_report_of_a_step_is_a_point_of_each_metric(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(Launched(launch=1, host="here", pid=1))
    journal.add(REPORT)
    ((record),) = (item.record for item in Pending(tmp_path).items())
    assert record == Metrics(
        time=REPORT.time,
        step=64,
        values={
            "train/loss": 0.5,
            "train/mse": 0.25,
            "train/learning_rate": 1e-3,
            "train/grad_norm": 2.0,
            "train/ar_steps": 3.0,
            "train/skipped_steps": 4.0,
            "throughput/images_per_second": 10.0,
            "throughput/tokens_per_second": 100.0,
            "throughput/tflops_per_worker": 0.5,
            "throughput/data_wait": 0.1,
            "throughput/checkpoint_stall": 0.2,
            "throughput/mfu": 0.3,
            "memory/cpu_gib": 1.0,
            "memory/gpu_gib": 2.0,
            "system/cpu_utilization_percentage": 50.0,
        },
    )


def test_steps_without_an_update_and_devices_without_a_peak_have_no_such_point(tmp_path: Path) -> None:
    none = INTERVAL.model_copy(update={"means": None, "mfu": None})
    Journal(tmp_path).add(REPORT.model_copy(update={"loss": math.nan, "gpu_bytes": 0, "interval": none}))
    ((record),) = (item.record for item in Pending(tmp_path).items())
    assert isinstance(record, Metrics)
    missing = {"train/loss", "train/mse", "throughput/mfu", "memory/gpu_gib"}
    assert missing.isdisjoint(record.values)
    assert len(record.values) == 15 - 4


def test_reports_that_mlflow_has_by_another_way_do_not_wait(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for change in ({"repeated": True}, {"interval": None}, {"images": 128}):
        journal.add(REPORT.model_copy(update=change))
    assert steps(Pending(tmp_path).items()) == [128]


def test_the_cursor_says_up_to_where(tmp_path: Path) -> None:
    outbox, pending = Outbox(tmp_path), Pending(tmp_path)
    assert pending.items() == []
    for step in range(5):
        outbox.metrics({"loss": 1.0}, step)
    items = pending.items()
    pending.delivered(items[:2])
    outbox.metrics({"loss": 1.0}, 5)
    assert steps(pending.items()) == [2, 3, 4, 5]
    again = Pending(tmp_path)
    assert again.items() == pending.items()  # the same times too
    again.delivered(again.items())
    assert pending.items() != []
    pending.reload()
    assert pending.items() == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"offset": "x"}'])
def test_a_cursor_that_is_damaged_is_the_beginning(tmp_path: Path, content: bytes) -> None:
    outbox, pending = Outbox(tmp_path), Pending(tmp_path)
    outbox.metrics({"loss": 1.0}, 1)
    items = pending.items()
    pending.delivered(items)
    (tmp_path / "outbox" / "cursor.json").write_bytes(content)
    assert Pending(tmp_path).items() == items


def test_files_are_gone_once_they_are_delivered(tmp_path: Path) -> None:
    outbox, pending = Outbox(tmp_path), Pending(tmp_path)
    outbox.image("samples", Image.new("L", (4, 4)), 1)
    outbox.finish()
    (item, _) = pending.items()
    assert item.files is not None
    assert len(list(item.files.iterdir())) == 1
    pending.delivered([item])
    assert not item.files.exists()


def test_what_is_refused_is_kept_with_its_files_and_the_reason(tmp_path: Path) -> None:
    outbox, pending = Outbox(tmp_path), Pending(tmp_path)
    outbox.image("samples", Image.new("L", (4, 4)), 1)
    (item,) = pending.items()
    pending.refuse(item, "too small")
    assert pending.items() == Pending(tmp_path).items() == []
    kept = pending.refused_folder / f"{item.moment}.image.json"
    assert RunFiles.model_validate_json(kept.read_bytes()) == item.record
    assert kept.with_suffix(".txt").read_text() == "too small\n"
    assert len(list(kept.with_suffix("").glob("*.png"))) == 1


def test_a_half_line_waits_for_its_end_and_broken_lines_are_passed_over(tmp_path: Path) -> None:
    outbox, pending = Outbox(tmp_path), Pending(tmp_path)
    outbox.metrics({"loss": 1.0}, 1)
    line = outbox.journal.path.read_bytes()
    with outbox.journal.path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert steps(pending.items()) == [1]
        file.write(line[20:] + b'[1]\n{"kind": "metrics"}\n{"kind": "progress"}\n\xff\n{"kind": "new"}\n{"kin')
    outbox.metrics({"loss": 1.0}, 2)
    assert steps(pending.items()) == [1, 1, 2]
    assert steps(Pending(tmp_path).items()) == [1, 1, 2]


def test_times_go_up_whatever_the_clocks_of_the_writers_say(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for time in (100.0, 40.0, 40.0, 100.001, 200.5):
        journal.add(Metrics(time=time, values={"loss": 1.0}, step=1))
    moments = [100_000, 100_001, 100_002, 100_003, 200_500]
    pending = Pending(tmp_path)
    assert [item.moment for item in pending.items()] == moments
    pending.delivered(pending.items()[:2])
    assert [item.moment for item in Pending(tmp_path).items()] == moments[2:]


def test_a_run_that_is_created_anew_has_nothing_of_the_launch_before(tmp_path: Path) -> None:
    """That launch died before it had a state, and nothing of it was delivered."""
    outbox = Outbox(tmp_path)
    for name in ("first", "second"):
        outbox.create("tests", name, artifacts=Path("art"), parameters={}, tags={})
        outbox.metrics({"loss": 1.0}, 1)
    created, point = (item.record for item in Pending(tmp_path).items())
    assert isinstance(created, Create)
    assert created.name == "second"
    assert isinstance(point, Metrics)


# As the version before wrote them


def write_old(spool: Path, stem: str, **fields: object) -> Path:
    spool.mkdir(exist_ok=True)
    path = spool / f"{stem}.json"
    path.write_text(json.dumps(fields))
    return path


def test_records_of_the_version_before_come_first_with_their_own_times(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    Outbox(tmp_path).metrics({"loss": 1.0}, 3)
    point = {"kind": "metrics", "values": {"loss": "NaN", "other": 2.0}, "step": 2, "time": 1_700_000_000_123}
    metrics = write_old(spool, "01700000000123000000-00000001.metrics", **point)
    image = write_old(
        spool, "01700000000124000000-00000002.image", kind="image", folder="images", time=1_700_000_000_124
    )
    image.with_suffix("").mkdir()
    (image.with_suffix("") / "a.png").write_bytes(b"png")
    create = {"key": "k", "experiment": "e", "name": "n", "parent": None, "artifacts": "/a"}
    write_old(spool, "01700000000999000000-00000003.create", kind="create", time=1_700_000_000_999, **create)
    write_old(spool, "01700000000999000000-00000004.metrics", kind="metr")
    (spool / "courier.lock").write_text("7")

    pending = Pending(tmp_path)
    items = pending.items()
    assert [item.record.kind for item in items] == ["create", "metrics", "image", "metrics"]
    assert [item.moment for item in items[:3]] == [1_700_000_000_999, 1_700_000_000_123, 1_700_000_000_124]
    old = items[1].record
    assert isinstance(old, Metrics)
    assert (math.isnan(old.values["loss"]), old.values["other"], old.step) == (True, 2.0, 2)
    assert items[2].files == image.with_suffix("")
    pending.delivered(items[:2])
    assert not metrics.exists()
    assert [item.record.kind for item in Pending(tmp_path).items()] == ["image", "metrics"]
    pending.delivered(items[2:3])
    assert not image.exists()
    assert not image.with_suffix("").exists()
    assert steps(Pending(tmp_path).items()) == [3]
    pending.delivered(items[3:])
    assert Pending(tmp_path).items() == []


def test_an_ending_keeps_its_status(tmp_path: Path) -> None:
    Outbox(tmp_path).finish("KILLED")
    (item,) = Pending(tmp_path).items()
    assert isinstance(item.record, Ending)
    assert item.record.status == "KILLED"


def test_a_journal_that_is_shorter_than_its_cursor_is_read_anew(tmp_path: Path) -> None:
    """As after a power cut. A second delivery changes nothing at MLflow, but a record passed over is lost."""
    journal = Journal(tmp_path)
    for images in (64, 128, 192):
        journal.add(REPORT.model_copy(update={"images": images}))
    pending = Pending(tmp_path)
    moments = [item.moment for item in pending.items()]
    pending.delivered(pending.items())
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[: content.index(b"\n") + 1])
    assert steps(Pending(tmp_path).items()) == [64]
    journal.path.write_bytes(content[: len(content) - 20] + b"\n" + content)  # the cursor is within a line
    again = Pending(tmp_path).items()
    assert steps(again)[:2] == [64, 128]
    assert [item.moment for item in again][:2] == moments[:2]
    assert len(again) == 5


def test_a_long_journal_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_module, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(pending_module, "_ENOUGH", 3)
    journal = Journal(tmp_path)
    wanted = []
    for images in range(64, 64 * 20, 64):
        journal.add(Launched(launch=1, host="here", pid=1))
        journal.add(REPORT.model_copy(update={"images": images}))
        wanted.append(images)
    pending, found = Pending(tmp_path), list[int]()
    while items := pending.items():
        assert len(items) <= 3
        found += steps(items[:2])
        pending.delivered(items[:2])
    assert found == wanted


def test_copies_that_no_waiting_record_names_are_removed(tmp_path: Path) -> None:
    """Of a writer that was killed before its record, and of a delivery that could not remove what it delivered."""
    outbox, pending = Outbox(tmp_path), Pending(tmp_path)
    for step in (1, 2):
        outbox.image("samples", Image.new("L", (4, 4)), step)
    delivered, waits = pending.items()
    assert delivered.files is not None and waits.files is not None
    pending.delivered([delivered])
    for left in (delivered.files, tmp_path / "outbox" / f"{'0' * 32}.artifact"):
        left.mkdir()
        (left / "file").write_bytes(b"half")
    kept = [waits.files, *(tmp_path / "outbox" / name for name in ("refused", "cursor.json", "note"))]
    for folder in (kept[1], kept[3]):
        folder.mkdir()
    pending.remove_unnamed()
    assert sorted((tmp_path / "outbox").iterdir()) == sorted(kept)
    assert Pending(tmp_path).items() == [waits]


def test_a_measurement_is_one_line_and_a_point_of_each_curve(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    measured = Measured(attempt=1, images=64, values={"score": 0.5}, curves={"eval/score_n8": 0.5, "x": math.nan})
    journal.add(measured)
    journal.add(
        Measured(attempt=1, images=128, values={"score": 0.5})
    )  # of a version that recorded the point apart
    ((record),) = (item.record for item in Pending(tmp_path).items())
    assert isinstance(record, Metrics)
    assert (record.time, record.step, repr(record.values)) == (measured.time, 64, repr(measured.curves))


def test_any_cut_of_a_journal_is_survived(tmp_path: Path) -> None:
    """A power cut may shorten it anywhere. What is whole is read, and what follows too."""
    outbox = Outbox(tmp_path)
    journal = outbox.journal
    outbox.metrics({"loss": 1.0}, 1)
    journal.add(REPORT)
    outbox.create("tests", "müde", artifacts=Path("art"), parameters={}, tags={"key": "value"})
    content = journal.path.read_bytes()
    for cut in range(len(content)):
        journal.path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        reader = JournalReader(tmp_path)
        assert len(reader.new_events()) == (whole > 1)
        # Cut right before its end, the last line is whole but for the character that ends it.
        assert len(journal.events()) in {whole > 1, whole > 0}
        waiting = Pending(tmp_path)
        assert len(waiting.items()) == [0, 1, 2, 1][whole]
        outbox.metrics({"loss": 1.0}, 2)
        assert steps(waiting.items())[-1:] == steps(Pending(tmp_path).items())[-1:] == [2]


def test_any_cut_of_the_cursor_and_of_an_old_record_is_survived(tmp_path: Path) -> None:
    outbox, pending = Outbox(tmp_path), Pending(tmp_path)
    for step in (1, 2):
        outbox.metrics({"loss": 1.0}, step)
    first, second = pending.items()
    pending.delivered([first])
    cursor = tmp_path / "outbox" / "cursor.json"
    content = cursor.read_bytes()
    for cut in range(len(content)):
        cursor.write_bytes(content[:cut])
        assert Pending(tmp_path).items() == [first, second]
    for strange in (b'{"offset": -1}', b'{"offset": 1e400}', b'{"offset": 10000000000000000000000}', b"[1]"):
        cursor.write_bytes(strange)
        assert Pending(tmp_path).items() == [first, second]
    cursor.write_bytes(content)
    point = {"kind": "metrics", "values": {"loss": 1.0}, "step": 3, "time": 1_700_000_000_123}
    old = write_old(tmp_path / "spool", "01700000000123000000-00000001.metrics", **point)
    content = old.read_bytes()
    for cut in range(len(content)):
        old.write_bytes(content[:cut])
        assert steps(Pending(tmp_path).items()) == [2]
