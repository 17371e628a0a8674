"""The image that nodes run: its Dockerfile agrees with the pinned versions and with the cluster files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from causalfusion_platform.config.files import HOME_VARIABLE
from causalfusion_platform.deploy.cluster_file import ClusterFile
from causalfusion_platform.deploy.kuberay.pods import pod_security
from causalfusion_platform.launch.cluster.head import CLUSTER_HOME

REPOSITORY = Path(__file__).resolve().parents[3]
CLUSTER = REPOSITORY / "cluster"


def pinned(package: str) -> str:
    """Return the version of a package in constraints.txt."""
    pattern = rf"^{package}(?:\[[^]]*])?==(\S+)"
    match = re.search(pattern, (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert match, f"{package} is not pinned in constraints.txt"
    return match[1]


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line[0], line[1]) for line in lines]


def copied() -> set[str]:
    """Return what the Dockerfile copies from the repository."""
    sources: set[str] = set()
    for name, arguments in instructions():
        if name in ("COPY", "ADD"):
            words = [word for word in arguments.split() if not word.startswith("--")]
            sources.update(words[:-1])
    return sources


def test_one_ray_version_everywhere() -> None:
    version = pinned("ray")
    assert ClusterFile.model_fields["ray_version"].default == version
    assert instructions()[:2] == [("ARG", f"BASE=rayproject/ray:{version}-py311-cpu"), ("FROM", "${BASE}")]
    assert re.fullmatch(r"[0-9.]+", pinned("torch")), "a torch with a local version such as +cpu has no CUDA"


def test_the_image_has_the_project_s_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for name in ("Dockerfile", "README.md", "kubernetes.yaml"):
        tags = set(re.findall(r"\S+/causalfusion:([0-9.]+)", (CLUSTER / name).read_text()))
        assert tags == {project["version"]}, name


def test_the_image_is_built_from_what_is_here() -> None:
    sources = copied()
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
    tree = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = tree["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        "constraints.txt",
        tree["project"]["readme"],
        *tree["project"]["license-files"],
    }
    needed |= {path.split("/")[0] for path in (*wheel["packages"], *wheel["force-include"])}
    assert needed <= sources


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied()


def test_the_image_is_pinned_and_ends_as_an_ordinary_user() -> None:
    names = [name for name, _ in instructions()]
    assert names.count("FROM") == 1
    users = [arguments for name, arguments in instructions() if name == "USER"]
    last = users[-1]
    assert last.isdigit(), "Kubernetes cannot check a name against runAsNonRoot"
    assert int(last) == pod_security()["runAsUser"] > 0
    installs = [arguments for name, arguments in instructions() if name == "RUN" and "pip install" in arguments]
    assert installs
    assert all("-c constraints.txt" in text or "--no-deps" in text for text in installs)
    root = names.index("USER")
    assert not any(name == "COPY" for name in names[:root])


def test_the_image_holds_no_secret() -> None:
    for name, arguments in instructions():
        if name in ("ENV", "ARG"):
            assert not re.search("TOKEN|SECRET|PASSWORD|KEY", arguments)
    environment = " ".join(arguments for name, arguments in instructions() if name == "ENV")
    assert f"{HOME_VARIABLE}={CLUSTER_HOME}" in environment


def test_the_guide_names_files_that_are_there() -> None:
    text = (CLUSTER / "README.md").read_text()
    paths = set(re.findall(r"(?<![\w/])cluster/[\w./-]+", text))
    assert {"cluster/Dockerfile", "cluster/kubernetes.yaml", "cluster/rendered/kuberay/fetch.yaml"} <= paths
    for path in paths:
        assert (REPOSITORY / path.rstrip(".")).exists(), path
