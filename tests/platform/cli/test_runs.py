"""`runs show` and `runs list` over folders of runs as training leaves them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.config.trees import load_experiment

from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.tracking.journal import (
    AttemptStarted,
    Checkpointed,
    End,
    Ended,
    Event,
    Incident,
    Journal,
    Launched,
    Measured,
    StepReport,
    TrainingStarted,
)

MakeRun = Callable[..., Path]


def story(*last: Event) -> list[Event]:
    """10 s of start, 60 of new steps at 50 images/s, 10 that a lost worker cost, 20 of recovery; then `last`."""
    return [
        Launched(time=1000, launch=1, host="h", pid=1),
        AttemptStarted(time=1001, launch=1, attempt=1, workers=2, zero_stage=1, images=0),
        TrainingStarted(time=1010, attempt=1, images=0, device="cpu", peak_tflops=0.5, peak_source="measured: so"),
        StepReport(
            time=1070,
            attempt=1,
            images=3000,
            step=47,
            step_seconds=60,
            data_seconds=0,
            checkpoint_seconds=0,
            grid_seconds=0,
            flops=15e12,
            tokens=90_000,
            loss=0.25,
            skipped_steps=2,
            gpu_bytes=0,
            cpu_bytes=2**30,
        ),
        Checkpointed(time=1071, attempt=1, images=2000, bytes=5, stall_seconds=0.5, upload_seconds=2),
        Incident(time=1080, attempt=1, cause="worker", detail="rank 1 [red]died[/red]", images=3100),
        *last,
    ]


ENDED = Ended(time=1100, launch=1, how="failed")


@pytest.fixture
def make_run(own_folder: Path) -> MakeRun:
    def make(name: str, events: list[Event], runs: str = "runs") -> Path:
        experiment = load_experiment("smoke", [f"name={name}", f"runs={runs}", "train.images=6000"])
        folder = own_folder / runs / name
        folder.mkdir(parents=True)
        tree = experiment.model_dump(mode="json")
        RunState(mlflow_run_id="abc", tracking_uri=experiment.tracking_uri, config=tree).write(folder)
        journal = Journal(folder)
        for event in events:
            journal.add(event)
        for number, damaged in ((1024, False), (2048, False), (3072, True)):
            place = folder / "checkpoints" / ("bad" if damaged else "") / f"images-{number:012d}"
            place.mkdir(parents=True)
            (place / "part").write_bytes(bytes(3000))
        return folder

    return make


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def squeezed(text: str) -> str:
    """The text without the panel's frame and line breaks."""
    return " ".join(text.replace("│", " ").split())


def test_show_says_all_of_a_run(run: Run, make_run: MakeRun) -> None:
    make_run("one", story(ENDED))
    result = run("runs", "show", "one")
    assert result.status == 0
    assert all(len(line) <= 80 for line in result.out.splitlines())
    text = squeezed(result.out)
    for part in (
        "status failed · 1:40 in all",
        "3,000 of 6,016 images (50%) · step 47 · loss 0.2500 · updates skipped: 2",
        "50 images/s · 1500 tokens/s",
        "0.25 TFLOP/s (0.125 a worker) · MFU 25.0%",
        "2 × cpu, ZeRO 1 peak 0.5 TFLOP/s each (measured: so)",
        "useful 1:00 60.0%",
        "recovery 0:20 20.0%",
        "redone 0:10 10.0%",
        "0:30 30.0% lost to: worker",
        "worker at 3,100 images: rank 1 [red]died[/red]",
        "images-000000002048, 2.93 KiB; 2 in all, 5.86 KiB",
        "stood still 0.5 s for each, written in the background in 2 s",
        "damaged, in checkpoints/bad: images-000000003072",
        "memory of a worker: CPU 1 GiB",
        "folder runs/one",
        "once more: the run goes on from images-000000002048",
        "causalfusion ui",
    ):
        assert part in text


def test_a_speed_above_the_peak_has_no_mfu(run: Run, make_run: MakeRun) -> None:
    events = story(ENDED)
    report = events[3]
    assert isinstance(report, StepReport)
    events[3] = report.model_copy(update={"flops": 76e12})  # 0.63 TFLOP/s a worker
    make_run("one", events)
    text = squeezed(run("runs", "show", "one").out)
    assert "1.27 TFLOP/s (0.633 a worker) · no MFU: faster than the peak below, which is too low" in text
    assert "MFU 1" not in text


