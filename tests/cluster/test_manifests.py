"""The files of cluster/ agree with each other, with the pinned versions, and with what the project runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.config.trees import load_experiment

from causalfusion_platform.config.files import HOME_VARIABLE
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster.submit import CLUSTER_HOME

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"

# What KubeRay 1.5 and 1.6 know where a misspelt key would otherwise go unseen.
RAYJOB_KEYS = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
RAYCLUSTER_KEYS = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "rayVersion",
    "suspend",
    "workerGroupSpecs",
}
HEAD_KEYS = {
    "enableIngress",
    "headService",
    "rayStartParams",
    "serviceType",
    "template",
}
WORKER_KEYS = {
    "groupName",
    "idleTimeoutSeconds",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "rayStartParams",
    "replicas",
    "scaleStrategy",
    "suspend",
    "template",
}

Tree = dict[str, Any]


def load(name: str) -> Tree:
    """Return the only document of a manifest."""
    (document,) = yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def job() -> Tree:
    return load("rayjob.yaml")


def pods(job: Tree) -> dict[str, Tree]:
    """Return the pod specs of a RayJob by role."""
    spec = job["spec"]
    workers = {
        group["groupName"]: group["template"]["spec"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]
    }
    return {
        "head": spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"],
        "submitter": spec["submitterPodTemplate"]["spec"],
        **workers,
    }


def containers(job: Tree) -> Iterator[tuple[str, Tree, Tree]]:
    for role, pod in [*pods(job).items(), ("fetch", load("fetch.yaml")["spec"])]:
        for container in pod["containers"]:
            yield role, pod, container


def quantity(text: str | int) -> float:
    """Return a Kubernetes quantity as a number (bytes for memory)."""
    match = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti)?", str(text))
    assert match, text
    scale = {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(match[1]) * scale[match[2]]


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


def entrypoint_experiment(job: Tree, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Compose what the job's command composes, with the head's environment."""
    for variable in pods(job)["head"]["containers"][0]["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    program, verb, experiment, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (program, verb) == ("causalfusion", "train")
    return load_experiment(experiment, overrides)


# --- RayJob -----------------------------------------------------------------------------------------------


def test_the_rayjob_has_the_form_the_operator_reads(job: Tree) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    # The operator appends suffixes to this name and uses it as a DNS label.
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", job["metadata"]["name"])
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert set(spec) <= RAYJOB_KEYS
    assert set(cluster) <= RAYCLUSTER_KEYS
    assert set(cluster["headGroupSpec"]) <= HEAD_KEYS
    assert spec["submissionMode"] == "K8sJobMode"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_KEYS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    ports = {port["name"]: port["containerPort"] for port in pods(job)["head"]["containers"][0]["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001}


def test_the_job_ends_retries_and_cleans_up(job: Tree) -> None:
    spec = job["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert pods(job)["submitter"]["restartPolicy"] == "Never"


def test_the_cluster_asks_for_a_token(job: Tree) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    major, minor, *_ = (int(part) for part in cluster["rayVersion"].split("."))
    assert (major, minor) >= (2, 52)  # the first Ray with token authentication
    for _, _, container in containers(job):
        names = {variable["name"] for variable in container.get("env", [])}
        assert not {name for name in names if name.startswith("RAY_AUTH")}  # the operator's to set


def test_the_command_is_one_that_runs_here(job: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = entrypoint_experiment(job, monkeypatch)
    assert experiment.data.prepare
    assert experiment.runs.is_relative_to(CLUSTER_HOME)
    assert experiment.data.path.is_relative_to(CLUSTER_HOME)
    assert experiment.tracking.uri is not None
    assert experiment.tracking.uri.startswith("http")
    verb = shlex.split(job["spec"]["entrypoint"])[1]
    asked = subprocess.run(
        [sys.executable, "-m", "causalfusion_platform", verb, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.returncode == 0, asked.stderr


def test_the_command_s_interpolation_reaches_the_head_unexpanded(job: Tree) -> None:
    """The submitter's shell and the head's both read the command; only the job may fill in the variable."""
    entrypoint = job["spec"]["entrypoint"]
    assert "\n" not in entrypoint
    command = f"printf '%s\\n' {entrypoint}"
    echoed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env={})
    assert echoed.stdout.splitlines() == shlex.split(entrypoint)
    assert echoed.stdout.splitlines()[-1] == "tracking.uri=${oc.env:MLFLOW_TRACKING_URI}"


def test_the_workers_can_hold_the_training(job: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = entrypoint_experiment(job, monkeypatch)
    train, data = experiment.train, experiment.data
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    slots, cpus = 0, 0.0
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        fits = [quantity(limits["cpu"]) / train.cpus_per_worker]
        if train.gpus_per_worker:
            fits.append(quantity(limits.get("nvidia.com/gpu", 0)) / train.gpus_per_worker)
        slots += group["replicas"] * int(min(fits))
        cpus += group["replicas"] * quantity(limits["cpu"])
    assert slots >= train.num_workers
    assert train.gpus_per_worker > 0
    left = cpus - train.num_workers * train.cpus_per_worker
    assert left >= data.concurrency * data.cpus_per_task  # reading needs CPUs of its own, or training starves


def test_requests_equal_limits(job: Tree) -> None:
    for role, _, container in containers(job):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"], role
        assert {"cpu", "memory"} <= set(resources["limits"]), role


def test_no_container_is_or_becomes_root(job: Tree) -> None:
    for role, pod, container in containers(job):
        assert pod["securityContext"]["runAsNonRoot"] is True, role
        assert pod["securityContext"]["runAsUser"] > 0, role
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, role
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, role
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, role
        assert "privileged" not in container["securityContext"], role
        assert pod["automountServiceAccountToken"] is False, role


def test_secrets_are_only_referred_to(job: Tree) -> None:
    for role, _, container in containers(job):
        for variable in container.get("env", []):
            assert not re.search("TOKEN|SECRET|PASSWORD|KEY", variable["name"]), role
        for source in container.get("envFrom", []):
            assert source["secretRef"]["optional"] is True, role


def test_every_mount_has_a_volume_and_every_claim_exists(job: Tree) -> None:
    claim = load("home.yaml")
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for role, pod, container in containers(job):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        assert set(mounts) == set(volumes), role
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"], role


def test_head_and_workers_share_the_home(job: Tree) -> None:
    for role, _, container in containers(job):
        if role == "submitter":
            continue
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["home"] == CLUSTER_HOME, role
        if role != "fetch":
            environment = {variable["name"]: variable["value"] for variable in container["env"]}
            assert environment[HOME_VARIABLE] == CLUSTER_HOME, role


def test_shared_memory_holds_the_object_store(job: Tree) -> None:
    for role, pod, container in containers(job):
        if role in ("submitter", "fetch"):
            continue
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == mounts["/dev/shm"])
        assert volume["emptyDir"]["medium"] == "Memory", role
        memory = quantity(container["resources"]["limits"]["memory"])
        # Ray takes 30 % of the memory for its object store, and /dev/shm counts towards the pod's memory.
        assert 0.3 * memory <= quantity(volume["emptyDir"]["sizeLimit"]) < memory / 2, role


# --- versions and image -----------------------------------------------------------------------------------


def test_one_ray_version_everywhere(job: Tree) -> None:
    version = pinned("ray")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    base = dict(instructions())["FROM"]
    assert re.fullmatch(rf"rayproject/ray:{re.escape(version)}-py311-cpu", base)
    assert re.fullmatch(r"[0-9.]+", pinned("torch")), "a torch with a local version such as +cpu has no CUDA"


def test_one_image_everywhere_with_the_project_s_version(job: Tree) -> None:
    images = {container["image"] for _, _, container in containers(job)}
    (image,) = images
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert image.rpartition(":")[2] == project["version"]
    for text in ((CLUSTER / "Dockerfile").read_text(), (CLUSTER / "README.md").read_text()):
        assert set(re.findall(r"\S+/causalfusion:[0-9.]+", text)) == images


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


def test_the_image_is_pinned_and_ends_as_an_ordinary_user(job: Tree) -> None:
    names = [name for name, _ in instructions()]
    assert names.count("FROM") == 1
    users = [arguments for name, arguments in instructions() if name == "USER"]
    last = users[-1]
    assert last.isdigit(), "Kubernetes cannot check a name against runAsNonRoot"
    assert int(last) == pods(job)["head"]["securityContext"]["runAsUser"] > 0
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


def test_the_readme_names_files_that_are_there(job: Tree) -> None:
    text = (CLUSTER / "README.md").read_text()
    paths = set(re.findall(r"(?<![\w/])cluster/[\w./-]+", text))
    assert {f"cluster/{name}" for name in ("Dockerfile", "kuberay/home.yaml", "kuberay/rayjob.yaml")} <= paths
    for path in paths:
        assert (REPOSITORY / path.rstrip(".")).exists(), path
    assert f"job/{job['metadata']['name']}" in text
    assert f"service/{job['metadata']['name']}-head-svc" in text
