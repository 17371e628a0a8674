"""The rules find every fault that is put into the rendered files, and none in the files themselves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.deploy.kuberay.clusters import BASE, SWEEP, committed, documents, rendered
from tests.platform.deploy.kuberay.mutants import JOB, MUTANTS, Mutant, head, put, ray

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.deploy.cluster_file import ClusterFile
from causalfusion_platform.deploy.kuberay import rules
from causalfusion_platform.deploy.kuberay.rules import check_kuberay
from causalfusion_platform.deploy.workload import Workload

Trees = dict[str, Any]
Made = tuple[ClusterFile, Workload, dict[str, str]]
SWEEP_CLUSTER, SWEEP_JOB = "RayCluster/ada-first-sweep", "RayJob/ada-first-sweep"

SWEEP_MUTANTS: list[Mutant] = [
    (
        "both ways to autoscaler v2",
        lambda t: sweep_head(t)["containers"][0]["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
        "does not go with autoscalerOptions.version",
    ),
    ("head that starts again", lambda t: put(sweep_head(t), restartPolicy="Always"), "autoscaler v2 needs Never"),
    (
        "worker that starts again",
        lambda t: put(t[SWEEP_CLUSTER]["spec"]["workerGroupSpecs"][0]["template"]["spec"], restartPolicy="Always"),
        "autoscaler v2 needs Never",
    ),
    (
        "no account of the autoscaler",
        lambda t: sweep_head(t).pop("serviceAccountName"),
        "serviceAccountName is missing",
    ),
    (
        "autoscaler with capabilities",
        lambda t: t[SWEEP_CLUSTER]["spec"]["autoscalerOptions"].pop("securityContext"),
        "autoscalerOptions.securityContext.capabilities.drop",
    ),
    (
        "every right",
        lambda t: put(t["Role/ada-first-sweep"]["rules"][0], verbs=["*"]),
        "* gives every right",
    ),
    ("right to delete", lambda t: t["Role/ada-first-sweep"]["rules"][0]["verbs"].append("delete"), "verbs delete"),
    (
        "right to read secrets",
        lambda t: t["Role/ada-first-sweep"]["rules"][0]["resources"].append("secrets"),
        "needs no secrets",
    ),
    (
        "repeated submission",
        lambda t: put(t[SWEEP_JOB]["spec"], backoffLimit=2),
        "does not go with clusterSelector",
    ),
    (
        "another cluster",
        lambda t: put(t[SWEEP_JOB]["spec"], clusterSelector={"ray.io/cluster": "other"}),
        "clusterSelector[ray.io/cluster] is 'other'",
    ),
    ("suspended submission", lambda t: put(t[SWEEP_JOB]["spec"], suspend=True), "does not go with clusterSelector"),
    (
        "idle time below zero",
        lambda t: put(t[SWEEP_CLUSTER]["spec"]["autoscalerOptions"], idleTimeoutSeconds=-1),
        "idleTimeoutSeconds is below 0",
    ),
]


def sweep_head(trees: Trees) -> Any:
    return trees[SWEEP_CLUSTER]["spec"]["headGroupSpec"]["template"]["spec"]


@pytest.fixture(scope="module")
def run() -> Made:
    return committed()


@pytest.fixture(scope="module")
def sweep() -> Made:
    return rendered(BASE, SWEEP)


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the schemas of Kubernetes out: the rules alone must find the faults."""
    monkeypatch.setattr(rules, "kubernetes_faults", lambda *_: [])


def mutated(files: dict[str, str], change: Any) -> dict[str, str]:
    """Return files with a change of their documents."""
    names = {
        f"{tree['kind']}/{tree['metadata']['name']}": name
        for name, text in files.items()
        for tree in yaml.safe_load_all(text)
    }
    trees = copy.deepcopy(documents(files))
    change(trees)
    made: dict[str, list[Any]] = {}
    for key, tree in trees.items():
        made.setdefault(names.get(key, "8-added.yaml"), []).append(tree)
    return {name: yaml.safe_dump_all(found) for name, found in made.items()}


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize(("change", "words"), [pytest.param(*rest, id=name) for name, *rest in MUTANTS])
def test_a_fault_in_the_files_of_a_run_is_found(run: Made, change: Any, words: str) -> None:
    cluster, workload, files = run
    assert check_kuberay(mutated(files, lambda _: None), cluster, workload) == []
    faults = check_kuberay(mutated(files, change), cluster, workload)
    assert any(words in fault for fault in faults), faults
    assert not any("hunter2" in fault for fault in faults)


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize(("change", "words"), [pytest.param(*rest, id=name) for name, *rest in SWEEP_MUTANTS])
def test_a_fault_in_the_files_of_a_sweep_is_found(sweep: Made, change: Any, words: str) -> None:
    cluster, workload, files = sweep
    assert check_kuberay(mutated(files, lambda _: None), cluster, workload) == []
    faults = check_kuberay(mutated(files, change), cluster, workload)
    assert any(words in fault for fault in faults), faults


