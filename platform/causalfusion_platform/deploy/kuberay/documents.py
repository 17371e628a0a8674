"""Documents of Kubernetes as plain trees, their labels, and their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from ..cluster_file import ClusterFile
from ..workload import Workload

Tree = dict[str, Any]

PART_OF = {"app.kubernetes.io/part-of": "causalfusion"}
"""Label of every pod that the rendered files make. The network policy that denies by default selects it."""
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
USER = "causalfusion/user"
RUN = "causalfusion/run"


def run_labels(cluster: ClusterFile, workload: Workload, component: str | None = None) -> Tree:
    """Return the labels of a run's documents and pods.

    Pods of Ray keep the operator's `app.kubernetes.io/name`, because its head service selects them by it.
    """
    labels = {**PART_OF, INSTANCE: workload.name, USER: cluster.owner, RUN: workload.experiment.name}
    return {**labels, COMPONENT: component} if component else labels


def document(kind: str, version: str, name: str, namespace: str, labels: Tree, **content: Any) -> Tree:
    """Return a document with its metadata first."""
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


class _Dumper(yaml.SafeDumper):
    """Writes every value in full, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Return True: nothing is written as an alias."""
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _text)


def text(header: str, documents: Sequence[Tree]) -> str:
    """Return the YAML of documents below a comment. The same trees give the same bytes."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    parts = [yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=112, allow_unicode=True) for one in documents]
    return comment + "---\n".join(parts)
