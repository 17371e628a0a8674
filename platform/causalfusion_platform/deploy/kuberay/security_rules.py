"""Security rules: Pod Security "restricted", images by digest, secrets by reference, and no way in from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..cluster_file import ClusterFile
from .documents import Tree
from .found import Found, Pod, mapping, ray_clusters, sequence

_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
"""Kinds of volumes that Pod Security "restricted" allows."""
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|ACCESS_KEY|API_KEY|CREDENTIAL", re.IGNORECASE)
_LOGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/@'\"]+@", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?i)\b[\w.-]*(token|password|passwd|secret|access_key|api_key)[\w.-]*\s*[=:]\s*[^\s$'\"{]")
_FORBIDDEN = {
    "Secret": "secrets come by reference: make it with `kubectl create secret`",
    "Ingress": "nothing is reached from outside; use `kubectl port-forward`",
    "Route": "nothing is reached from outside; use `kubectl port-forward`",
    "ClusterRole": "rights end at the namespace: a Role",
    "ClusterRoleBinding": "rights end at the namespace: a RoleBinding",
}
_CONTAINER = "allowPrivilegeEscalation: false and capabilities: {drop: [ALL]}"


def security_faults(found: list[Found], pods: list[Pod], cluster: ClusterFile) -> Iterator[str]:
    """Return the faults of documents and pods against the security rules."""
    for one in found:
        if one.kind in _FORBIDDEN:
            yield f"{one.where}: kind {one.kind} is not allowed; {_FORBIDDEN[one.kind]}"
        namespace = mapping(one.tree, "metadata").get("namespace")
        if one.kind != "PersistentVolume" and namespace != cluster.namespace:
            yield f"{one.where}: metadata.namespace is {namespace!r}; allowed: {cluster.namespace}, the file's"
        if one.kind == "Service":
            yield from _service(one)
        if one.kind == "Role":
            yield from _role(one)
        yield from _texts(one)
    for one, path, spec in ray_clusters(found):
        yield from _ray_cluster(f"{one.where}: {path}", spec)
    for pod in pods:
        yield from _pod(pod)
        for where, container in pod.containers():
            yield from _container(where, container)


def _service(one: Found) -> Iterator[str]:
    kind = one.spec.get("type", "ClusterIP")
    if kind != "ClusterIP":
        yield f"{one.where}: spec.type is {kind}, which is reached from outside; allowed: ClusterIP"
    for key in ("externalIPs", "externalName", "loadBalancerIP"):
        if key in one.spec:
            yield f"{one.where}: spec.{key} is not allowed: services are inside the cluster"


def _role(one: Found) -> Iterator[str]:
    for number, rule in enumerate(sequence(one.tree, "rules")):
        where = f"{one.where}: rules[{number}]"
        words = [*sequence(rule, "apiGroups"), *sequence(rule, "resources"), *sequence(rule, "verbs")]
        if "*" in words:
            yield f"{where}: * gives every right; allowed: those that the autoscaler needs, by name"
        if "secrets" in sequence(rule, "resources"):
            yield f"{where}: the autoscaler needs no secrets"
        excess = set(sequence(rule, "verbs")) - {"get", "list", "watch", "patch"} - {"*"}
        if excess:
            yield f"{where}: verbs {', '.join(sorted(map(str, excess)))} exceed get, list, watch and patch"


def _ray_cluster(where: str, spec: Tree) -> Iterator[str]:
    if mapping(spec, "authOptions").get("mode") != "token":
        yield f"{where}.authOptions.mode is not token: whoever reaches a port would command this Ray"
    head = mapping(spec, "headGroupSpec")
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield f"{where}.headGroupSpec.serviceType is {head['serviceType']}; allowed: ClusterIP"
    if head.get("enableIngress"):
        yield f"{where}.headGroupSpec.enableIngress: the dashboard is reached with `kubectl port-forward` only"
    service = mapping(head, "headService", "spec").get("type", "ClusterIP")
    if service != "ClusterIP":
        yield f"{where}.headGroupSpec.headService.spec.type is {service}; allowed: ClusterIP"
    if spec.get("enableInTreeAutoscaling") is True:
        context = mapping(spec, "autoscalerOptions", "securityContext")
        yield from _container_security(f"{where}.autoscalerOptions", context)


def _pod(pod: Pod) -> Iterator[str]:
    spec, where = pod.spec, f"{pod.where}.spec"
    context = mapping(spec, "securityContext")
    if context.get("runAsNonRoot") is not True:
        yield f"{where}.securityContext.runAsNonRoot is not true: no container may be root"
    if not isinstance(context.get("runAsUser"), int) or context["runAsUser"] <= 0:
        yield f"{where}.securityContext.runAsUser is {context.get('runAsUser')!r}; allowed: a user above 0"
    if mapping(context, "seccompProfile").get("type") != "RuntimeDefault":
        yield f"{where}.securityContext.seccompProfile.type is not RuntimeDefault"
    for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(key):
            yield f"{where}.{key} is not allowed: a pod has its own"
    if sequence(context, "sysctls"):
        yield f"{where}.securityContext.sysctls are not allowed"
    if pod.scaling:
        if not spec.get("serviceAccountName"):
            yield f"{where}.serviceAccountName is missing: the autoscaler needs an account of few rights"
    else:
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{where}.automountServiceAccountToken is not false: only the autoscaler speaks to Kubernetes"
        if spec.get("serviceAccountName"):
            yield f"{where}.serviceAccountName is not allowed: only the autoscaler has an account"
    for volume in sequence(spec, "volumes"):
        kinds = set(mapping(volume)) - {"name"}
        if kinds - _VOLUMES:
            yield (
                f"{where}.volumes[{volume.get('name')}] is of kind {', '.join(sorted(kinds - _VOLUMES))}; "
                f"allowed: {', '.join(sorted(_VOLUMES))}"
            )


def _container(where: str, container: Tree) -> Iterator[str]:
    yield from _container_security(where, mapping(container, "securityContext"))
    image = str(container.get("image", ""))
    if not _DIGEST.fullmatch(image):
        yield f"{where}.image is {image!r:.120}; allowed: an image by digest, NAME@sha256:…, as a tag can move"
    for port in sequence(container, "ports"):
        if "hostPort" in mapping(port) or "hostIP" in mapping(port):
            yield f"{where}.ports[{port.get('name')}]: hostPort is not allowed"
    for variable in sequence(container, "env"):
        yield from _variable(where, mapping(variable))


def _container_security(where: str, context: Tree) -> Iterator[str]:
    path = f"{where}.securityContext"
    capabilities = mapping(context, "capabilities")
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{path}.allowPrivilegeEscalation is not false; allowed: {_CONTAINER}"
    if capabilities.get("drop") != ["ALL"]:
        yield f"{path}.capabilities.drop is not [ALL]; allowed: {_CONTAINER}"
    if capabilities.get("add"):
        yield f"{path}.capabilities.add: {', '.join(map(str, capabilities['add']))}; allowed: none"
    if context.get("privileged"):
        yield f"{path}.privileged is not allowed"
    if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        yield f"{path} makes the container root"
    profile = mapping(context, "seccompProfile").get("type", "RuntimeDefault")
    if profile != "RuntimeDefault":
        yield f"{path}.seccompProfile.type is {profile}; allowed: RuntimeDefault"
    if context.get("procMount", "Default") != "Default":
        yield f"{path}.procMount is {context['procMount']}; allowed: Default"


def _variable(where: str, variable: Tree) -> Iterator[str]:
    name = str(variable.get("name", ""))
    if name.startswith("RAY_AUTH"):
        yield f"{where}.env[{name}]: the operator sets it"
    elif _SECRET_NAME.search(name) and "value" in variable:
        yield f"{where}.env[{name}] has its value in the file; allowed: valueFrom.secretKeyRef"


def _texts(one: Found) -> Iterator[str]:
    """Find secrets in texts. Their values are not shown."""
    for place, text in _strings(one.tree, ""):
        if _LOGIN.search(text):
            yield f"{one.where}: {place}: an address with a user or a password; put it into a Secret"
        if place.endswith(("entrypoint", "runtimeEnvYAML", ".ini", ".conf")) and _ASSIGNED.search(text):
            yield f"{one.where}: {place}: a secret is written out; put it into a Secret"


def _strings(tree: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _strings(value, f"{place}.{key}" if place else str(key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _strings(value, f"{place}[{number}]")
    elif isinstance(tree, str):
        yield place, tree
