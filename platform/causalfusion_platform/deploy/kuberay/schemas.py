"""Schemas: the operator's CustomResourceDefinitions from a folder, and Kubernetes' own if they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...config.errors import UserError
from .documents import Tree
from .found import Found, Pod, mapping, sequence

KUBERNETES = "1.34"
"""Version of Kubernetes against whose schemas documents are checked."""
_CUSTOM = "ray.io/"


def custom_faults(found: list[Found], folder: Path) -> Iterator[str]:
    """Return the faults of RayJobs and RayClusters against the definitions of a folder.

    Raises:
        UserError: the folder holds no definition.
    """
    import jsonschema

    schemas = _definitions(folder)
    for one in found:
        version = str(one.tree.get("apiVersion"))
        if not version.startswith(_CUSTOM):
            continue
        schema = schemas.get((version, one.kind))
        if schema is None:
            known = ", ".join(sorted(f"{kind} of {version}" for version, kind in schemas))
            yield f"{one.where}: {folder} defines no {one.kind} of {version}; it defines: {known}"
            continue
        for fault in jsonschema.Draft202012Validator(schema).iter_errors(one.tree):
            yield f"{one.where}: {_path(fault.absolute_path)}: {fault.message:.300}"


def kubernetes_faults(found: list[Found], pods: list[Pod]) -> Iterator[str]:
    """Return the faults of Kubernetes' own kinds, and of all pods. Nothing without the extra `kubernetes`."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        return
    for one in found:
        if not str(one.tree.get("apiVersion")).startswith(_CUSTOM):
            yield from _against_kubernetes(one.where, one.tree)
    for pod in pods:
        metadata = {"name": "pod", "labels": dict(pod.labels)}
        tree = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}
        yield from _against_kubernetes(pod.where, tree)


def _against_kubernetes(where: str, tree: Tree) -> Iterator[str]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(tree, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as fault:
        yield f"{where}: {_path(fault.absolute_path)}: {fault.message:.300}"
    except kubernetes_validate.SchemaNotFoundError as fault:
        yield f"{where}: {fault.message}"


def _definitions(folder: Path) -> dict[tuple[str, str], Any]:
    schemas: dict[tuple[str, str], Any] = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            trees = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_loader()))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"schema {path} cannot be read: {' '.join(str(error).split())}") from error
        for tree in trees:
            if isinstance(tree, dict) and tree.get("kind") == "CustomResourceDefinition":
                group, kind = mapping(tree, "spec").get("group"), mapping(tree, "spec", "names").get("kind")
                for version in sequence(tree, "spec", "versions"):
                    schema = mapping(version, "schema", "openAPIV3Schema")
                    schemas[f"{group}/{version.get('name')}", str(kind)] = _strict(schema)
    if not schemas:
        raise UserError(
            f"folder of schemas {folder} has no CustomResourceDefinition in *.yaml\n"
            "  KubeRay's: helm-chart/kuberay-operator/crds of github.com/ray-project/kuberay; or from a cluster:\n"
            "  kubectl get crd rayjobs.ray.io rayclusters.ray.io --output yaml"
        )
    return schemas


def _strict(schema: Any) -> Any:
    """Return a schema that refuses unknown keys, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    strict = {
        key: {name: _strict(one) for name, one in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
    }
    closed = "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    # An object without any property, such as metadata, is described elsewhere.
    if properties and closed and schema.get("type") == "object":
        strict["additionalProperties"] = False
    return strict


def _loader() -> Any:
    """Return PyYAML's fast loader where it was built: the definitions have 50,000 lines."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _path(parts: Any) -> str:
    return ".".join(str(part) for part in parts) or "document"