@pytest.mark.parametrize("how", ["stopped", "finished"])
def test_only_a_finished_run_has_final_samples(run: Run, make_run: MakeRun, how: End) -> None:
    """A run that was stopped has a checkpoint of its last step, and all images of it."""
    last = Checkpointed(time=1071, attempt=1, images=3200, bytes=5, stall_seconds=0.5, upload_seconds=2)
    make_run("one", [*story()[:4], last, Ended(time=1090, launch=1, how=how)])
    text = squeezed(run("runs", "show", "one").out)
    assert "3,200 of 6,016 images (53%) · step 50" in text
    assert "end 0:19 21.7%" in text
    assert ("after the last report" in text, "final samples" in text) == (how == "stopped", how == "finished")


def test_json_holds_the_same_numbers(run: Run, make_run: MakeRun) -> None:
    make_run("one", story(ENDED))
    shown = json.loads(run("runs", "show", "one", "--json").out)
    assert (shown["status"], shown["images"], shown["total_images"]) == ("failed", 3000, 6016)
    assert shown["goodput"] == pytest.approx(0.6)
    assert sum(shown["seconds"].values()) == pytest.approx(shown["elapsed_seconds"]) == pytest.approx(100)
    assert shown["by_cause"] == pytest.approx({"worker": 30})
    assert shown["incident_events"][0]["detail"] == "rank 1 [red]died[/red]"
    assert shown["newest"]["mfu"] == pytest.approx(0.25)
    assert [saved["bytes"] for saved in shown["checkpoints"]] == [3000, 3000]
    (listed,) = json.loads(run("runs", "list", "--json").out)
    assert listed == shown


@pytest.mark.parametrize("how", ["finished", "stopped", "preempted", "failed"])
def test_what_to_type_next_depends_on_how_it_ended(run: Run, make_run: MakeRun, how: End) -> None:
    make_run("one", story(Ended(time=1100, launch=1, how=how)))
    text = squeezed(run("runs", "show", "one").out)
    assert f"status {how}" in text
    assert ("causalfusion sample runs/one" in text) == (how == "finished")
    assert ("once more" in text) == (how != "finished")