def test_a_fault_says_file_document_and_place(run: Made) -> None:
    cluster, workload, files = run
    (fault,) = check_kuberay(mutated(files, lambda t: put(ray(t), image="x:1")), cluster, workload)
    assert fault.startswith(
        "7-rayjob.yaml: RayJob research-first: spec.rayClusterSpec.workerGroupSpecs[gpu].template.spec."
        "containers[ray-worker].image is 'x:1'; allowed:"
    )


def test_a_file_that_is_not_yaml_is_named(run: Made) -> None:
    cluster, workload, files = run
    faults = check_kuberay(files | {"7-rayjob.yaml": "spec: [", "x.yaml": "- a"}, cluster, workload)
    assert "7-rayjob.yaml: not YAML" in faults[0]
    assert "x.yaml: document 1 is not a mapping of keys" in faults


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: put(head(t)["containers"][0]["ports"][0], containerPort="gcs"), "ports.0.containerPort"),
        (lambda t: put(ray(t)["volumeMounts"][0], mountPth="/x"), "mountPth"),
        (lambda t: put(ray(t)["lifecycle"]["preStop"], execute={}), "execute"),
        (lambda t: t["Deployment/causalfusion-mlflow"]["spec"].pop("selector"), "selector"),
        (lambda t: put(t["NetworkPolicy/causalfusion-dns"]["spec"], podSelectors={}), "podSelectors"),
    ],
)
def test_kubernetes_own_schemas_find_deeper_faults(run: Made, change: Any, words: str) -> None:
    pytest.importorskip("kubernetes_validate", reason="needs the extra kubernetes")
    cluster, workload, files = run
    faults = check_kuberay(mutated(files, change), cluster, workload)
    assert any(words in fault for fault in faults), faults


DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: { name: rayjobs.ray.io }
spec:
  group: ray.io
  names: { kind: RayJob }
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: { type: string }
            kind: { type: string }
            metadata: { type: object }
            spec:
              type: object
              required: [entrypoint]
              properties:
                entrypoint: { type: string }
                backoffLimit: { type: integer, minimum: 0 }
                rayClusterSpec: { type: object, x-kubernetes-preserve-unknown-fields: true }
                submitterPodTemplate: { type: object }
"""


@pytest.mark.usefixtures("own_rules")
def test_definitions_of_a_folder_refuse_unknown_keys_and_wrong_types(run: Made, tmp_path: Path) -> None:
    cluster, workload, files = run
    (tmp_path / "rayjobs.yaml").write_text(DEFINITION)
    faults = check_kuberay(files, cluster, workload, tmp_path)
    (unknown,) = faults
    assert "7-rayjob.yaml: RayJob research-first: spec:" in unknown
    assert "'preRunningDeadlineSeconds'" in unknown  # this definition is older than the key
    faults = check_kuberay(
        mutated(files, lambda t: put(t[JOB]["spec"], backoffLimit="2")), cluster, workload, tmp_path
    )
    assert any("spec.backoffLimit: '2' is not of type 'integer'" in fault for fault in faults)


def test_a_folder_without_definitions_is_refused(run: Made, tmp_path: Path) -> None:
    cluster, workload, files = run
    with pytest.raises(UserError, match="has no CustomResourceDefinition"):
        check_kuberay(files, cluster, workload, tmp_path)


def test_there_are_many_mutants_with_names_of_their_own() -> None:
    names = [name for name, *_ in (*MUTANTS, *SWEEP_MUTANTS)]
    assert len(set(names)) == len(names) >= 30
