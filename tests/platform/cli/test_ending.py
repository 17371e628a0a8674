"""How commands end: every verb × every kind of error gives a documented exit status and one message."""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.exceptions
import omegaconf.errors
import pyarrow
import pytest
import ray.exceptions
import requests
import torch
import typer.main
import yaml
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.tune import TuneError
from safetensors import SafetensorError
from tests.conftest import run_environment
from tests.platform.cli.conftest import Run
from tests.platform.config.trees import load_experiment

from causalfusion_platform.cli.main import app
from causalfusion_platform.config import compose
from causalfusion_platform.config.compose import Composed
from causalfusion_platform.config.errors import GAVE_UP, STATUSES, STOPPED, WRONG, MachineError, UserError
from causalfusion_platform.launch.runs.exit_status import GaveUp, StoppedRun

# Command line → where the verb calls into the platform. The error is raised there.
VERBS = {
    "quickstart": "launch.training.train.run_training",
    "train smoke": "launch.training.train.run_training",
    "train smoke --dry-run": "launch.training.dry_run.make_plan",
    "sweep sweeps/gamma": "launch.sweeping.job.job_of",
    "reproduce table3a": "launch.reproduction.rows.reproduction_of",
    "finetune classify weights": "launch.training.finetuning.compose_finetune",
    "probe run": "launch.evaluating.probe_request.plan_probe",
    "submit -- train smoke": "launch.cluster.submit.submit_job",
    "jobs submit -- train smoke": "launch.cluster.submit.submit_job",
    "jobs list": "launch.cluster.jobs.list_jobs",
    "jobs logs one": "launch.cluster.jobs.find_job",
    "jobs stop one": "launch.cluster.stop.stop_job",
    "jobs resume one": "launch.cluster.resume.resume_job",
    "jobs fetch one": "launch.cluster.fetch.fetch_results",
    "sample weights": "checkpoint.find.find_weights",
    "edit weights": "checkpoint.find.find_weights",
    "caption weights image.png": "sampling.image_captions.image_files",
    "generate weights": "launch.generating.generate.run_generate",
    "evaluate weights": "checkpoint.find.find_weights",
    "analyze run": "launch.evaluating.analyze.analyze_run",
    "ui": "config.schema.local_database",
    "models": "causalfusion.count_parameters",
    "doctor smoke": "launch.doctor.diagnose",
    "cluster schema": "deploy.cluster_file.ClusterFile.model_json_schema",
    "cluster render lab -- train smoke": "deploy.read.read_cluster_file",
    "cluster check lab -- train smoke": "deploy.read.read_cluster_file",
    "cluster diff lab -- train smoke": "deploy.read.read_cluster_file",
    "cluster apply lab -- train smoke": "deploy.read.read_cluster_file",
    "cluster delete lab -- train smoke": "deploy.read.read_cluster_file",
    "config show smoke": "launch.runs.public_config.public_config",
    "config schema": "config.schema.Experiment.model_json_schema",
    "config list": "config.files.experiment_files",
    "config explain seed": "config.explain.explain",
    "data digits shards": "data.digits.write_digits",
    "data mnist shards": "data.mnist.write_mnist",
    "data encode images shards --vae identity": "data.sources.open_source",
    "data faults": "rich.table.Table.add_row",
    "data prompts captions.json out.jsonl": "evaluation.zero_shot_fid.write_prompts",
    "data reference images out.npz --extractor classifier": "evaluation.open.open_extractor",
    "data subset shards out --per-class 1": "data.subset.write_subset",
    "data upload shards s3://bucket/shards": "data.upload.upload_shards",
    "data verify shards": "data.scan.scan_shards",
    "data inspect shards": "data.scan.scan_shards",
    "data stats shards": "data.validate.open_shards",
    "runs show one": "launch.runs.find.find_run",
    "runs list": "launch.runs.find.runs_in",
    "runs sync one": "launch.runs.find.find_run",
    "runs compare one two": "launch.runs.find.find_run",
    "runs tag one a=b": "launch.runs.find.find_run",
    "runs fetch one": "tracking.fetch.fetch_artifacts",
    "runs register one": "launch.runs.find.find_run",
    "runs take-over one": "launch.runs.find.find_run",
    "weights import file folder": "checkpoint.convert.import_checkpoint",
    "weights export folder file": "checkpoint.convert.export_checkpoint",
    "weights posthoc run folder": "checkpoint.posthoc.reconstruct",
}