_HOLD = """
import sys
from collections.abc import Callable
from pathlib import Path
from causalfusion_platform.launch.runs.lock import only_launch
with only_launch(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_run_is_running_while_its_driver_lives_and_killed_after(run: Run, make_run: MakeRun) -> None:
    folder = make_run("one", story())
    driver = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout
        assert driver.stdout.readline() == "held\n"
        alive = squeezed(run("runs", "show", "one").out)
    finally:
        driver.kill()
        driver.wait(timeout=300)
    assert "status running" in alive
    assert "follow it: causalfusion ui" in alive
    dead = squeezed(run("runs", "show", "one").out)
    assert "status killed" in dead
    assert "driver: nothing more was heard of the launch" in dead


def test_a_run_is_named_by_path_or_below_a_folder(run: Run, make_run: MakeRun) -> None:
    folder = make_run("gamma-trial-3", story(ENDED), runs="elsewhere")
    for arguments in ([str(folder)], ["elsewhere/gamma-trial-3"], ["gamma-trial-3", "--runs", "elsewhere"]):
        result = run("runs", "show", *arguments)
        assert result.status == 0
        assert "causalfusion ui --runs elsewhere" in squeezed(result.out)


def test_an_unknown_run_is_refused_with_the_nearest(run: Run, make_run: MakeRun) -> None:
    check_refusal(run("runs", "show", "one"), "no run 'one'", "no runs there yet")
    make_run("quickstart", story(ENDED))
    check_refusal(
        run("runs", "show", "quikstart"), "no run 'quikstart'", "did you mean quickstart?", "causalfusion runs list"
    )


def test_list_has_a_line_for_each_run_and_for_trials(run: Run, make_run: MakeRun) -> None:
    assert "nothing has run there yet" in run("runs", "list").out
    make_run("one", story(ENDED))
    make_run("trial", [], runs="runs/sweep")
    lines = run("runs", "list").out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].split() == ["one", "failed", "–", "3,000", "50%", "50", "60%", "1"]
    assert lines[2].split() == ["sweep/trial", "unknown", "–", "0", "0%", "–", "–", "0"]


SUMMARY = {"name": "x", "class_accuracy": 0.98125, "fd_cnn": 6.5, "num_samples": 200, "images_seen": 9, "mfu": 0.5}


def test_list_fits_eighty_columns_and_breaks_no_name(run: Run, make_run: MakeRun) -> None:
    make_run("one", story(ENDED))
    folder = make_run("ar_decay-0.95.patch_order-raster.seed-1", story(ENDED), runs="runs/gamma")
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    long = "base_lr-0.0001." * 6 + "x"
    make_run(long, story(ENDED), runs="runs/gamma")
    lines = run("runs", "list").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "gamma/ar_decay-0.95.patch_order-raster.seed-1",
        f"gamma/{long}",
        "failed",
        "one",
        "score:",
    ]
    assert lines[0].split()[:4] == ["run", "status", "score", "images"]
    assert lines[1].split()[1:4] == ["failed", "0.9812", "3,000"]
    assert lines[-1] == "score: class_accuracy"
    assert all(len(line) <= 80 for line in lines if long not in line)


def test_show_has_the_scores(run: Run, make_run: MakeRun) -> None:
    """Those of training, and at the end the final ones."""
    measured = Measured(time=1071, attempt=1, images=2000, values={"class_accuracy": 0.5})
    folder = make_run("one", story(measured, ENDED))
    assert "scores class_accuracy 0.5 at 2,000 images" in squeezed(run("runs", "show", "one").out)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    assert "scores class_accuracy 0.9812 fd_cnn 6.5 speed" in squeezed(run("runs", "show", "one").out)


def test_a_run_of_another_version_is_shown_as_far_as_it_goes(run: Run, make_run: MakeRun) -> None:
    folder = make_run("one", story(ENDED))
    tree = json.loads((folder / "run.json").read_text())
    tree["config"]["train"]["no_such_key"] = 1
    (folder / "run.json").write_text(json.dumps(tree))
    assert "3,000 images · step 47" in squeezed(run("runs", "show", "one").out)
    (folder / "run.json").write_text("{")
    check_refusal(run("runs", "show", "one"), "run.json is damaged")


@pytest.mark.parametrize("damage", ["{", "[]", "null", "[" * 200_000, "a folder"])
def test_one_damaged_run_leaves_the_others_listed(run: Run, make_run: MakeRun, damage: str) -> None:
    """The advice does not cost its checkpoints."""
    make_run("one", story(ENDED))
    file = make_run("two", story(ENDED)) / "run.json"
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        file.write_text(damage)
    result = run("runs", "list")
    assert result.status == 0
    lines = result.out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["one", "failed"], ["two", "damaged"]]
    assert all(" 3,000 " in line for line in lines[1:3])
    assert f"{file} is damaged: " in result.err
    assert f"its checkpoints do not need this file: causalfusion sample {file.parent}" in result.err
    assert "remove" not in result.err
    listed = json.loads(run("runs", "list", "--json").out)
    assert [view["status"] for view in listed] == ["failed", "damaged"]
    check_refusal(run("runs", "show", "two"), f"{file} is damaged: ")
    check_refusal(run("runs", "compare", "one", "two"), f"{file} is damaged: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "summary.json is missing"),
        ('{"name": "o', "summary.json is damaged: the file: Invalid JSON"),
        ("[1]", "summary.json is damaged: the file: Input should be an object"),
        ('{"total_seconds": "long"}', "summary.json is damaged: total_seconds: Input should be a valid number"),
        ('{"name": "one"}', "summary.json is not one of this version: KeyError('stage_seconds')"),
    ],
)
def test_a_finished_run_without_its_results(run: Run, make_run: MakeRun, content: str | None, reason: str) -> None:
    folder = make_run("one", story(ENDED))
    state = RunState.read(folder)
    assert state
    state.model_copy(update={"finished": True}).write(folder)
    if content is not None:
        (folder / "summary.json").write_text(content)
    result = run("train", "smoke", "name=one", "train.images=6000")
    assert result.status == 2
    assert reason in result.err
    assert "causalfusion evaluate" in result.err
    assert run("runs", "show", "one").status == 0
