"""Clusters by name and by address."""

from __future__ import annotations

from pathlib import Path

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.head import DEFAULT_ADDRESS
from causalfusion_platform.launch.cluster.named import find_cluster, find_clusters

FILE = """
lab: {address: "http://10.0.0.1:8265/", token_path: ~/.ray/lab_token}
aws: {address: "https://ray.example.org"}
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "clusters.yaml").write_text(FILE)
    return {"CAUSALFUSION_CLUSTERS": str(tmp_path / "clusters.yaml"), "RAY_AUTH_TOKEN": "one-for-all"}


def test_a_name_stands_for_its_address_and_token(environ: dict[str, str]) -> None:
    lab, aws = find_cluster("lab", environ), find_cluster("aws", environ)
    assert (lab.name, lab.address) == ("lab", "http://10.0.0.1:8265")
    assert lab.environ["RAY_AUTH_TOKEN_PATH"] == str(Path.home() / ".ray/lab_token")
    assert "RAY_AUTH_TOKEN" not in lab.environ
    assert aws.environ["RAY_AUTH_TOKEN"] == "one-for-all"
    assert "one-for-all" not in repr(aws)


def test_an_address_is_its_own_name(environ: dict[str, str]) -> None:
    assert find_cluster("http://b:1", environ).name == "http://b:1"
    assert find_cluster(None, environ).address == DEFAULT_ADDRESS
    for wrong, says in (("nosuch", "names there: lab, aws"), ("10.0.0.1:8265", "not the URL")):
        with pytest.raises(UserError, match=says):
            find_cluster(wrong, environ)


def test_several_clusters(environ: dict[str, str]) -> None:
    def names(options: list[str], **more: str) -> list[str]:
        return [cluster.name for cluster in find_clusters(options, environ | more)]

    assert names([]) == ["lab", "aws"]
    assert names(["aws", "http://b:1", "aws"]) == ["aws", "http://b:1"]
    assert names([], RAY_API_SERVER_ADDRESS="http://c:1") == ["http://c:1"]


def test_no_file_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [cluster.name for cluster in find_clusters([], {})] == [DEFAULT_ADDRESS]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lab: {address: 'http://a:1', token: geheim}", "lab.token"),
        ("lab: {address: 'http://me:geheim@a:1'}", "lab.address"),
        ("lab: {address: 'ray://a:1'}", "lab.address"),
        ("lab: http://a:1", "lab"),
        ("[1]", "not a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_without_its_secrets(environ: dict[str, str], text: str, says: str) -> None:
    Path(environ["CAUSALFUSION_CLUSTERS"]).write_text(text)
    with pytest.raises(UserError, match=says) as refusal:
        find_clusters([], environ)
    assert "geheim" not in str(refusal.value)
    assert environ["CAUSALFUSION_CLUSTERS"] in str(refusal.value)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_clusters([], {"CAUSALFUSION_CLUSTERS": str(tmp_path / "none.yaml")})
