"""The journal survives processes that are killed, disks that are full, and several writers."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from causalfusion_platform.tracking.journal import (
    AttemptStarted,
    Checkpointed,
    Ended,
    Event,
    Incident,
    Journal,
    JournalReader,
    Launched,
    Measured,
    Resharded,
    SaveFailed,
    SetAside,
    StepReport,
    StepSkipped,
    TrainingStarted,
    last_attempt,
    recorded_images,
)

ALL: list[Event] = [
    Launched(time=1, launch=1, host="näme", pid=7),
    AttemptStarted(time=2, launch=1, attempt=1, workers=2, zero_stage=1, images=0),
    TrainingStarted(time=3, attempt=1, images=0, device="cpu", peak_tflops=None, peak_source="not known"),
    StepReport(
        time=4,
        attempt=1,
        images=64,
        step=1,
        step_seconds=0.1,
        data_seconds=0.2,
        checkpoint_seconds=0,
        grid_seconds=0,
        flops=1e18,
        tokens=10**12,
        loss=0.5,
        skipped_steps=0,
        gpu_bytes=0,
        cpu_bytes=2**40,
    ),
    Checkpointed(time=5, attempt=1, images=64, bytes=3, stall_seconds=0.1, upload_seconds=2),
    SaveFailed(time=6, attempt=1, images=64, reason="no space\nleft"),
    StepSkipped(time=7, attempt=1, images=64, reason="spike"),
    SetAside(time=8, checkpoint="images-000000000064", reason="a line\u2028separator"),
    Resharded(time=9, attempt=1, images=64, old="2 workers, ZeRO 1", new="1 worker, ZeRO 0", seconds=4),
    Incident(time=10, attempt=1, cause="hang", detail="no step\r\nfor 600 s", images=64),
    Ended(time=11, launch=1, how="failed", detail="gave up"),
]


def test_every_kind_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for event in ALL:
        journal.add(event)
    assert Journal(tmp_path).events() == ALL
    lines = Journal(tmp_path).path.read_text().split("\n")
    assert [json.loads(line)["kind"] for line in lines[:-1]] == [event.kind for event in ALL]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_kept(tmp_path: Path, loss: float) -> None:
    progressed = ALL[3].model_copy(update={"loss": loss})
    Journal(tmp_path).add(progressed)
    (found,) = Journal(tmp_path).events()
    assert isinstance(found, StepReport)
    assert repr(found.loss) == repr(loss)


def test_no_journal_has_no_events(tmp_path: Path) -> None:
    assert Journal(tmp_path / "none").events() == []


@pytest.mark.parametrize("cut", [1, 20, 10_000], ids=["newline", "line", "all"])
def test_a_broken_last_line_costs_itself_alone(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    for event in ALL[:3]:
        journal.add(event)
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-cut])
    journal.add(ALL[3])
    before = {1: ALL[:3], 20: ALL[:2], 10_000: []}[cut]
    assert journal.events() == [*before, ALL[3]]


def test_lines_of_another_version_are_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(ALL[0])
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "moved", "time": 1}\n\xff\xfe\n[1]\n\n{"kind": "launched", "time": 1}\n')
    journal.add(ALL[10])
    assert journal.events() == [ALL[0], ALL[10]]


_WRITE = """
import sys
from pathlib import Path
from causalfusion_platform.tracking.journal import Journal, SetAside
journal = Journal(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(1000):
    journal.add(SetAside(checkpoint=f"{sys.argv[2]} {number}", reason="x" * 300))
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITE, str(tmp_path), name], stdin=pipe, stdout=pipe, text=True)
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.close()
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
    names = [event.checkpoint for event in Journal(tmp_path).events() if isinstance(event, SetAside)]
    for letter in ("a", "b"):
        assert [name for name in names if name.startswith(letter)] == [f"{letter} {n}" for n in range(1000)]
    assert len(names) == 2000


