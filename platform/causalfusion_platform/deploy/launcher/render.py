"""Render the YAML of Ray's cluster launcher, which `ray up` reads.

All nodes run the image in a container. A node's Ray is then alone in it, and other users' Ray is not seen.
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from ...config.errors import UserError
from ...config.files import HOME_VARIABLE
from ...config.owner import USER_VARIABLE
from ..cluster_file import ClusterFile, Group, Launcher, Nfs, ObjectStorage
from ..placement import place
from ..workload import TRACKING, Workload, tracking_uri

FILE = "ray-cluster.yaml"
TOKEN_FILE = "/home/ray/.ray/auth_token"
"""Ray's token in a container."""
OWN_TOKEN_FILE = "~/.ray/auth_token"
"""Ray's token on the machine of `ray up`. The launcher copies the file, so that no text holds the token."""
_HEAD = "head"
_PORT = 6379


def render_launcher(cluster: ClusterFile, workload: Workload) -> dict[str, str]:
    """Return the launcher's file by its name.

    Raises:
        UserError: the command does not fit, or a type of machine is missing.
    """
    placement = place(cluster, workload.demand)
    launcher = cluster.launcher
    assert launcher is not None  # as the cluster file checks
    groups = {placement.group: (cluster.groups[placement.group], placement.nodes)}
    start, join = _ray_start(head=True), _ray_start(head=False)
    tree: dict[str, Any] = {
        "cluster_name": workload.name,
        "max_workers": placement.nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": max(1, cluster.deadlines.after_seconds // 60),
        "docker": {
            "image": cluster.image,
            "container_name": workload.name,
            "pull_before_run": True,
            "run_options": _run_options(cluster),
        },
        "provider": _provider(launcher),
        "auth": {"ssh_user": launcher.ssh_user},
        "file_mounts": {TOKEN_FILE: OWN_TOKEN_FILE},
        "initialization_commands": _mount(cluster),
        "setup_commands": [f"chmod 600 {TOKEN_FILE}"],
        "head_start_ray_commands": [start],
        "worker_start_ray_commands": [join],
    }
    if launcher.provider != "local":
        tree["available_node_types"] = {
            _HEAD: _node_type(launcher, _HEAD, {"CPU": 0}, 0, 0, spot=False),
            **{
                name: _node_type(launcher, name, _resources(group), group.min_nodes, nodes, spot=group.spot)
                for name, (group, nodes) in groups.items()
            },
        }
        tree["head_node_type"] = _HEAD
    else:
        tree["min_workers"] = tree["max_workers"] = min(placement.nodes, len(launcher.worker_hosts))
        if placement.nodes > len(launcher.worker_hosts):
            raise UserError(
                f"launcher.worker_hosts has {len(launcher.worker_hosts)} hosts, and {placement.nodes} are needed\n"
                "  add hosts to the cluster file, or take fewer train.num_workers"
            )
        del tree["min_workers"]
    text = yaml.safe_dump(tree, sort_keys=False, width=1000)
    return {FILE: f"# {' '.join(['causalfusion', *workload.arguments])}\n{text}"}


def _ray_start(*, head: bool) -> str:
    """Return the command that starts Ray on a node, with a token."""
    # The launcher's own commands begin with `ray stop`. In a new container there is nothing to stop.
    if head:
        arguments = (
            f"--head --port={_PORT} --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml"
        )
    else:
        arguments = f"--address=$RAY_HEAD_IP:{_PORT}"
    return f"ulimit -n 65536; RAY_AUTH_MODE=token ray start {arguments} --disable-usage-stats"


def _run_options(cluster: ClusterFile) -> list[str]:
    storage = cluster.storage
    variables = {
        HOME_VARIABLE: cluster.home,
        USER_VARIABLE: cluster.owner,
        "RAY_AUTH_MODE": "token",
        TRACKING: tracking_uri(cluster),
        "AWS_ENDPOINT_URL": storage.endpoint if isinstance(storage, ObjectStorage) else None,
        "GLOO_SOCKET_IFNAME": cluster.network.interface,
        "NCCL_SOCKET_IFNAME": cluster.network.interface,
    }
    options = ["--ulimit nofile=65536:65536", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    if isinstance(storage, Nfs):
        options.append(f"--volume={cluster.home}:{cluster.home}")
    given = ((name, value) for name, value in variables.items() if value is not None)
    return [*options, *(f"--env={shlex.quote(f'{name}={value}')}" for name, value in given)]


def _mount(cluster: ClusterFile) -> list[str]:
    """Return the commands that mount the shared folder on a node's own system, unless it has it."""
    storage, home = cluster.storage, shlex.quote(cluster.home)
    if not isinstance(storage, Nfs):
        return []
    if storage.server is None:
        if storage.path == cluster.home:
            return [f"test -d {home}"]
        return [
            f"sudo mkdir -p {home}",
            f"mountpoint -q {home} || sudo mount --bind {shlex.quote(storage.path)} {home}",
        ]
    source = shlex.quote(f"{storage.server}:{storage.path}")
    return [f"sudo mkdir -p {home}", f"mountpoint -q {home} || sudo mount -t nfs {source} {home}"]


def _provider(launcher: Launcher) -> dict[str, Any]:
    if launcher.provider == "local":
        return {"type": "local", "head_ip": launcher.head_host, "worker_ips": list(launcher.worker_hosts)}
    found: dict[str, Any] = {"type": launcher.provider, "region": launcher.region}
    if launcher.zone is not None:
        found["availability_zone"] = launcher.zone
    if launcher.project is not None:
        found["project_id"] = launcher.project
    if launcher.provider == "aws":
        found["cache_stopped_nodes"] = False  # nodes that are stopped in place of ended still cost their disks
    return found


def _resources(group: Group) -> dict[str, float]:
    gpus = {"GPU": group.gpu.count} if group.gpu is not None else {}
    return {"CPU": group.cpus, **gpus}


def _node_type(
    launcher: Launcher, name: str, resources: dict[str, float], least: int, most: int, *, spot: bool
) -> dict[str, Any]:
    machine = launcher.instances.get(name)
    if machine is None:
        raise UserError(
            f"launcher.instances has no type of machine for {name!r}; it has: "
            f"{', '.join(launcher.instances) or 'none'}\n  such as: {name}: "
            + ("m7i.large" if launcher.provider == "aws" else "n2-standard-2")
        )
    config: dict[str, Any]
    if launcher.provider == "aws":
        config = {"InstanceType": machine}
        if launcher.machine_image is not None:
            config["ImageId"] = launcher.machine_image
        if spot:
            config["InstanceMarketOptions"] = {"MarketType": "spot"}
        config["MetadataOptions"] = {"HttpTokens": "required"}
    else:
        image = launcher.machine_image or "projects/deeplearning-platform-release/global/images/family/common-cu128"
        config = {
            "machineType": machine,
            "disks": [
                {
                    "boot": True,
                    "autoDelete": True,
                    "type": "PERSISTENT",
                    "initializeParams": {"diskSizeGb": 200, "sourceImage": image},
                }
            ],
        }
        if spot:
            config["scheduling"] = [{"provisioningModel": "SPOT"}]
    scale = {} if name == _HEAD else {"min_workers": least, "max_workers": most}
    return {"resources": resources, **scale, "node_config": config}