def of_a_task(cause: Exception) -> Exception:
    """Return what `ray.get` raises for an error of a task: a RayTaskError that is of the error's class too."""
    text = f"Traceback (most recent call last):\n  File …\n{type(cause).__name__}: {cause}"
    both: Exception = RayTaskError("read", text, cause, "ray::read", 1, "127.0.0.1").as_instanceof_cause()
    return both


def system(number: int, path: str | None = "/some/file") -> OSError:
    """Return the error that the system raises, of its own class."""
    return OSError(number, os.strerror(number), *([path] if path else []))


FULL = "free space there"
UNFORESEEN = "was not foreseen"
AGAIN = "the same command starts it again"
MEMORY = "the memory is too small"
# (error, exit status, words of the message)
ERRORS: list[tuple[BaseException, int, str]] = [
    # our own
    (UserError("seed is wrong"), WRONG, "seed is wrong"),
    (MachineError("Ray did not start"), GAVE_UP, "Ray did not start"),
    (GaveUp("run gives up"), GAVE_UP, "run gives up"),
    (StoppedRun("run was stopped"), STOPPED, "run was stopped"),
    # signals, and whoever ends the program
    (KeyboardInterrupt(), STOPPED, AGAIN),
    (SystemExit(signal.SIGTERM), STOPPED, AGAIN),
    (SystemExit(1), GAVE_UP, "ended early: 1"),
    (SystemExit(255), GAVE_UP, "ended early: 255"),
    (SystemExit("no such thing"), GAVE_UP, "ended early: no such thing"),
    # the system
    (system(errno.ENOSPC), GAVE_UP, f"/some/file: {os.strerror(errno.ENOSPC)}\n  {FULL}"),
    (system(errno.ENOSPC, None), GAVE_UP, FULL),
    (system(errno.EDQUOT), GAVE_UP, FULL),
    (system(errno.EROFS), WRONG, "/some/file: Read-only file system\n  name a folder that you can write to"),
    (system(errno.EACCES), WRONG, "/some/file: Permission denied\n  name a folder that you can write to"),
    (system(errno.ENAMETOOLONG, "x" * 5000), WRONG, "give a shorter name"),
    (system(errno.ENOENT), WRONG, "/some/file: No such file or directory\n  name another path"),
    (system(errno.ENOENT, None), GAVE_UP, UNFORESEEN),
    (system(errno.EISDIR), WRONG, "name another path"),
    (system(errno.ENOTDIR), WRONG, "name another path"),
    (system(errno.EMFILE), GAVE_UP, "ulimit -n"),
    (system(errno.EIO), GAVE_UP, "look at the storage"),
    (system(errno.ENOMEM), GAVE_UP, MEMORY),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), GAVE_UP, UNFORESEEN),  # of a connection: our output is read
    (ConnectionResetError(errno.ECONNRESET, "reset"), GAVE_UP, UNFORESEEN),
    (TimeoutError(), GAVE_UP, UNFORESEEN),
    (MemoryError(), GAVE_UP, MEMORY),
    (RecursionError("maximum recursion depth exceeded"), GAVE_UP, UNFORESEEN),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), GAVE_UP, UNFORESEEN),
    (UnicodeEncodeError("ascii", "γ", 0, 1, "ordinal not in range"), GAVE_UP, UNFORESEEN),
    (EOFError(), GAVE_UP, UNFORESEEN),
    (ModuleNotFoundError("No module named 'x'"), GAVE_UP, UNFORESEEN),
    (AssertionError(), GAVE_UP, UNFORESEEN),
    (KeyError("model"), GAVE_UP, UNFORESEEN),
    (ValueError("[red]\n  two lines"), GAVE_UP, "ValueError: [red]"),
    (ExceptionGroup("several", [ValueError("a"), OSError("b")]), GAVE_UP, UNFORESEEN),
    (subprocess.CalledProcessError(1, "git"), GAVE_UP, UNFORESEEN),
    # Ray
    (of_a_task(UserError("the shard is bad")), WRONG, "error: the shard is bad"),
    (of_a_task(KeyError("row")), GAVE_UP, UNFORESEEN),
    (of_a_task(system(errno.ENOSPC)), GAVE_UP, FULL),
    (ray.exceptions.ActorDiedError(), GAVE_UP, UNFORESEEN),
    (ray.exceptions.NodeDiedError("node 7 is gone"), GAVE_UP, "NodeDiedError: node 7 is gone"),
    (ray.exceptions.OutOfMemoryError("out of memory"), GAVE_UP, MEMORY),
    (ray.exceptions.GetTimeoutError("timed out"), GAVE_UP, UNFORESEEN),
    (ray.exceptions.RaySystemError("no"), GAVE_UP, UNFORESEEN),
    (ray.exceptions.RuntimeEnvSetupError("no"), GAVE_UP, UNFORESEEN),
    (WorkerGroupError("a worker failed", {0: UserError("the task is wrong")}), WRONG, "the task is wrong"),
    (ControllerError(ValueError("no")), GAVE_UP, UNFORESEEN),
    (TuneError("trials failed"), GAVE_UP, UNFORESEEN),
    # MLflow, PyArrow, torch and DeepSpeed (which raises errors of Python and torch), safetensors, SQLite, …
    (mlflow.exceptions.MlflowException("refused"), GAVE_UP, "MlflowException: refused"),
    (mlflow.exceptions.RestException({"error_code": "INTERNAL_ERROR", "message": "no"}), GAVE_UP, UNFORESEEN),
    (requests.exceptions.ConnectionError("refused"), GAVE_UP, UNFORESEEN),
    (pyarrow.ArrowInvalid("not a Parquet file"), GAVE_UP, "ArrowInvalid: not a Parquet file"),
    (pyarrow.ArrowMemoryError("malloc failed"), GAVE_UP, MEMORY),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), GAVE_UP, MEMORY),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), GAVE_UP, MEMORY),
    (torch.distributed.DistBackendError("NCCL error"), GAVE_UP, UNFORESEEN),
    (RuntimeError("zero_optimization: stage 4"), GAVE_UP, UNFORESEEN),
    (SafetensorError("Error while deserializing header: HeaderTooLarge"), GAVE_UP, UNFORESEEN),
    (SafetensorError("I/O error: No space left on device (os error 28)"), GAVE_UP, FULL),
    (sqlite3.OperationalError("database or disk is full"), GAVE_UP, FULL),
    (yaml.YAMLError("no"), GAVE_UP, UNFORESEEN),
    (omegaconf.errors.ConfigKeyError("no"), GAVE_UP, UNFORESEEN),
]


