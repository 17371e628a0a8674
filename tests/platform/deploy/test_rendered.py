"""Rendered files of Slurm and of Ray's launcher: the same bytes each time, right, and each mutant is found."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.deploy.clusters import COMMAND, cluster, tree, workload, write

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.deploy.check import check
from causalfusion_platform.deploy.cluster_file import ClusterFile
from causalfusion_platform.deploy.hand_over import apply_commands, changes, delete_commands, write_files
from causalfusion_platform.deploy.launcher.rules import check_launcher
from causalfusion_platform.deploy.read import read_cluster_file
from causalfusion_platform.deploy.render import render
from causalfusion_platform.deploy.slurm.rules import check_script

GPU = {"cpus": 16, "memory_gib": 128, "gpu": {"kind": "h100", "count": 8}, "max_nodes": 4, "spot": True}
CLUSTERS: dict[str, ClusterFile] = {
    "slurm": cluster(queue="main", slurm={"account": "physics", "setup": ["module load cuda"]}),
    "slurm-gpu": cluster(groups={"gpu": GPU}, mlflow={"kind": "uri", "uri": "https://mlflow.example.org"}),
    "slurm-pyxis": cluster(slurm={"container": "pyxis"}),
    "slurm-apptainer": cluster(slurm={"container": "apptainer"}),
    "aws": cluster("ray"),
    "aws-gpu": cluster("ray", groups={"gpu": GPU}),
    "gcp": cluster(
        "ray",
        launcher={
            "provider": "gcp",
            "region": "us-west1",
            "zone": "us-west1-a",
            "project": "lab",
            "instances": {"head": "n2-standard-2", "cpu": "n2-standard-4"},
        },
    ),
    "local": cluster("ray", launcher={"provider": "local", "head_host": "10.0.0.1", "worker_hosts": ["10.0.0.2"]}),
}


def command(name: str) -> tuple[str, ...]:
    return (*COMMAND, "train.gpus_per_worker=1") if name.endswith("gpu") else COMMAND


def rendered(name: str) -> dict[str, str]:
    file = CLUSTERS[name]
    return render(file, workload(file, *command(name)))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_same_arguments_give_the_same_bytes_without_a_fault(name: str) -> None:
    file = CLUSTERS[name]
    files = rendered(name)
    assert files == rendered(name)
    assert check(file, workload(file, *command(name)), files).faults == ()


@pytest.mark.parametrize("name", ["slurm", "aws", "hosts"])
def test_the_rendered_files_of_the_repository_are_those_of_its_cluster_files(
    name: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    file = read_cluster_file(name)
    arguments = (*COMMAND, "train.num_workers=2", "train.cpus_per_worker=2", "train.gpus_per_worker=1")
    command_line = workload(file, *arguments)
    files = render(file, command_line)
    folder = repository / "cluster" / "rendered" / name
    assert files == {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert check(file, command_line, files).faults == ()


@pytest.mark.parametrize("name", [name for name in CLUSTERS if name.startswith("slurm")])
def test_a_script_parses_and_asks_for_what_the_command_takes(name: str) -> None:
    [text] = rendered(name).values()
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in text.splitlines()
        if "=" in line and line.startswith("#SBATCH")
    )
    assert options["job-name"] == "ada-first"
    assert options["nodes"] == "1"
    assert options.get("gres") == ("gpu:h100:8" if name.endswith("gpu") else None)
    assert int(options["time"]) == 1440


def test_the_ports_of_jobs_in_a_row_do_not_meet() -> None:
    [text] = rendered("slurm").values()
    formula = re.search(r"base=\$\(\((.*)\)\)", text)
    assert formula is not None
    bases = [eval(formula[1].replace("SLURM_JOB_ID", str(job))) for job in range(1000, 1220)]
    assert len(set(bases)) == 220
    offsets = [int(found) for found in re.findall(r"\$\(\(base \+ (\d+)\)\)", text)]
    used = {base + offset for base in bases for offset in offsets}
    assert len(used) == len(bases) * len(set(offsets))
    assert 1024 < min(used) <= max(used) + 100 < 32_768  # from where systems give ports to clients


Mutant = Callable[[str], str]

SCRIPT_MUTANTS: dict[str, Mutant] = {
    "syntax": lambda text: text.replace("esac", ""),
    "no signal": lambda text: re.sub(r"#SBATCH --signal.*\n", "", text),
    "signal to the steps": lambda text: text.replace("--signal=B:USR1", "--signal=USR1"),
    "kill in place of term": lambda text: text.replace("--signal=B:USR1", "--signal=B:KILL"),
    "no requeue": lambda text: text.replace("#SBATCH --requeue\n", ""),
    "no time": lambda text: re.sub(r"#SBATCH --time.*\n", "", text),
    "no memory": lambda text: re.sub(r"#SBATCH --mem.*\n", "", text),
    "two Rays on a node": lambda text: text.replace("--ntasks-per-node=1", "--ntasks-per-node=2"),
    "ray stop": lambda text: text + "ray stop\n",
    "symmetric-run": lambda text: text + "ray symmetric-run --address x -- y\n",
    "no token": lambda text: text.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
    "token written out": lambda text: text.replace(
        "export RAY_USAGE", "export RAY_AUTH_TOKEN=0123456789abcdef\nexport RAY_USAGE"
    ),
    "password written out": lambda text: text + "export MLFLOW_TRACKING_PASSWORD=hunter22\n",
    "password in an address": lambda text: text + "curl https://ada:hunter22@mlflow.example.org\n",
    "mode of files": lambda text: text.replace("umask 077\n", ""),
    "fixed ports": lambda text: text.replace("SLURM_JOB_ID", "JOB"),
    "dashboard for all": lambda text: text.replace("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
    "another ray start": lambda text: text + "ray start --head\n",
}


@pytest.mark.parametrize("name", SCRIPT_MUTANTS)
def test_a_mutant_of_a_script_is_found(name: str) -> None:
    [(file, text)] = rendered("slurm").items()
    mutant = SCRIPT_MUTANTS[name](text)
    assert mutant != text
    faults = list(check_script(file, mutant))
    assert faults
    assert not any("hunter22" in fault or "0123456789abcdef" in fault for fault in faults)


Change = Callable[[dict[str, Any]], Any]

LAUNCHER_MUTANTS: dict[str, Change] = {
    "misspelt key": lambda t: t.update(max_worker=3),
    "type": lambda t: t.update(max_workers="many"),
    "no provider": lambda t: t.pop("provider"),
    "image by tag": lambda t: t["docker"].update(image="causalfusion:0.1.0"),
    "no container": lambda t: t.pop("docker"),
    "privileged": lambda t: t["docker"]["run_options"].append("--privileged"),
    "capability": lambda t: t["docker"]["run_options"].append("--cap-add=SYS_ADMIN"),
    "Ray's own start": lambda t: t.pop("head_start_ray_commands"),
    "no token": lambda t: t.update(worker_start_ray_commands=["ray start --address=$RAY_HEAD_IP:6379"]),
    "ray stop": lambda t: t["head_start_ray_commands"].insert(0, "ray stop"),
    "dashboard for all": lambda t: t.update(
        head_start_ray_commands=["RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"]
    ),
    "head of no kind": lambda t: t.update(head_node_type="master"),
    "more at least than at most": lambda t: t["available_node_types"]["cpu"].update(min_workers=9),
    "token written out": lambda t: t["docker"]["run_options"].append("--env=RAY_AUTH_TOKEN=0123456789abcdef"),
    "password written out": lambda t: t["docker"]["run_options"].append("--env=MLFLOW_TRACKING_PASSWORD=hunter22"),
    "key of AWS": lambda t: t["setup_commands"].append("export AWS_SECRET_ACCESS_KEY=hunter22"),
}


@pytest.mark.parametrize("name", LAUNCHER_MUTANTS)
def test_a_mutant_of_a_launcher_file_is_found(name: str) -> None:
    [(file, text)] = rendered("aws").items()
    contents = yaml.safe_load(text)
    LAUNCHER_MUTANTS[name](contents)
    faults = list(check_launcher(file, yaml.safe_dump(contents)))
    assert faults
    assert not any("hunter22" in fault for fault in faults)


def test_versions_of_ray_that_differ_are_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = cluster(ray_version="2.55.0")
    [fault] = check(file, workload(file), render(file, workload(file))).faults
    assert fault.startswith("ray_version: the image has Ray 2.55.0")
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "Dockerfile").write_text("FROM rayproject/ray:2.54.0-py311-cpu\n")
    assert any("its base has Ray 2.54.0" in fault for fault in check(cluster(), workload(cluster()), {}).faults)


def test_folders_that_nodes_do_not_share_are_found() -> None:
    file = cluster()
    arguments = (*COMMAND, "runs=/scratch/runs")
    faults = check(file, workload(file, *arguments), {}).faults
    assert any(fault.startswith("runs=/scratch/runs is outside /mnt/causalfusion") for fault in faults)


def test_a_group_without_a_type_of_machine_is_named() -> None:
    file = cluster("ray", launcher={"provider": "aws", "region": "us-east-1", "instances": {"head": "m7i.large"}})
    with pytest.raises(UserError, match="no type of machine for 'cpu'"):
        render(file, workload(file))


def test_files_are_compared_with_those_applied_last(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALFUSION_HOME", str(tmp_path))
    files = {"job.sbatch": "a\nb\n"}
    assert "+a" in changes("ada-first", files)
    write_files("ada-first", files)
    assert changes("ada-first", files) == ""
    assert "-b\n+c" in changes("ada-first", {"job.sbatch": "a\nc\n"})
    assert "-a" in changes("ada-first", {})


def test_what_is_handed_over_names_the_job_alone() -> None:
    for name, file in CLUSTERS.items():
        files = rendered(name)
        assert apply_commands(file, "ada-first", files)
        [argv] = delete_commands(file, "ada-first")
        assert "ada-first" in " ".join(argv)


def test_the_command_line_sends_nothing_unasked(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from causalfusion_platform.cli.cluster import cluster_app

    sent: list[Any] = []
    monkeypatch.setattr("causalfusion_platform.deploy.hand_over.run_commands", sent.append)
    monkeypatch.setenv("CAUSALFUSION_HOME", str(tmp_path))
    path = write(tmp_path, tree())
    ended = CliRunner().invoke(cluster_app, ["apply", path, "--", *COMMAND])
    assert isinstance(ended.exception, UserError)
    assert "sbatch" in ended.output
    assert sent == []
    ended = CliRunner().invoke(cluster_app, ["apply", path, "--yes", "--", *COMMAND])
    assert ended.exit_code == 0, ended.output
    assert [argv[0] for argv in sent[0]] == ["mkdir", "sbatch"]
