"""The command line: what users get wrong is one readable message, and status 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from tests.platform.cli.conftest import Result, Run, check_refusal
from tests.platform.config.trees import load_experiment, write_yaml

from causalfusion_platform.config.files import experiment_names

# Wrong experiments and keys


def test_a_wrong_command_ends_its_process_with_status_2(own_folder: Path) -> None:
    """The installed command, from its own process: the only one here."""
    command = [sys.executable, "-m", "causalfusion_platform", "config", "show", "quikstart"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=own_folder)
    check_refusal(Result(done.returncode, done.stdout, done.stderr), "did you mean 'quickstart'?")


@pytest.mark.parametrize("verb", [["config", "show"], ["train"], ["sweep"]])
def test_an_unknown_experiment(run: Run, own_folder: Path, verb: list[str]) -> None:
    check_refusal(run(*verb, "quikstart"), "no experiment 'quikstart'; did you mean 'quickstart'?")
    assert not list(own_folder.iterdir())


@pytest.mark.parametrize("verb", [["config", "show", "quickstart"], ["train", "quickstart"], ["quickstart"]])
def test_wrong_keys(run: Run, own_folder: Path, verb: list[str]) -> None:
    result = run(*verb, "train.imags=3", "seed=-1")
    check_refusal(result, "train.imags: unknown key; did you mean 'train.images'?", "seed: ", "(got -1)")
    check_refusal(run(*verb, "images"), "override 'images' is not of the form key=value")
    assert not list(own_folder.iterdir())


def test_long_messages_are_not_broken_into_lines(run: Run) -> None:
    """So that paths and commands in them can be copied, and found with grep."""
    lines = run("config", "show", "quickstart", "train.imags=3").err.splitlines()
    assert max(map(len, lines)) > 200


def test_brackets_in_values_are_shown(run: Run) -> None:
    check_refusal(run("config", "show", "quickstart", "[red]seed[/red]"), "'[red]seed[/red]'")


def test_local_is_one_process(run: Run, own_folder: Path) -> None:
    """Refused before anything is written; `train` has said by then what machine this is."""
    result = run("quickstart", "--local")
    assert result.status == 2
    assert result.err.startswith("error: --local is one process, but train.num_workers=2")
    assert "add train.num_workers=1" in result.err
    assert not list(own_folder.iterdir())


def test_a_missing_data_set(run: Run, own_folder: Path) -> None:
    result = run("train", "quickstart", "train.num_workers=1", "--local", "runs=[red] runs[/]")
    assert result.status == 2
    assert "run quickstart → [red] runs[/]/quickstart\n" in result.out
    assert f"{own_folder / 'shards/digits'} is not a folder of latent shards: it does not exist" in result.err
    assert f"causalfusion data digits {own_folder / 'shards/digits'}" in result.err
    assert not (own_folder / "[red] runs[/]/quickstart").exists()


def test_unknown_commands_and_options(run: Run) -> None:
    for arguments in (["trian"], ["config", "show"], ["ui", "--prt", "1"], ["ui", "--port", "many"]):
        result = run(*arguments)
        assert result.status == 2
        assert result.err.startswith("Usage: ")
        assert "Traceback" not in result.err


# Looking at configurations


def test_config_show_is_yaml_of_the_experiment(run: Run) -> None:
    result = run("config", "show", "quickstart", "model=tiny", "train.images=256")
    assert (result.status, result.err) == (0, "")
    expected = load_experiment("quickstart", ["model=tiny", "train.images=256"])
    assert yaml.safe_load(result.out) == expected.model_dump(mode="json")


def test_config_show_can_be_edited_and_run(run: Run, own_folder: Path) -> None:
    (own_folder / "experiments").mkdir()
    (own_folder / "experiments/mine.yaml").write_text(run("config", "show", "sweeps/gamma").out)
    assert load_experiment("mine") == load_experiment("sweeps/gamma")


def test_config_schema_is_a_json_schema(run: Run) -> None:
    result = run("config", "schema")
    schema = json.loads(result.out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["seed"]["description"] == "Seed of every random draw."
    assert "γ in [0, 1]" in result.out


def test_config_list(run: Run, own_folder: Path) -> None:
    assert run("config", "list", "--names").out.split() == experiment_names()
    lines = run("config", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == experiment_names()
    assert any(line.split(maxsplit=1)[1].startswith("AR-step decay γ on digits") for line in lines)
    write_yaml(own_folder / "experiments/tries/mine.yaml", "name: mine\ndescription: what I try\n")
    mine = run("config", "list").out.splitlines()
    assert mine[0] == f"yours, in {own_folder / 'experiments'}:"
    assert mine[1].split(maxsplit=1) == ["tries/mine", "what I try"]
    assert mine[2] == "shipped:"
    assert len(mine) == len(lines) + 3


def test_config_explain(run: Run, own_folder: Path) -> None:
    write_yaml(own_folder / "mine.yaml", "defaults: [smoke, _self_]\nname: mine\ntrain: {images: 640}\n")
    lines = run("config", "explain", "train.images", "--experiment", "./mine.yaml").out.splitlines()
    assert lines == [
        "train.images",
        "Length of training, in images seen.",
        "",
        "  allowed  whole number, ≥ 1",
        "  default  102400",
        "  value    640 in ./mine.yaml, from mine.yaml",
    ]
    changed = run("config", "explain", "train.images", "train.images=1e3").out.splitlines()
    assert changed[-1] == "  value    1000 in quickstart, from override train.images=1e3"
    section = run("config", "explain", "tracking").out
    assert "tracking.experiment" in section
    assert "MLflow experiment\n" in section
    check_refusal(run("config", "explain", "train.imags"), "did you mean 'train.images'?")


def test_an_experiment_is_a_file(run: Run, own_folder: Path) -> None:
    write_yaml(own_folder / "my tries/mine.yaml", "defaults: [sweeps/gamma, _self_]\nname: mine\n")
    for verb in (["config", "show"], ["train", "--dry-run"], ["sweep", "--dry-run"]):
        assert run(*verb, "./my tries/mine.yaml").status == 0


def test_training_a_file_with_a_sweep_says_so(run: Run, own_folder: Path) -> None:
    out = run("train", "sweeps/gamma", "--dry-run", "description=γ sweep").out
    assert out.startswith("sweeps/gamma has a sweep section: train makes one run of it")
    assert "causalfusion sweep sweeps/gamma 'description=γ sweep'\n" in out
    assert "sweep section" not in run("train", "quickstart", "--dry-run").out


def test_the_shell_completes_experiments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CAUSALFUSION_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "causalfusion train sweeps/")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run().out.split() == ["sweeps/gamma"]


def test_the_version(run: Run) -> None:
    lines = dict(line.split() for line in run("--version").out.splitlines())
    assert lines["causalfusion-platform"] == version("causalfusion-platform")
    assert {"python", "torch", "ray", "deepspeed", "mlflow"} < set(lines)


@pytest.mark.parametrize("group", [[], ["config"], ["data"], ["runs"], ["weights"]])
def test_help_is_not_cut(run: Run, monkeypatch: pytest.MonkeyPatch, group: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run(*group, "--help").out
    assert "..." not in out.partition("Commands:")[2]
    assert max(map(len, out.splitlines())) <= 80


# Data


def test_digits_are_written_and_verified(run: Run, own_folder: Path) -> None:
    written = run("data", "digits", "new/digits")
    assert written.status == 0
    assert "1797 latents of 1×8×8 in 4 shards, 10 classes" in written.out
    verified = run("data", "verify", "new/digits")
    assert (verified.status, verified.err) == (0, "")
    assert "4 shards and 1797 rows" in verified.out
    before = {path.name: path.read_bytes() for path in (own_folder / "new/digits").iterdir()}
    assert run("data", "digits", "new/digits").out == written.out
    assert {path.name: path.read_bytes() for path in (own_folder / "new/digits").iterdir()} == before


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"_manifest.json": '{"name": "a web application"}'},
        {"results.parquet": "PAR1 mine PAR1"},
        {"inner/notes.txt": "mine"},
        {".hidden": "mine"},
    ],
)
def test_a_folder_of_something_else_is_left_alone(run: Run, own_folder: Path, files: dict[str, str]) -> None:
    folder = own_folder / "mine"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    check_refusal(run("data", "digits", "mine"), "mine exists and is not a folder of shards", "shards/digits")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == files


def test_a_file_in_place_of_the_folder_is_left_alone(run: Run, own_folder: Path) -> None:
    (own_folder / "mine").write_text("mine")
    check_refusal(run("data", "digits", "mine"), "mine exists and is not a folder of shards")
    assert (own_folder / "mine").read_text() == "mine"


def test_an_empty_or_interrupted_folder_is_filled(run: Run, own_folder: Path, digits_folder: Path) -> None:
    (own_folder / "empty").mkdir()
    assert run("data", "digits", "empty").status == 0
    shutil.copytree(digits_folder, own_folder / "interrupted")
    (own_folder / "interrupted/_manifest.json").unlink()
    assert run("data", "digits", "interrupted").status == 0
    assert run("data", "verify", "interrupted").status == 0
    (own_folder / "begun").mkdir()
    (own_folder / "begun/.shard-00000-of-00004.parquet.4321").write_text("the first shard, not finished")
    assert run("data", "digits", "begun").status == 0
    assert run("data", "verify", "begun").status == 0


def test_a_damaged_folder_is_made_anew(run: Run, own_folder: Path, digits_folder: Path) -> None:
    """What `data verify` advises works."""
    for name in ("no manifest to speak of", "no shards"):
        folder = Path(shutil.copytree(digits_folder, own_folder / name))
        if name == "no shards":
            for shard in folder.glob("*.parquet"):
                shard.unlink()
        else:
            (folder / "_manifest.json").write_text('{"version": ')
        result = run("data", "verify", str(folder))
        assert result.status > 0
        assert f"causalfusion data digits '{folder}'" in result.out + result.err
        assert run("data", "digits", str(folder)).status == 0
        assert run("data", "verify", str(folder)).status == 0


# The dashboard


def test_a_dashboard_without_runs(run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_refusal(run("ui"), f"there is no mlflow.db in {own_folder / 'runs'}", "causalfusion quickstart")
    check_refusal(run("ui", "--runs", "elsewhere"), str(own_folder / "elsewhere"))
    monkeypatch.setenv("CAUSALFUSION_HOME", "/far/away")
    check_refusal(run("ui"), "/far/away/runs")


def test_a_dashboard_on_a_port_in_use(run: Run, own_folder: Path) -> None:
    import socket

    (own_folder / "runs").mkdir()
    (own_folder / "runs/mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        check_refusal(run("ui", "--port", str(port)), f"port {port} is in use", f"--port {port + 1}")


def test_a_dashboard_on_no_port(run: Run, own_folder: Path) -> None:
    (own_folder / "runs").mkdir()
    (own_folder / "runs/mlflow.db").touch()
    assert run("ui", "--port", "70000").status == 2