COMMAND = typer.main.get_command(app)


@pytest.fixture(scope="module")
def composed() -> Composed:
    return Composed(load_experiment("smoke"), {})


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield every verb of the program, such as `runs show`."""
    if not hasattr(command, "commands"):
        yield " ".join(words)
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*words, name))


def test_every_verb_is_in_the_table() -> None:
    verbs = list(commands(COMMAND))
    assert len(verbs) > 30
    assert [verb for verb in verbs if not any(f"{line} ".startswith(f"{verb} ") for line in VERBS)] == []


@pytest.mark.parametrize("line", VERBS)
def test_every_error_has_a_documented_status_and_one_message(
    line: str, run: Run, own_folder: Path, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "compose_experiment", lambda *_: composed)
    monkeypatch.setattr(typer.main, "get_command", lambda _: COMMAND)  # Typer takes most of the time to make it
    place = VERBS[line]
    outside = place.startswith(("causalfusion.", "rich."))
    raised: list[BaseException] = []

    def fail(*_: object, **__: object) -> None:
        raise raised[-1]

    monkeypatch.setattr(place if outside else f"causalfusion_platform.{place}", fail)
    for error, status, words in ERRORS:
        raised.append(error)
        result = run(*line.split())
        shown = (line, error, result)
        assert result.status == status, shown
        assert result.status in STATUSES
        assert words in result.err, shown
        assert "Traceback" not in result.err, shown
        assert len(result.err) < 1500, shown
        headed = status != STOPPED and not isinstance(error, GaveUp)
        assert re.findall(r"^error: ", result.err, re.MULTILINE) == ["error: "] * headed, shown
        if UNFORESEEN in result.err:
            (named,) = re.findall(r"its traceback is in (\S+)", result.err)
            file = Path(named)
            assert file.parent == own_folder
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert type(error).__name__ in file.read_text()
            file.unlink()
    assert list(own_folder.glob("causalfusion-error-*")) == []


def test_a_traceback_is_written_where_it_can_be(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In CAUSALFUSION_HOME, else among temporary files, else on the screen."""
    home, temporary = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def fail() -> None:
        raise KeyError("missing")

    monkeypatch.setattr("causalfusion_platform.config.files.experiment_files", fail)
    for there, expected in ((home, home), (home / "gone", temporary)):
        monkeypatch.setenv("CAUSALFUSION_HOME", str(there))
        result = run("config", "list")
        assert result.status == GAVE_UP
        (file,) = expected.iterdir()
        assert str(file) in result.err
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "gone"))
    result = run("config", "list")
    assert result.status == GAVE_UP
    assert "KeyError: 'missing'\n  this fault was not foreseen; its traceback is above" in result.err
    assert result.err.startswith("Traceback")