def test_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(ALL[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = journal.path.stat().st_size
    # A limit on the size of files stands in for the disk; it needs a process of its own to be safe.
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from causalfusion_platform.tracking.journal import Journal, SetAside\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        "[Journal(Path(sys.argv[1])).add(SetAside(checkpoint='x', reason='y')) for _ in range(3)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(size + 10)], timeout=300)
    assert done.returncode == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == (soft, hard)
    journal.add(ALL[1])
    assert journal.events() == ALL[:2]


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    Journal(tmp_path / "gone").add(ALL[0])
    assert not (tmp_path / "gone").exists()


def test_a_reader_gets_each_event_once_however_many_came_between(tmp_path: Path) -> None:
    journal, reader = Journal(tmp_path), JournalReader(tmp_path)
    assert reader.new_events() == []
    many = [SetAside(checkpoint=f"{number}", reason="x" * 1000) for number in range(3000)]
    assert sum(len(event.model_dump_json()) for event in many) > 3 << 20
    for event in [ALL[0], *many]:
        journal.add(event)
    assert reader.new_events() == [ALL[0], *many]
    assert reader.new_events() == []
    line = ALL[1].model_dump_json().encode() + b"\n"
    for part, expected in ((line[:20], []), (line[20:], [ALL[1]]), (b"{broken}\n", []), (line, [ALL[1]])):
        with journal.path.open("ab") as file:
            file.write(part)
        assert reader.new_events() == expected


def test_a_reader_begins_anew_with_the_journal(tmp_path: Path) -> None:
    """A generation of a population that was cut short is begun anew, in the same folder."""
    journal, reader = Journal(tmp_path), JournalReader(tmp_path)
    for event in ALL[:3]:
        journal.add(event)
    assert len(reader.new_events()) == 3
    journal.path.unlink()
    journal.add(ALL[10])
    assert reader.new_events() == [ALL[10]]


# What the next attempt must know


def attempt(number: int, images: int = 0, launch: int = 1) -> AttemptStarted:
    return AttemptStarted(launch=launch, attempt=number, workers=1, zero_stage=1, images=images)


def progress(number: int, images: int) -> StepReport:
    assert isinstance(ALL[3], StepReport)
    return ALL[3].model_copy(update={"attempt": number, "images": images})


def incident(number: int, cause: str) -> Event:
    return Incident.model_validate({"attempt": number, "cause": cause, "detail": "x", "images": 0})


def test_attempts_are_numbered_over_all_launches() -> None:
    assert last_attempt([]) == 0
    assert last_attempt([ALL[0], progress(7, 64), incident(7, "worker")]) == 0  # only what was begun counts
    assert last_attempt([attempt(1), attempt(2), ALL[10], ALL[0], attempt(3, launch=2), progress(3, 64)]) == 3
    assert last_attempt([attempt(3), attempt(2)]) == 3


ROLLED_BACK: list[Event] = [attempt(1), progress(1, 128), incident(1, "diverged"), attempt(2, 64)]
HISTORIES: dict[str, tuple[list[Event], int]] = {
    "nothing": ([], 0),
    "no report yet": ([ALL[0], attempt(1), ALL[2]], 0),
    "reports": ([attempt(1), progress(1, 64), progress(1, 128)], 128),
    "a worker was lost, and it is still behind": (
        [attempt(1), progress(1, 64), progress(1, 128), incident(1, "worker"), attempt(2, 64), progress(2, 96)],
        128,
    ),
    "it is past": (
        [attempt(1), progress(1, 128), incident(1, "hang"), attempt(2, 64), progress(2, 96), progress(2, 160)],
        160,
    ),
    "a launch that was killed": ([attempt(1), progress(1, 128), ALL[0], attempt(2, 64, launch=2)], 128),
    "diverged, and it has not gone back yet": ([attempt(1), progress(1, 128), incident(1, "diverged")], 128),
    "it has": (ROLLED_BACK, 64),
    "to the start": ([attempt(1), progress(1, 128), incident(1, "diverged"), attempt(2)], 0),
    "and on": (
        [*ROLLED_BACK, progress(2, 96)],
        96,
    ),
    "and then a worker was lost": (
        [*ROLLED_BACK, progress(2, 96), incident(2, "worker"), attempt(3, 64)],
        96,
    ),
    "and then the driver was killed": ([*ROLLED_BACK, progress(2, 96), ALL[0], attempt(3, 64, launch=2)], 96),
    "twice": (
        [*ROLLED_BACK, progress(2, 192), incident(2, "diverged"), attempt(3, 32)],
        32,
    ),
}


@pytest.mark.parametrize(("events", "images"), HISTORIES.values(), ids=HISTORIES.keys())
def test_up_to_where_metrics_are_recorded(events: list[Event], images: int) -> None:
    assert recorded_images(events) == images
    assert recorded_images(iter(events)) == images


def test_measurements_are_recorded_apart_from_reports() -> None:
    measured = Measured(attempt=1, images=96, values={"score": 1.0})
    assert recorded_images([attempt(1), measured, progress(1, 128)], Measured) == 96
    assert recorded_images([attempt(1), measured, incident(1, "diverged"), attempt(2, 64)], Measured) == 64
