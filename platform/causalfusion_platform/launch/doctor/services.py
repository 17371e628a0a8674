"""Checks that Ray is safe and reachable: its token, the ports, the cluster."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from ...config.errors import UserError
from ...config.schema import Experiment
from ...storage.home import ray_token_file
from ..cluster.address import cluster_address
from ..cluster.resources import Resources, training_resources
from ..cluster.session import port_is_free
from .check import Check

PORTS: tuple[tuple[int, str], ...] = ((5000, "causalfusion ui --port 5001"),)
"""Pairs of a port and the remedy if it is taken. A local Ray takes any free ports."""

_JOIN = """
import json, sys
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.resources import cluster_resources
from causalfusion_platform.launch.cluster.session import ray_session
from causalfusion_platform.ray_private import autoscaler_view
try:
    with ray_session():
        have, grows = cluster_resources(), autoscaler_view() is not None
except UserError as error:
    sys.exit(str(error).partition("\\n")[0])
print(json.dumps([have.cpus, have.gpus, grows]))
"""


def check_token(token: Path | None = None) -> Check:
    """Check that nobody else can read the token, which opens the whole cluster. Default: Ray's own."""
    token = token or ray_token_file()
    try:
        mode = stat.S_IMODE(token.stat().st_mode)
    except FileNotFoundError:
        return Check("Ray token", "ok", f"none yet: Ray makes {token} when it starts, then it is set to 0600")
    if mode & 0o077:
        return Check(
            "Ray token",
            "FAIL",
            f"{token} has mode {mode:04o}: others can read it",
            f"chmod 600 {shlex.quote(str(token))}",
        )
    return Check("Ray token", "ok", f"{token}, mode {mode:04o}")


def check_ports(ports: Sequence[tuple[int, str]] = PORTS) -> Check:
    """Check that the ports that commands listen on are free."""
    taken = [(port, advice) for port, advice in ports if not port_is_free(port)]
    if taken:
        listed = ", ".join(str(port) for port, _ in taken)
        return Check("ports", "warn", f"in use: {listed}", "; ".join(advice for _, advice in taken))
    return Check("ports", "ok", f"free: {', '.join(str(port) for port, _ in ports)}")


def check_ray(experiment: Experiment, address: str | None, seconds: float = 60.0) -> Check:
    """Join the cluster and compare its resources with what the workers ask for.

    Args:
        experiment: its workers.
        address: RAY_ADDRESS. None or `local`: a Ray of its own is started for each run.
        seconds: longest wait for an answer.
    """
    if not address or address == "local":
        return Check("Ray cluster", "ok", "RAY_ADDRESS is not set: each run starts a Ray of its own here")
    advice = "unset RAY_ADDRESS to use a local Ray, or start a head: ray start --head"
    if address.startswith("http"):
        try:
            with urlopen(f"{address.rstrip('/')}/api/version", timeout=5) as answer:
                found = json.load(answer).get("ray_version")
        except (OSError, ValueError) as error:
            fault = getattr(error, "reason", error)
            return Check("Ray cluster", "FAIL", f"RAY_ADDRESS={address} does not answer: {fault}", advice)
        return Check("Ray cluster", "ok", f"{address} takes jobs, Ray {found}")
    try:
        cluster_address({"RAY_ADDRESS": address})
    except UserError as error:
        return Check("Ray cluster", "FAIL", str(error).partition("\n")[0], advice)
    environment = {**os.environ, "RAY_ADDRESS": address}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _JOIN],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Check("Ray cluster", "FAIL", f"RAY_ADDRESS={address} does not answer in {seconds:g} s", advice)
    if done.returncode:
        fault = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        return Check("Ray cluster", "FAIL", f"RAY_ADDRESS={address} does not answer: {fault}", advice)
    cpus, gpus, grows = json.loads(done.stdout.splitlines()[-1])
    return compare(experiment, address, Resources.of(cpus, gpus), grows=grows)


def compare(experiment: Experiment, address: str, have: Resources, *, grows: bool) -> Check:
    """Compare the resources of a cluster with what the workers of an experiment ask for.

    Args:
        experiment: its workers.
        address: the cluster's, for the line.
        have: resources that are there now.
        grows: an autoscaler may add nodes.
    """
    worker, reader = training_resources(experiment)
    wanted = worker * experiment.train.num_workers + reader
    line = f"{address}: {have.cpus:g} CPUs, {have.gpus:g} GPUs; wanted {wanted.cpus:g} and {wanted.gpus:g}"
    if not have.fits(wanted) and grows:
        seconds = experiment.supervision.resource_seconds
        return Check("Ray cluster", "ok", f"{line}. Its autoscaler is asked for the rest, for up to {seconds:g} s")
    if not have.fits(wanted):
        return Check("Ray cluster", "FAIL", line, "fewer train.num_workers, or fewer train.cpus_per_worker")
    return Check("Ray cluster", "ok", line)