# Output that nobody reads, and signals, in processes of their own

# Background jobs of a shell ignore Ctrl-C, and so do their children.
CODE = """
import signal, sys, time
from causalfusion_platform.cli.ending import run_to_end

signal.signal(signal.SIGINT, signal.default_int_handler)

def command():
    print("waiting", flush=sys.argv[1] == "wait")
    if sys.argv[1] == "wait":
        time.sleep(600)

run_to_end(command)
"""


def started(mode: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, mode], text=True, env=run_environment(), stderr=subprocess.PIPE, **options
    )


def test_output_that_cannot_be_written() -> None:
    """Python itself would end with status 120."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe, Path("/dev/full").open("w") as full:
        ends = [started("print", stdout=output) for output in (pipe, full)]
        said = [process.communicate(timeout=600)[1] for process in ends]
    assert said == ["", f"error: {os.strerror(errno.ENOSPC)}\n  {FULL}, then give the same command\n"]
    assert [process.returncode for process in ends] == [STOPPED, GAVE_UP]


def test_signals_stop_a_command() -> None:
    ends = [started("wait", stdout=subprocess.PIPE) for _ in range(2)]
    for process, number in zip(ends, (signal.SIGTERM, signal.SIGINT), strict=True):
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
    said = [process.communicate(timeout=600)[1] for process in ends]
    assert said == [f"stopped by {name}\n  {AGAIN}\n" for name in ("SIGTERM", "Ctrl-C")]
    assert [process.returncode for process in ends] == [STOPPED, STOPPED]


# Statuses that verbs choose


def test_what_commands_say_of_their_status_is_documented(run: Run, repository: Path) -> None:
    """The guide lists every status, and help texts name no other one."""
    guide = (repository / "platform/TRAINING.md").read_text()
    table = guide[guide.index("## Exit status") :]
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(STATUSES)
    for verb in commands(COMMAND):
        said = " ".join(run(*verb.split(), "--help").out.split())
        assert {int(number) for number in re.findall(r"status (?:is )?(\d+)", said, re.IGNORECASE)} <= {*STATUSES}
