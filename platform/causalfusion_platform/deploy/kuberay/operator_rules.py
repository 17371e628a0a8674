"""The rules by which the KubeRay operator (1.7) refuses a RayJob or a RayCluster, and those it does not check.

The operator reports a refusal in the document's events, after `kubectl apply` has succeeded. The source is
`ray-operator/controllers/ray/utils/validation.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ..cluster_file import ClusterFile
from ..workload import Workload, workers_of_node
from .documents import Tree
from .found import Found, mapping, ray_clusters, sequence

LONGEST_JOB, LONGEST_CLUSTER = 47, 53
"""Characters of the names of a RayJob and a RayCluster: the operator appends to both."""
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")

_DNS_1035 = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LABEL_NAME = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)")
_AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
_TOKENS_SINCE = (2, 52, 0)
_PRIORITIES_SINCE = (2, 56, 0)


def operator_faults(found: list[Found], cluster: ClusterFile, workload: Workload) -> Iterator[str]:
    """Return the faults for which the operator would refuse documents, or would never run them."""
    names = [one.name for one in found if one.kind == "RayCluster"]
    for one in found:
        if one.kind == "RayJob":
            yield from _name(one, LONGEST_JOB)
            yield from _job(one, names)
        elif one.kind == "RayCluster":
            yield from _name(one, LONGEST_CLUSTER)
    if not any(one.kind == "RayJob" for one in found):
        yield "files: no RayJob: nothing would run the command"
    for one, path, spec in ray_clusters(found):
        where = f"{one.where}: {path}"
        yield from _cluster(where, spec)
        yield from _workers(where, spec, cluster, workload)


def _name(one: Found, longest: int) -> Iterator[str]:
    if len(one.name) > longest:
        yield f"{one.where}: metadata.name has {len(one.name)} characters; allowed: at most {longest}"
    if not _DNS_1035.fullmatch(one.name):
        yield f"{one.where}: metadata.name is not lower-case letters, digits and hyphens that begin with a letter"


def _job(one: Found, clusters: list[str]) -> Iterator[str]:
    spec, where = one.spec, f"{one.where}: spec"
    selector = mapping(spec, "clusterSelector")
    mode, shutdown = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes") is True
    if mode not in MODES:
        yield f"{where}.submissionMode is {mode!r}; allowed: {', '.join(MODES)}"
    if mode != "InteractiveMode" and not str(spec.get("entrypoint", "")).strip():
        yield f"{where}.entrypoint is empty: nothing would run"
    if spec.get("suspend") and not shutdown:
        yield f"{where}.suspend needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and selector:
        yield f"{where}.suspend does not go with clusterSelector"
    if _number(spec.get("ttlSecondsAfterFinished"), 0) < 0:
        yield f"{where}.ttlSecondsAfterFinished is below 0"
    if _number(spec.get("ttlSecondsAfterFinished"), 0) > 0 and not shutdown:
        yield f"{where}.ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if key in spec and _number(spec[key], 0) <= 0:
            yield f"{where}.{key} is {spec[key]!r}; allowed: above 0"
    backoff = _number(spec.get("backoffLimit"), 0)
    if backoff < 0:
        yield f"{where}.backoffLimit is below 0"
    if backoff > 0 and selector:
        yield f"{where}.backoffLimit does not go with clusterSelector"
    if backoff > 0 and mode == "InteractiveMode":
        yield f"{where}.backoffLimit does not go with InteractiveMode"
    if "rayClusterSpec" not in spec and not selector:
        yield f"{where}: one of rayClusterSpec and clusterSelector is needed"
    yield from _selector(where, selector, mode, clusters)
    yield from _sidecar(where, spec, mode)
    yield from _deletion(where, spec, shutdown)
    yield from _runtime(where, spec.get("runtimeEnvYAML"))


def _selector(where: str, selector: Tree, mode: str, clusters: list[str]) -> Iterator[str]:
    if not selector:
        return
    name = selector.get("ray.io/cluster")
    if not name:
        yield f"{where}.clusterSelector[ray.io/cluster] is empty"
    elif name not in clusters:
        yield f"{where}.clusterSelector[ray.io/cluster] is {name!r}; RayClusters of these files: {clusters}"
    if mode == "SidecarMode":
        yield f"{where}.clusterSelector does not go with SidecarMode"


def _sidecar(where: str, spec: Tree, mode: str) -> Iterator[str]:
    if mode != "SidecarMode":
        return
    for key in ("submitterPodTemplate", "submitterConfig"):
        if key in spec:
            yield f"{where}.{key} does not go with SidecarMode"
    head = mapping(spec, "rayClusterSpec", "headGroupSpec", "template", "spec")
    if head.get("restartPolicy", "Never") != "Never":
        yield f"{where}: SidecarMode needs restartPolicy Never in the head's pod"


def _deletion(where: str, spec: Tree, shutdown: bool) -> Iterator[str]:
    if "deletionStrategy" not in spec:
        return
    strategy = mapping(spec, "deletionStrategy")
    legacy = {"onSuccess", "onFailure"} & set(strategy)
    rules = sequence(strategy, "deletionRules")
    if rules and shutdown:
        yield f"{where}.deletionStrategy.deletionRules does not go with shutdownAfterJobFinishes"
    if rules and legacy:
        yield f"{where}.deletionStrategy: deletionRules does not go with onSuccess and onFailure"
    if not rules and len(legacy) != 2:
        yield f"{where}.deletionStrategy needs onSuccess and onFailure, or deletionRules"


def _runtime(where: str, text: Any) -> Iterator[str]:
    if not text:
        return
    try:
        tree = yaml.safe_load(str(text))
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict):
        yield f"{where}.runtimeEnvYAML is not YAML of a mapping"


def _cluster(where: str, spec: Tree) -> Iterator[str]:
    scaling = spec.get("enableInTreeAutoscaling") is True
    options = mapping(spec, "autoscalerOptions")
    newer = scaling and options.get("version") == "v2"
    head = mapping(spec, "headGroupSpec")
    if not sequence(head, "template", "spec", "containers"):
        yield f"{where}.headGroupSpec has no container"
    yield from _group(f"{where}.headGroupSpec", head)
    groups = [mapping(group) for group in sequence(spec, "workerGroupSpecs")]
    names = [str(group.get("groupName", "")) for group in groups]
    if len(set(names)) < len(names):
        yield f"{where}.workerGroupSpecs: two groups have one groupName: {', '.join(names)}"
    version = _version(spec.get("rayVersion"))
    for name, group in zip(names, groups, strict=True):
        place = f"{where}.workerGroupSpecs[{name}]"
        yield from _group(place, group)
        yield from _replicas(place, group, scaling)
        yield from _scaled_group(place, group, scaling, newer, version)
        if newer and mapping(group, "template", "spec").get("restartPolicy", "Never") != "Never":
            yield f"{place}.template.spec.restartPolicy: autoscaler v2 needs Never"
    variables = _variables(head)
    if scaling and "version" in options and _AUTOSCALER_V2 in variables:
        yield f"{where}: {_AUTOSCALER_V2} of the head does not go with autoscalerOptions.version"
    if not scaling and variables.get(_AUTOSCALER_V2) in ("1", "true"):
        yield f"{where}: {_AUTOSCALER_V2} of the head needs enableInTreeAutoscaling: true"
    if newer and mapping(head, "template", "spec").get("restartPolicy", "Never") != "Never":
        yield f"{where}.headGroupSpec.template.spec.restartPolicy: autoscaler v2 needs Never"
    if _number(options.get("idleTimeoutSeconds"), 0) < 0:
        yield f"{where}.autoscalerOptions.idleTimeoutSeconds is below 0"
    if any(mapping(one).get("name") == "KUBERAY_GEN_AUTOSCALER_START_CMD" for one in sequence(options, "env")):
        yield f"{where}.autoscalerOptions.env: the operator sets KUBERAY_GEN_AUTOSCALER_START_CMD"
    yield from _head(where, spec, head, variables)
    yield from _token(where, spec, version)


def _group(where: str, group: Tree) -> Iterator[str]:
    """Check what the head's group and workers' groups have in common."""
    parameters = mapping(group, "rayStartParams")
    if not all(isinstance(value, str) for value in parameters.values()):
        yield f"{where}.rayStartParams: every value is a text, in quotes"
    given = [key for key in ("num-cpus", "num-gpus", "memory", "resources") if parameters.get(key)]
    if given and mapping(group, "resources"):
        yield f"{where}: rayStartParams ({', '.join(given)}) does not go with resources"
    if "labels" in parameters:
        yield f"{where}.rayStartParams.labels is not allowed; write labels beside it"
    for key, value in mapping(group, "labels").items():
        _, _, name = str(key).rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (str(value) and not _LABEL_NAME.fullmatch(str(value))):
            yield f"{where}.labels: {key}={value} is not a label"
    name = mapping(group, "template", "metadata", "labels").get("app.kubernetes.io/name", "kuberay")
    if name != "kuberay":
        yield f"{where}.template.metadata.labels[app.kubernetes.io/name]: the operator's service selects by its own"


def _replicas(where: str, group: Tree, scaling: bool) -> Iterator[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    nodes = group.get("replicas")
    if not sequence(group, "template", "spec", "containers"):
        yield f"{where} has no container"
    if not scaling and (least is None or most is None):
        yield f"{where} needs minReplicas and maxReplicas without an autoscaler"
    for key in ("minReplicas", "maxReplicas", "replicas"):
        if _number(group.get(key), 0) < 0:
            yield f"{where}.{key} is below 0"
    if least is not None and most is not None and _number(least, 0) > _number(most, 0):
        yield f"{where}.minReplicas {least} exceeds maxReplicas {most}"
    if nodes is not None and most is not None and _number(nodes, 0) > _number(most, 0):
        yield f"{where}.replicas {nodes} exceeds maxReplicas {most}, to which the operator lowers it"
    if nodes is not None and least is not None and _number(nodes, 0) < _number(least, 0):
        yield f"{where}.replicas {nodes} is below minReplicas {least}, to which the operator raises it"


def _scaled_group(
    where: str, group: Tree, scaling: bool, newer: bool, version: tuple[int, ...] | None
) -> Iterator[str]:
    if "idleTimeoutSeconds" in group and (_number(group["idleTimeoutSeconds"], 0) < 0 or not newer):
        yield f"{where}.idleTimeoutSeconds needs autoscaler v2, and is not below 0"
    if _number(group.get("priority"), 0) and (not newer or version is None or version < _PRIORITIES_SINCE):
        yield f"{where}.priority needs autoscaler v2 and Ray 2.56 or newer"
    if group.get("suspend"):
        reason = "the autoscaler" if scaling else "the operator without its gate RayJobDeletionPolicy"
        yield f"{where}.suspend does not go with {reason}"


def _head(where: str, spec: Tree, head: Tree, variables: dict[str, Any]) -> Iterator[str]:
    parameters = mapping(head, "rayStartParams")
    tolerant = "gcsFaultToleranceOptions" in spec
    if not tolerant and "RAY_REDIS_ADDRESS" in variables:
        yield f"{where}: RAY_REDIS_ADDRESS of the head needs gcsFaultToleranceOptions"
    if tolerant:
        for key in {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & set(variables):
            yield f"{where}: {key} of the head does not go with gcsFaultToleranceOptions"
        if parameters.get("redis-password"):
            yield f"{where}: redis-password does not go with gcsFaultToleranceOptions"
    if parameters.get("redis-username") or "REDIS_USERNAME" in variables:
        yield f"{where}: the name of Redis' user belongs into gcsFaultToleranceOptions.redisUsername"
    for key, gate in (("networkPolicy", "RayClusterNetworkPolicy"), ("tlsOptions", "RayClusterMTLS")):
        if key in spec:
            yield f"{where}.{key} needs the operator's gate {gate}, which is off by default"
    if "upgradeStrategy" in spec and ".rayClusterSpec" in where:
        yield f"{where}.upgradeStrategy does not go with a RayJob"


def _token(where: str, spec: Tree, version: tuple[int, ...] | None) -> Iterator[str]:
    options = mapping(spec, "authOptions")
    if options.get("mode") == "token" and (version is None or version < _TOKENS_SINCE):
        yield f"{where}.rayVersion is {spec.get('rayVersion')!r}; authOptions.mode token needs 2.52.0 or newer"
    if options.get("enableK8sTokenAuth"):
        yield f"{where}.authOptions.enableK8sTokenAuth does not go with a RayJob"


def _workers(where: str, spec: Tree, cluster: ClusterFile, workload: Workload) -> Iterator[str]:
    """Check what the operator takes and the command cannot run with."""
    if spec.get("rayVersion") != cluster.ray_version:
        yield f"{where}.rayVersion is {spec.get('rayVersion')!r}; the image has {cluster.ray_version}"
    if mapping(spec, "headGroupSpec", "rayStartParams").get("num-cpus") != "0":
        yield f"{where}.headGroupSpec.rayStartParams.num-cpus is not 0: workers would take the driver's node"
    demand, slots = workload.demand, 0
    key = "maxReplicas" if spec.get("enableInTreeAutoscaling") is True else "replicas"
    for group in sequence(spec, "workerGroupSpecs"):
        name = str(mapping(group).get("groupName"))
        if name not in cluster.groups:
            known = ", ".join(cluster.groups)
            yield f"{where}.workerGroupSpecs[{name}]: the cluster file has no such group; it has: {known}"
            continue
        nodes = int(_number(group.get(key), 0))
        if nodes > cluster.groups[name].max_nodes:
            most = cluster.groups[name].max_nodes
            yield f"{where}.workerGroupSpecs[{name}].{key} is {nodes}; the cluster file allows {most}"
        slots += nodes * workers_of_node(cluster.groups[name], demand)
    if slots < demand.workers:
        yield f"{where}.workerGroupSpecs hold {slots} workers, and the command takes {demand.workers}"


def _variables(group: Tree) -> dict[str, Any]:
    """Return the environment of a group's first container, which is Ray's."""
    containers = sequence(group, "template", "spec", "containers")
    first = containers[0] if containers else {}
    return {str(mapping(one).get("name")): mapping(one).get("value") for one in sequence(first, "env")}


def _version(text: Any) -> tuple[int, ...] | None:
    found = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", str(text))
    return tuple(int(part) for part in found.groups()) if found else None


def _number(value: Any, default: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default
