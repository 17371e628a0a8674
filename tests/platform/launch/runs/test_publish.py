"""The state of a run on object storage: always an earlier state as a whole, and brought back from there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.object_store import SERVER_ERROR, FaultyServer

from causalfusion_platform.launch.runs.publish import Publisher
from causalfusion_platform.storage.fence import NoFence, Superseded
from causalfusion_platform.storage.objects import ObjectStore, open_store


@pytest.fixture
def store(s3_bucket: str) -> ObjectStore:
    """The objects of a run."""
    return open_store(f"{s3_bucket}/runs/one")


def begin(root: Path, journal: str = "a\n") -> Path:
    """Write the folder of a run that has begun."""
    (root / "outbox" / ("f" * 32 + ".image")).mkdir(parents=True)
    (root / "outbox" / ("f" * 32 + ".image") / "grid.png").write_text("grid")
    (root / "samples").mkdir()
    (root / "samples/final.png").write_text("final")
    (root / "checkpoints").mkdir()
    (root / "checkpoints/large").write_text("published by the workers")
    (root / ".lock").write_text("of this machine")
    (root / "journal.jsonl").write_text(journal)
    (root / "outbox/cursor.json").write_text('{"offset": 0}')
    (root / "run.json").write_text("{}")
    return root


def files_in(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


STATE = {"journal.jsonl": "a\n", "outbox/cursor.json": '{"offset": 0}', "run.json": "{}"}
IMAGE = {f"outbox/{'f' * 32}.image/grid.png": "grid"}


def test_another_machine_gets_the_state_and_what_mlflow_has_not(store: ObjectStore, tmp_path: Path) -> None:
    publisher = Publisher(begin(tmp_path / "here"), store, NoFence())
    publisher.publish()
    assert {info.key for info in store.list()} == {*STATE, *IMAGE, "samples/final.png"}
    Publisher(tmp_path / "there", store, NoFence()).fetch()
    assert files_in(tmp_path / "there") == STATE | IMAGE


def test_state_goes_after_what_it_counts_on(store: ObjectStore, tmp_path: Path, s3_server: FaultyServer) -> None:
    before = len(s3_server.requests)
    Publisher(begin(tmp_path / "here"), store, NoFence()).publish()
    puts = [line.rpartition("/")[2] for line in s3_server.requests[before:] if line.startswith("PUT")]
    assert sorted(puts[:2]) == ["final.png", "grid.png"]
    assert puts[2:] == ["journal.jsonl", "cursor.json", "run.json"]


def test_only_changes_and_whole_lines_are_sent(store: ObjectStore, tmp_path: Path, s3_server: FaultyServer) -> None:
    root = begin(tmp_path / "here", "a\nhalf of a li")
    publisher = Publisher(root, store, NoFence())
    publisher.publish()
    assert store.read("journal.jsonl") == b"a\n"
    before = len(s3_server.requests)
    publisher.publish()
    assert s3_server.requests[before:] == []
    shutil.rmtree(root / "outbox" / ("f" * 32 + ".image"))  # MLflow has taken it
    (root / "outbox/cursor.json").write_text('{"offset": 2}')
    publisher.publish()
    methods = [line.split("/")[0].strip() for line in s3_server.requests[before:]]
    assert methods == ["PUT", "DELETE"]


def test_after_a_kill_lines_that_were_not_published_are_kept_here(store: ObjectStore, tmp_path: Path) -> None:
    root = begin(tmp_path / "here")
    Publisher(root, store, NoFence()).publish()
    (root / "journal.jsonl").write_text("a\nb\n")
    again = Publisher(root, store, NoFence())
    again.fetch()
    assert (root / "journal.jsonl").read_text() == "a\nb\n"
    again.publish()
    assert store.read("journal.jsonl") == b"a\nb\n"


def test_what_another_machine_went_on_with_wins(store: ObjectStore, tmp_path: Path) -> None:
    root = begin(tmp_path / "here")
    Publisher(root, store, NoFence()).publish()
    there = Publisher(tmp_path / "there", store, NoFence())
    there.fetch()
    (tmp_path / "there/journal.jsonl").write_text("a\nc\n")
    there.publish()
    (root / "journal.jsonl").write_text("a\nb\nb\n")  # never published
    Publisher(root, store, NoFence()).fetch()
    assert (root / "journal.jsonl").read_text() == "a\nc\n"


def test_a_run_that_was_removed_there_is_not_taken_from_here(store: ObjectStore, tmp_path: Path) -> None:
    root = begin(tmp_path / "here")
    Publisher(root, store, NoFence()).fetch()
    assert not (root / "run.json").exists()
    assert not (root / "journal.jsonl").exists()


def test_a_launch_that_was_taken_over_publishes_nothing(store: ObjectStore, tmp_path: Path) -> None:
    class Lost:
        def check(self) -> None:
            raise Superseded("another launch")

    publisher = Publisher(begin(tmp_path / "here"), store, Lost())
    publisher.start()
    with pytest.raises(Superseded):
        publisher.stop()
    assert store.list() == []


def test_a_failed_publication_is_made_up_for(store: ObjectStore, tmp_path: Path, s3_server: FaultyServer) -> None:
    publisher = Publisher(begin(tmp_path / "here"), store, NoFence(), seconds=0.05)
    s3_server.fail("PUT", 3, SERVER_ERROR)
    publisher.start()
    publisher.stop()
    Publisher(tmp_path / "there", store, NoFence()).fetch()
    assert files_in(tmp_path / "there") == STATE | IMAGE
