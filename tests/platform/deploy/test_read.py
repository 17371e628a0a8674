"""Wrong cluster files: each fault is named with its place, and no secret is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.platform.deploy.clusters import tree, write

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.deploy.read import read_cluster_file

Change = Callable[[dict[str, Any]], Any]

FAULTS: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda t: t.update(gpus=8), "gpus: unknown key"),
    "unknown key below": (lambda t: t["groups"]["cpu"].update(gpu_count=8), "groups.cpu.gpu_count: unknown key"),
    "missing": (lambda t: t["groups"]["cpu"].pop("cpus"), "groups.cpu.cpus: is missing"),
    "no groups": (lambda t: t.update(groups={}), "groups: "),
    "range": (lambda t: t["groups"]["cpu"].update(min_nodes=9), "min_nodes 9 exceeds max_nodes 4"),
    "owner": (lambda t: t.update(owner="Ada L"), "owner: 'Ada L' is not a DNS label"),
    "long owner": (lambda t: t.update(owner="a" * 48), "at most 47 characters"),
    "tag": (lambda t: t.update(image="causalfusion:0.1.0"), "does not name an image by digest"),
    "target": (lambda t: t.update(target="docker"), "target: "),
    "claim off Kubernetes": (lambda t: t.update(storage={"kind": "pvc"}), "a volume claim is Kubernetes'"),
    "no image": (lambda t: t.update(image="", slurm={"container": "pyxis"}), "target slurm needs an image"),
    "deployed MLflow": (
        lambda t: t.update(mlflow={"kind": "deploy", "postgres_image": "postgres@sha256:" + "b" * 64}),
        "target slurm deploys no MLflow",
    ),
    "home": (lambda t: t.update(home="relative"), "home: "),
    "password": (lambda t: t.update(password="hunter22"), "password: a secret in the file"),
    "token": (
        lambda t: t["groups"]["cpu"]["labels"].update(ray_token="hunter22"),
        "ray_token: a secret in the file",
    ),
    "password in an address": (
        lambda t: t.update(mlflow={"kind": "uri", "uri": "https://ada:hunter22@mlflow.example.org"}),
        "mlflow.uri: a user or password in an address",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    change, said = FAULTS[name]
    contents = tree()
    contents["groups"]["cpu"]["labels"] = {}
    change(contents)
    with pytest.raises(UserError) as caught:
        read_cluster_file(write(tmp_path, contents))
    assert said in str(caught.value)
    assert "hunter22" not in str(caught.value)
    assert "causalfusion cluster schema" in str(caught.value)


def test_a_right_file_is_read(tmp_path: Path) -> None:
    assert read_cluster_file(write(tmp_path, tree())).owner == "ada"


@pytest.mark.parametrize("contents", ["- a", "a: [", "", "\x00"])
def test_other_files_are_refused(contents: str, tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(contents, encoding="utf-8")
    with pytest.raises(UserError, match=r"lab\.yaml"):
        read_cluster_file(str(path))


def test_a_missing_name_lists_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster").mkdir()
    write(tmp_path / "cluster", tree())
    assert read_cluster_file("lab").owner == "ada"
    with pytest.raises(UserError, match="files of cluster/ here: lab"):
        read_cluster_file("lob")
