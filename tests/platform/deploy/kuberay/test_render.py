"""Rendered files: the committed ones, and those of clusters with everything, on NFS, and of sweeps."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
from tests.platform.deploy.kuberay.clusters import (
    BASE,
    EVERYTHING,
    GPU,
    NFS,
    RENDERED,
    SWEEP,
    TRAIN,
    cluster_file,
    committed,
    documents,
    rendered,
)

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.deploy.kuberay.render import render_fetch
from causalfusion_platform.deploy.kuberay.rules import check_kuberay

Tree = dict[str, Any]


def spec_of(files: dict[str, str], name: str) -> Tree:
    spec: Tree = documents(files)[name]["spec"]
    return spec


def test_the_committed_files_are_what_the_committed_cluster_file_renders_to() -> None:
    cluster, _, files = committed()
    files |= render_fetch(cluster)
    assert {path.name for path in RENDERED.iterdir()} == set(files)
    for name, text in files.items():
        assert (RENDERED / name).read_bytes() == text.encode(), f"render {name} again"


@pytest.mark.parametrize(("tree", "words"), [(BASE, TRAIN), (EVERYTHING, TRAIN), (NFS, TRAIN), (BASE, SWEEP)])
def test_what_is_rendered_has_no_fault_and_the_same_bytes_again(tree: Tree, words: tuple[str, ...]) -> None:
    cluster, workload, files = rendered(tree, words)
    assert check_kuberay(files, cluster, workload) == []
    assert rendered(tree, words)[2] == files
    assert list(files) == sorted(files)  # `kubectl apply -f FOLDER` takes them by name


def test_a_run_is_one_rayjob_with_its_own_nodes() -> None:
    _, _, files = rendered(EVERYTHING, TRAIN)
    job = documents(files)["RayJob/ada-first"]
    spec = job["spec"]
    labels = job["metadata"]["labels"]
    assert labels["causalfusion/user"] == "ada"
    assert labels["causalfusion/run"] == "first"
    assert labels["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert spec["suspend"] is True
    assert (spec["backoffLimit"], spec["preRunningDeadlineSeconds"]) == (5, 900)
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (7200, 60)
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["groupName"] == "spot"  # the cheaper of two that hold the run
    assert {group["replicas"], group["minReplicas"], group["maxReplicas"]} == {2}
    assert "enableInTreeAutoscaling" not in spec["rayClusterSpec"]
    assert not [name for name in documents(files) if name.startswith(("ServiceAccount", "Role", "RayCluster"))]


def test_a_pod_of_a_spot_group_goes_to_spot_nodes_and_has_time_for_a_checkpoint() -> None:
    _, _, files = rendered(EVERYTHING, TRAIN)
    (group,) = spec_of(files, "RayJob/ada-first")["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    tolerated = {one["key"] for one in pod["tolerations"]}
    assert tolerated == {
        "nvidia.com/gpu",
        "lab/spot",
        "cloud.google.com/gke-spot",
        "kubernetes.azure.com/scalesetpriority",
    }
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    assert pod["terminationGracePeriodSeconds"] == 90
    assert "ray drain-node" in pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2]
    assert (pod["priorityClassName"], pod["imagePullSecrets"]) == ("training", [{"name": "registry"}])
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


def test_infiniband_comes_as_a_resource_and_without_capabilities() -> None:
    _, _, files = rendered(EVERYTHING, TRAIN)
    (group,) = spec_of(files, "RayJob/ada-first")["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert container["resources"]["limits"]["rdma/hca_shared_devices_a"] == "1"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "NCCL_IB_DISABLE" not in variables
    assert (variables["NCCL_SOCKET_IFNAME"], variables["GLOO_SOCKET_IFNAME"]) == ("eth1", "eth1")
    assert variables["AWS_ENDPOINT_URL"] == "https://s3.example.org:9000"
    keys = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one}
    assert keys["AWS_SECRET_ACCESS_KEY"] == {"name": "aws", "key": "AWS_SECRET_ACCESS_KEY"}
    assert keys["MLFLOW_TRACKING_PASSWORD"] == {"name": "causalfusion-mlflow", "key": "MLFLOW_TRACKING_PASSWORD"}
    assert "POSTGRES_PASSWORD" not in keys  # runs have no use for it


def test_an_interface_that_only_nccl_can_exclude_is_not_given_to_gloo() -> None:
    _, _, files = rendered(BASE | {"network": {"interface": "^docker0"}}, TRAIN)
    (group,) = spec_of(files, "RayJob/ada-first")["rayClusterSpec"]["workerGroupSpecs"]
    variables = {one["name"]: one.get("value") for one in group["template"]["spec"]["containers"][0]["env"]}
    assert variables["NCCL_SOCKET_IFNAME"] == "^docker0"
    assert "GLOO_SOCKET_IFNAME" not in variables


def test_a_bucket_needs_no_claim_and_nfs_gets_a_volume() -> None:
    _, _, files = rendered(EVERYTHING, TRAIN)
    assert "1-home.yaml" not in files
    head = spec_of(files, "RayJob/ada-first")["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert "emptyDir" in head["volumes"][0]
    _, _, files = rendered(NFS, TRAIN)
    found = documents(files)
    volume = found["PersistentVolume/lab-causalfusion-home"]
    assert volume["spec"]["nfs"] == {"server": "10.1.2.3", "path": "/export/causalfusion"}
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    claim = found["PersistentVolumeClaim/causalfusion-home"]["spec"]
    assert (claim["volumeName"], claim["storageClassName"]) == ("lab-causalfusion-home", "")


def test_a_sweep_has_a_cluster_that_grows_and_a_job_that_submits_to_it() -> None:
    groups = {"gpu": GPU, "wide": GPU | {"cpus": 1}, "cpu": {"cpus": 8, "memory_gib": 8, "max_nodes": 2}}
    _, _, files = rendered(BASE | {"groups": groups | {"spot": GPU | {"spot": True, "min_nodes": 1}}}, SWEEP)
    found = documents(files)
    spec = found["RayCluster/ada-first-sweep"]["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    sizes = {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in spec["workerGroupSpecs"]}
    assert sizes == {"gpu": (0, 8), "spot": (1, 8)}  # neither too few CPUs nor no GPUs
    head = spec["headGroupSpec"]["template"]["spec"]
    assert (head["serviceAccountName"], head["automountServiceAccountToken"]) == ("ada-first-sweep", True)
    # The operator sets it, and refuses a cluster that sets it too.
    assert "RAY_enable_autoscaler_v2" not in {one["name"] for one in head["containers"][0]["env"]}
    job = found["RayJob/ada-first-sweep"]["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": "ada-first-sweep"}
    assert not {"backoffLimit", "rayClusterSpec", "shutdownAfterJobFinishes", "suspend"} & set(job)
    rights = found["Role/ada-first-sweep"]["rules"]
    assert rights[-1]["resourceNames"] == ["ada-first-sweep"]
    assert found["RoleBinding/ada-first-sweep"]["subjects"][0]["name"] == head["serviceAccountName"]


def test_kueue_admits_a_sweep_as_a_cluster_of_a_fixed_size() -> None:
    cluster, workload, files = rendered(BASE | {"queue": "team-queue"}, SWEEP)
    found = documents(files)
    made = found["RayCluster/ada-first-sweep"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert "enableInTreeAutoscaling" not in made["spec"]
    assert "Role/ada-first-sweep" not in found
    assert check_kuberay(files, cluster, workload) == []


@pytest.mark.parametrize("text", ["$HOME`id`", "a $(id)", "x;y&&z|w", "ümlaut *"])
def test_the_command_passes_two_shells_unchanged(text: str) -> None:
    """The submitter's shell reads the entrypoint, joins its words with quotes, and the head's shell reads those."""
    server = {"mlflow": {"kind": "uri", "uri": "http://mlflow.tools.svc:5000"}}
    _, workload, files = rendered(BASE | server, (*TRAIN, f"description='{text}'"))
    entrypoint = spec_of(files, "RayJob/ada-first")["entrypoint"]
    words: list[str] = []
    for _ in range(2):
        argv = f"printf '%s\\0' {entrypoint}"
        echoed = subprocess.run(["sh", "-c", argv], capture_output=True, text=True, check=True, env={})
        words = echoed.stdout.split("\0")[:-1]
        entrypoint = shlex.join(words)
    assert words == ["causalfusion", *workload.arguments]
    assert words[-1] == "tracking.uri=${oc.env:MLFLOW_TRACKING_URI}"


def test_a_run_that_does_not_fit_is_refused_with_the_groups() -> None:
    with pytest.raises(UserError, match="group gpu has at most 8 nodes, and 16 are needed"):
        rendered(BASE, (*TRAIN, "train.num_workers=16"))


def test_a_folder_of_the_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="pods may not mount a node's folder"):
        cluster_file(BASE | {"storage": {"kind": "nfs", "path": "/lustre/causalfusion"}})
