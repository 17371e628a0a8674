"""Rules of form: kinds, versions, keys, resources, volumes, and the environment that runs count on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...config.files import HOME_VARIABLE
from ...config.owner import USER_VARIABLE
from ..cluster_file import ClusterFile
from .documents import RUN, USER, Tree
from .found import Found, Pod, mapping, ray_clusters, sequence

VERSIONS = {
    "RayJob": "ray.io/v1",
    "RayCluster": "ray.io/v1",
    "PersistentVolume": "v1",
    "PersistentVolumeClaim": "v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
}
"""Kinds that are rendered, with their versions."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys of KubeRay 1.7 and of pods that rendered files may have. Others are misspelt, or are no part of a run.
_JOB = _words(
    "activeDeadlineSeconds backoffLimit clusterSelector entrypoint entrypointNumCpus entrypointNumGpus "
    "entrypointResources metadata preRunningDeadlineSeconds rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes "
    "submissionMode submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished deletionStrategy"
)
_CLUSTER = _words(
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations networkPolicy rayVersion suspend tlsOptions upgradeStrategy workerGroupSpecs"
)
_HEAD = _words("enableIngress headService labels rayStartParams resources serviceType template")
_GROUP = _words(
    "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams replicas "
    "resources scaleStrategy suspend template"
)
_AUTOSCALER = _words(
    "args command env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode "
    "version volumeMounts"
)
_POD = _words(
    "affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks hostAliases hostIPC "
    "hostNetwork hostPID imagePullSecrets initContainers nodeSelector preemptionPolicy priorityClassName "
    "restartPolicy runtimeClassName schedulerName securityContext serviceAccountName shareProcessNamespace "
    "terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes activeDeadlineSeconds"
)
_CONTAINER = _words(
    "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resources "
    "securityContext startupProbe terminationMessagePath terminationMessagePolicy volumeMounts workingDir"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def form_faults(found: list[Found], pods: list[Pod], cluster: ClusterFile) -> Iterator[str]:
    """Return the faults of form."""
    for (kind, name), count in Counter((one.kind, one.name) for one in found).items():
        if count > 1:
            yield f"files: {kind} {name} is there {count} times: the last one would count"
    for one in found:
        yield from _document(one, cluster)
        if one.kind == "RayJob":
            yield from _keys(f"{one.where}: spec", one.spec, _JOB)
    for one, path, spec in ray_clusters(found):
        yield from _cluster_keys(f"{one.where}: {path}", spec)
    claims = {one.name for one in found if one.kind == "PersistentVolumeClaim"}
    templates = {
        mapping(claim, "metadata").get("name")
        for one in found
        if one.kind == "StatefulSet"
        for claim in sequence(one.spec, "volumeClaimTemplates")
    }
    for pod in pods:
        yield from _pod(pod, claims, templates if ": StatefulSet " in pod.where else set(), cluster)


def _document(one: Found, cluster: ClusterFile) -> Iterator[str]:
    version = one.tree.get("apiVersion")
    expected = VERSIONS.get(one.kind)
    if expected is None:
        yield f"{one.where}: kind {one.kind} is not one of a run: {', '.join(VERSIONS)}"
    elif version != expected:
        yield f"{one.where}: apiVersion is {version!r}; allowed: {expected}"
    labels = mapping(one.tree, "metadata", "labels")
    for key, value in labels.items():
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            yield f"{one.where}: metadata.labels[{key}] is {value!r:.80}; allowed: up to 63 letters, digits, - _ ."
    if labels.get(USER, cluster.owner) != cluster.owner:
        yield f"{one.where}: metadata.labels[{USER}] is {labels[USER]}; the cluster file's owner is {cluster.owner}"
    if one.kind in ("RayJob", "RayCluster"):
        for key in (USER, RUN):
            if key not in labels:
                yield f"{one.where}: metadata.labels[{key}] is missing"
    if one.kind == "PersistentVolumeClaim" and one.file.startswith("1-"):
        modes = sequence(one.spec, "accessModes")
        if modes != ["ReadWriteMany"]:
            yield f"{one.where}: spec.accessModes is {modes}; allowed: [ReadWriteMany], as all nodes write"


def _cluster_keys(where: str, spec: Tree) -> Iterator[str]:
    yield from _keys(where, spec, _CLUSTER)
    yield from _keys(f"{where}.headGroupSpec", mapping(spec, "headGroupSpec"), _HEAD)
    yield from _keys(f"{where}.autoscalerOptions", mapping(spec, "autoscalerOptions"), _AUTOSCALER)
    for group in sequence(spec, "workerGroupSpecs"):
        yield from _keys(f"{where}.workerGroupSpecs[{mapping(group).get('groupName')}]", mapping(group), _GROUP)
    ports = sequence(spec, "headGroupSpec", "template", "spec", "containers")
    named = {mapping(port).get("name") for port in sequence(ports[0] if ports else {}, "ports")}
    for name in ("gcs-server", "dashboard"):
        if name not in named:
            yield f"{where}.headGroupSpec: port {name} is missing: the operator's service would not have it"


def _keys(where: str, tree: Tree, known: frozenset[str]) -> Iterator[str]:
    for key in tree:
        if key not in known:
            yield f"{where}.{key} is not a key that runs use; known: {', '.join(sorted(known))}"


def _pod(pod: Pod, claims: set[str], templates: set[Any], cluster: ClusterFile) -> Iterator[str]:
    where = f"{pod.where}.spec"
    yield from _keys(where, pod.spec, _POD)
    volumes = {mapping(volume).get("name"): mapping(volume) for volume in sequence(pod.spec, "volumes")}
    mounted = set()
    for place, container in pod.containers():
        yield from _keys(place, container, _CONTAINER)
        yield from _resources(place, container)
        for mount in sequence(container, "volumeMounts"):
            name = mapping(mount).get("name")
            mounted.add(name)
            if name not in volumes and name not in templates:
                yield f"{place}.volumeMounts[{name}] names no volume of the pod: {', '.join(map(str, volumes))}"
    for name, volume in volumes.items():
        claim = mapping(volume, "persistentVolumeClaim").get("claimName")
        if claim is not None and claim not in claims:
            yield f"{where}.volumes[{name}]: claim {claim} is not in these files: {', '.join(sorted(claims))}"
        if name not in mounted:
            yield f"{where}.volumes[{name}] is mounted nowhere"
    if pod.role in ("head", "worker"):
        yield from _ray_pod(pod, where, volumes, cluster)


def _resources(where: str, container: Tree) -> Iterator[str]:
    requests, limits = mapping(container, "resources", "requests"), mapping(container, "resources", "limits")
    if requests != limits:
        yield f"{where}.resources: requests and limits differ; equal ones keep a pod from eviction for memory"
    for key in ("cpu", "memory"):
        if key not in limits:
            yield f"{where}.resources.limits.{key} is missing"
    for key, amount in limits.items():
        if _quantity(amount) is None:
            yield f"{where}.resources.limits.{key} is {amount!r}, which is not a quantity"


def _ray_pod(pod: Pod, where: str, volumes: dict[Any, Tree], cluster: ClusterFile) -> Iterator[str]:
    first = next((container for _, container in pod.containers()), {})
    mounts = {
        mapping(mount).get("mountPath"): mapping(mount).get("name") for mount in sequence(first, "volumeMounts")
    }
    variables = {mapping(one).get("name"): mapping(one).get("value") for one in sequence(first, "env")}
    for name, expected in ((HOME_VARIABLE, cluster.home), (USER_VARIABLE, cluster.owner)):
        if variables.get(name) != expected:
            yield f"{where}: environment {name} is {variables.get(name)!r}; the cluster file has {expected}"
    if cluster.home not in mounts:
        yield f"{where}: nothing is mounted at {cluster.home}, the home of the cluster file"
    memory = _quantity(mapping(first, "resources", "limits").get("memory"))
    shared = mapping(volumes.get(mounts.get("/dev/shm")), "emptyDir")
    size = _quantity(shared.get("sizeLimit"))
    if shared.get("medium") != "Memory" or size is None or memory is None:
        yield f"{where}: /dev/shm is not memory with a limit, which Ray's object store needs"
    elif not 0.3 * memory <= size < memory / 2:
        yield f"{where}: /dev/shm has {size / memory:.0%} of the pod's memory; allowed: 30% to 50%"
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    if grace != cluster.deadlines.grace_seconds:
        yield (
            f"{where}.terminationGracePeriodSeconds is {grace}; the cluster file gives "
            f"{cluster.deadlines.grace_seconds} for a last checkpoint"
        )
    if not mapping(first, "lifecycle", "preStop"):
        yield f"{where}: no preStop hook: a pod that ends would take the run with it without a checkpoint"


def _quantity(text: Any) -> float | None:
    """Return a quantity of Kubernetes as a number (memory: bytes). None: it is not one."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|Ki|Mi|Gi|Ti)?", str(text))
    return float(found[1]) * _UNITS[found[2] or ""] if found else None
