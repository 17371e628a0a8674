"""Documents and pods of rendered files, as Kubernetes and the operator will have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from .documents import Tree

Role = Literal["head", "worker", "submitter", "other"]

_RANDOM = "-xxxxx"
"""Stands for the random letters at the end of the name of a RayJob's Ray cluster."""


@dataclass(frozen=True)
class Found:
    """Document of a file."""

    file: str
    tree: Tree

    @property
    def kind(self) -> str:
        """Kind, such as RayJob."""
        return str(self.tree.get("kind", "document without a kind"))

    @property
    def name(self) -> str:
        """Name in its metadata."""
        return str(mapping(self.tree, "metadata").get("name", "without a name"))

    @property
    def where(self) -> str:
        """File, kind and name, for messages."""
        return f"{self.file}: {self.kind} {self.name}"

    @property
    def spec(self) -> Tree:
        """Its spec. Empty: it has none."""
        return mapping(self.tree, "spec")


@dataclass(frozen=True)
class Pod:
    """Pod that a document makes."""

    where: str
    """File, kind, name and path of its template."""
    role: Role
    labels: Mapping[str, str]
    """All labels of the running pod, the operator's too."""
    template: Tree
    scaling: bool = False
    """The operator runs the autoscaler in it."""

    @property
    def spec(self) -> Tree:
        """Its spec."""
        return mapping(self.template, "spec")

    def containers(self) -> Iterator[tuple[str, Tree]]:
        """Return place and tree of every container."""
        for kind in ("initContainers", "containers"):
            for container in sequence(self.spec, kind):
                if isinstance(container, dict):
                    yield f"{self.where}.spec.{kind}[{container.get('name', '?')}]", container


def mapping(tree: Any, *path: str) -> Tree:
    """Return the mapping below a path. Empty: there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def sequence(tree: Any, *path: str) -> list[Any]:
    """Return the list below a path. Empty: there is none."""
    found = mapping(tree, *path[:-1]).get(path[-1])
    return found if isinstance(found, list) else []


def parse(files: Mapping[str, str]) -> tuple[list[Found], list[str]]:
    """Return the documents of files, and the faults of those that are none."""
    found, faults = [], []
    for file, text in files.items():
        try:
            trees = [tree for tree in yaml.safe_load_all(text) if tree is not None]
        except yaml.YAMLError as error:
            faults.append(f"{file}: not YAML: {' '.join(str(error).split())}")
            continue
        for number, tree in enumerate(trees, 1):
            if isinstance(tree, dict):
                found.append(Found(file, tree))
            else:
                faults.append(f"{file}: document {number} is not a mapping of keys")
    return found, faults


def ray_clusters(found: list[Found]) -> Iterator[tuple[Found, str, Tree]]:
    """Return every Ray cluster: its document, the path of its spec, and the spec."""
    for one in found:
        if one.kind == "RayCluster":
            yield one, "spec", one.spec
        elif one.kind == "RayJob" and "rayClusterSpec" in one.spec:
            yield one, "spec.rayClusterSpec", mapping(one.spec, "rayClusterSpec")


def pods_of(found: list[Found]) -> list[Pod]:
    """Return every pod that documents make."""
    pods: list[Pod] = []
    for one, path, spec in ray_clusters(found):
        pods += _ray_pods(one, path, spec)
    for one in found:
        if one.kind == "RayJob" and "submitterPodTemplate" in one.spec:
            template = mapping(one.spec, "submitterPodTemplate")
            made = {
                "ray.io/originated-from-cr-name": one.name,
                "ray.io/originated-from-crd": "RayJob",
                "app.kubernetes.io/created-by": "kuberay-operator",
            }
            labels = {**_labels(template), **made}
            pods.append(Pod(f"{one.where}: spec.submitterPodTemplate", "submitter", labels, template))
        elif one.kind in ("Deployment", "StatefulSet", "Job", "DaemonSet", "ReplicaSet"):
            template = mapping(one.spec, "template")
            pods.append(Pod(f"{one.where}: spec.template", "other", _labels(template), template))
        elif one.kind == "Pod":
            pods.append(Pod(one.where, "other", _labels(one.tree), one.tree))
    return pods


def _ray_pods(one: Found, path: str, spec: Tree) -> Iterator[Pod]:
    cluster = one.name if one.kind == "RayCluster" else one.name + _RANDOM
    scaling = spec.get("enableInTreeAutoscaling") is True
    groups: list[tuple[Role, str, str, Tree]] = [
        ("head", "headgroup", f"{path}.headGroupSpec", mapping(spec, "headGroupSpec"))
    ]
    for number, group in enumerate(sequence(spec, "workerGroupSpecs")):
        name = str(mapping(group).get("groupName", ""))
        groups.append(("worker", name, f"{path}.workerGroupSpecs[{name or number}]", mapping(group)))
    for role, name, where, group in groups:
        template = mapping(group, "template")
        # The operator's labels. The first three cannot be overridden.
        fixed = {"ray.io/cluster": cluster, "ray.io/node-type": role, "ray.io/group": name}
        defaults = {
            "ray.io/is-ray-node": "yes",
            "ray.io/identifier": f"{cluster}-{role}",
            "app.kubernetes.io/name": "kuberay",
            "app.kubernetes.io/created-by": "kuberay-operator",
        }
        labels = {**defaults, **_labels(template), **fixed}
        yield Pod(f"{one.where}: {where}.template", role, labels, template, scaling and role == "head")


def _labels(template: Tree) -> dict[str, str]:
    return {str(key): str(content) for key, content in mapping(template, "metadata", "labels").items()}
