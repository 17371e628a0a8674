"""Check rendered or edited files for Kubernetes, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..cluster_file import ClusterFile
from ..workload import Workload
from .form_rules import form_faults
from .found import parse, pods_of
from .network_rules import network_faults
from .operator_rules import operator_faults
from .schemas import custom_faults, kubernetes_faults
from .security_rules import security_faults


def check_kuberay(
    files: Mapping[str, str], cluster: ClusterFile, workload: Workload, schemas: Path | None = None
) -> list[str]:
    """Return the faults of files. Each says where, what, and what is allowed.

    Args:
        files: text by name.
        cluster: the cluster that they are for.
        workload: the command that they run.
        schemas: folder of KubeRay's CustomResourceDefinitions. None: the keys of KubeRay 1.7 alone are checked.

    Raises:
        UserError: `schemas` holds no definition.
    """
    found, faults = parse(files)
    pods = pods_of(found)
    faults += form_faults(found, pods, cluster)
    faults += operator_faults(found, cluster, workload)
    faults += security_faults(found, pods, cluster)
    faults += network_faults(found, pods, cluster)
    faults += kubernetes_faults(found, pods)
    if schemas is not None:
        faults += custom_faults(found, schemas)
    return faults
