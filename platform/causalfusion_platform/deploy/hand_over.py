"""Hand rendered files to kubectl, sbatch or ray. Each command is shown before it runs."""

from __future__ import annotations

import difflib
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..config.commands import command
from ..config.errors import MachineError, UserError
from ..config.files import home
from ..storage.atomic import write_atomically
from .cluster_file import ClusterFile
from .launcher.render import FILE
from .slurm.render import SCRIPT, logs_folder

_ADVICE = {
    "kubectl": "install it: https://kubernetes.io/docs/tasks/tools/",
    "sbatch": "run this command on a login node of the Slurm cluster",
    "scancel": "run this command on a login node of the Slurm cluster",
    "mkdir": "it is part of every system",
    "ray": "install this project's environment: make install",
}
_KUBECTL_SECONDS = 60


def applied_folder(name: str) -> Path:
    """Return the folder of the files that were applied last under a name."""
    return home() / "clusters" / name


def apply_commands(cluster: ClusterFile, name: str, files: dict[str, str]) -> list[list[str]]:
    """Return the commands that apply files, which lie in `applied_folder`."""
    folder = applied_folder(name)
    if cluster.target == "kuberay":
        return [[*_kubectl(cluster), "apply", "-f", str(folder / file)] for file in files]
    if cluster.target == "slurm":
        return [["mkdir", "-p", logs_folder(cluster)], ["sbatch", str(folder / SCRIPT)]]
    return [["ray", "up", "--yes", str(folder / FILE)]]


def delete_commands(cluster: ClusterFile, name: str) -> list[list[str]]:
    """Return the commands that end a job and give its nodes back. Volumes, and so the runs, stay."""
    if cluster.target == "kuberay":
        labels = f"app.kubernetes.io/instance={name}"
        kinds = "rayjob,raycluster,networkpolicy,serviceaccount,role,rolebinding"
        return [[*_kubectl(cluster), "delete", kinds, "--selector", labels]]
    if cluster.target == "slurm":
        return [["scancel", "--batch", "--signal=USR2", "--name", name]]  # the run writes a checkpoint
    return [["ray", "down", "--yes", str(applied_folder(name) / FILE)]]


def write_files(name: str, files: dict[str, str], folder: Path | None = None) -> Path:
    """Write rendered files and return their folder."""
    folder = folder or applied_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_atomically(folder / file, text.encode())
    return folder


def changes(name: str, files: dict[str, str]) -> str:
    """Return how files differ from those that were applied last, as a unified diff. Empty: not at all."""
    folder = applied_folder(name)
    lines: list[str] = []
    there = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    for file in sorted({*files, *there}):
        before = (folder / file).read_text(encoding="utf-8") if file in there else ""
        after = files.get(file, "")
        lines += difflib.unified_diff(
            before.splitlines(), after.splitlines(), f"applied/{file}", f"rendered/{file}", lineterm=""
        )
    return "\n".join(lines)


def check_context(cluster: ClusterFile) -> None:
    """Check that kubectl speaks to the cluster that the file is for.

    Raises:
        UserError: there is no kubectl, or its context is another one.
    """
    if cluster.target != "kuberay":
        return
    require("kubectl")
    if cluster.context is None:
        return
    asked = subprocess.run(
        ["kubectl", "config", "get-contexts", "--output", "name"],
        capture_output=True,
        encoding="utf-8",
        timeout=_KUBECTL_SECONDS,
    )
    known = asked.stdout.split()
    if cluster.context not in known:
        raise UserError(
            f"context is {cluster.context!r}, which kubectl does not know; it knows: {', '.join(known) or 'none'}\n"
            "  see them: kubectl config get-contexts"
        )


def require(program: str) -> None:
    """Check that a program is there.

    Raises:
        UserError: it is not on the PATH.
    """
    if shutil.which(program) is None:
        raise UserError(f"{program} is not on the PATH\n  {_ADVICE[program]}")


def run_commands(commands: Sequence[Sequence[str]]) -> None:
    """Run commands in order, with their output to this terminal.

    Raises:
        UserError: a program is missing.
        MachineError: a command failed. Those after it were not run.
    """
    for argv in commands:
        require(argv[0])
    for argv in commands:
        status = subprocess.run(argv).returncode
        if status:
            raise MachineError(
                f"{shlex.join(argv)} ended with status {status}; commands after it were not run\n"
                f"  mend the cause, then give the same command again: {command('cluster', 'apply', '--help')}"
            )


def cluster_diff(cluster: ClusterFile, files: dict[str, str]) -> str:
    """Return the differences to what Kubernetes has, by `kubectl diff`.

    Raises:
        MachineError: kubectl could not compare.
    """
    texts = "---\n".join(files.values())
    asked = subprocess.run(
        [*_kubectl(cluster), "diff", "-f", "-"],
        input=texts,
        capture_output=True,
        encoding="utf-8",
        timeout=_KUBECTL_SECONDS,
    )
    if asked.returncode > 1:
        last = (asked.stderr.strip() or "no reason").splitlines()[-1]
        raise MachineError(
            f"kubectl diff could not compare: {last}\n  see whether the cluster answers: kubectl cluster-info"
        )
    return asked.stdout


def _kubectl(cluster: ClusterFile) -> list[str]:
    context = ["--context", cluster.context] if cluster.context is not None else []
    return ["kubectl", *context, "--namespace", cluster.namespace]
