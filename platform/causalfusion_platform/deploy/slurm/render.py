"""Render the sbatch script of a command.

Ray's processes end with the job, because Slurm ends its steps. The script never runs `ray stop`, which would end
other users' Ray on the same node.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...config.errors import GAVE_UP, STOPPED, WRONG
from ...config.files import HOME_VARIABLE
from ...config.owner import USER_VARIABLE
from ..cluster_file import ClusterFile, Nfs, ObjectStorage
from ..placement import Placement, place
from ..workload import TRACKING, Workload, tracking_uri

SCRIPT = "job.sbatch"

_PORTS = 100
"""Ports of a job."""
_FIRST_PORT = 10_000
_BLOCKS = 220
"""Blocks of ports, all below the ports that systems give to clients (from 32,768)."""


def render_slurm(cluster: ClusterFile, workload: Workload) -> dict[str, str]:
    """Return the script by its name.

    Raises:
        UserError: the command does not fit.
    """
    placement = place(cluster, workload.demand)
    template = _templates().get_template(f"{SCRIPT}.jinja")
    text = template.render(
        options="\n".join(_options(cluster, workload, placement)),
        environment="\n".join(_environment(cluster)),
        first=_FIRST_PORT,
        blocks=_BLOCKS,
        ports=_PORTS,
        pending=cluster.deadlines.pending_seconds,
        start="".join(f"{shlex.quote(word)} " for word in _started(cluster)),
        resources=_resources(cluster, placement),
        nodes=placement.nodes,
        command=shlex.join(["causalfusion", *workload.arguments]),
        stopped=STOPPED,
        wrong=WRONG,
        gave_up=GAVE_UP,
        retries=cluster.retries,
    )
    return {SCRIPT: text}


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader(__package__, "."), undefined=StrictUndefined, keep_trailing_newline=True
    )


def _options(cluster: ClusterFile, workload: Workload, placement: Placement) -> Iterator[str]:
    group, slurm = cluster.groups[placement.group], cluster.slurm
    minutes = -(-cluster.deadlines.run_seconds // 60)
    options: dict[str, str | int | None] = {
        "job-name": workload.name,
        "account": slurm.account,
        "qos": slurm.qos,
        "partition": cluster.queue,
        "constraint": group.constraint,
        "nodes": placement.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": -int(-group.cpus // 1),
        "mem": f"{int(group.memory_gib * 1024)}M",
        "gres": f"gpu:{group.gpu.kind}:{group.gpu.count}" if group.gpu is not None else None,
        "time": minutes,
        # To the script alone, which hands it on to the driver.
        "signal": f"B:USR1@{cluster.deadlines.grace_seconds}",
        "requeue": "",
        "open-mode": "append",
        "output": f"{logs_folder(cluster)}/%x-%j.log",
    }
    for name, value in options.items():
        if value is not None:
            yield f"#SBATCH --{name}" + (f"={value}" if value != "" else "")


def logs_folder(cluster: ClusterFile) -> str:
    """Return the folder of the jobs' logs. Slurm fails a job whose folder is missing."""
    return f"{cluster.home}/slurm"


def _environment(cluster: ClusterFile) -> Iterator[str]:
    variables = {
        HOME_VARIABLE: cluster.home,
        USER_VARIABLE: cluster.owner,
        TRACKING: tracking_uri(cluster),
        "GLOO_SOCKET_IFNAME": cluster.network.interface,
        "NCCL_SOCKET_IFNAME": cluster.network.interface,
        "NCCL_IB_DISABLE": None if cluster.network.infiniband else "1",
        "AWS_ENDPOINT_URL": cluster.storage.endpoint if isinstance(cluster.storage, ObjectStorage) else None,
    }
    yield "set -euo pipefail"
    yield "umask 077"
    for name, value in variables.items():
        if value is not None:
            yield f"export {name}={shlex.quote(value)}"
    yield from cluster.slurm.setup


def _started(cluster: ClusterFile) -> list[str]:
    """Return the words before a program that start it inside the image."""
    mount = f"{cluster.home}:{cluster.home}"
    if isinstance(cluster.storage, Nfs) and cluster.storage.server is None:
        mount = f"{cluster.storage.path}:{cluster.home}"
    if cluster.slurm.container == "apptainer":
        return ["apptainer", "exec", "--nv", "--bind", mount, f"docker://{cluster.image}"]
    return []


def _resources(cluster: ClusterFile, placement: Placement) -> str:
    group = cluster.groups[placement.group]
    gpus = group.gpu.count if group.gpu is not None else 0
    container = ""
    if cluster.slurm.container == "pyxis":
        mount = f"{cluster.home}:{cluster.home}"
        container = (
            f" --container-image={shlex.quote(cluster.image.replace('/', '#', 1))} --container-mounts={mount}"
        )
    return f"cpus={group.cpus:g} gpus={gpus}\nstep=(srun --overlap --ntasks=1 --nodes=1{container})"
