"""`causalfusion cluster`: render, check and hand over the files of a command for a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .help import WholeHelp

if TYPE_CHECKING:
    from ..deploy.cluster_file import ClusterFile
    from ..deploy.workload import Workload

_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}

cluster_app = typer.Typer(
    cls=WholeHelp,
    help="Deploy a command: render, check, compare, apply and delete its files.",
    no_args_is_help=True,
)

FileArgument = Annotated[
    str, typer.Argument(help="Cluster file: a path, or a name of cluster/ without .yaml.", metavar="FILE")
]
SchemasOption = Annotated[
    Path | None,
    typer.Option(help="Folder of CustomResourceDefinitions (YAML) to check against, such as KubeRay's crds/."),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@cluster_app.callback()
def group() -> None:
    """Deploy a command: render, check, compare, apply and delete its files.

    A cluster file says where nodes, storage and MLflow are. The experiment
    says how many workers and GPUs a run takes. The command follows after --.

    causalfusion cluster check lab -- train quickstart name=first
    """


@cluster_app.command("schema")
def schema() -> None:
    """Print the JSON schema of cluster files, with every key."""
    from ..deploy.cluster_file import ClusterFile

    print(json.dumps(ClusterFile.model_json_schema(), indent=2))


@cluster_app.command("render", context_settings=_FORWARD)
def render_files(
    ctx: typer.Context,
    file: FileArgument,
    out: Annotated[Path | None, typer.Option(help="Folder to write to. Default: print.")] = None,
) -> None:
    """Print or write the files of a command. The same arguments give the same bytes."""
    from ..deploy.hand_over import write_files

    _, workload, files = _rendered(file, ctx.args)
    if out is None:
        print("---\n".join(files.values()), end="")
    else:
        write_files(workload.name, files, out)
        print("\n".join(str(out / name) for name in files))


@cluster_app.command("check", context_settings=_FORWARD)
def check_files(ctx: typer.Context, file: FileArgument, schemas: SchemasOption = None) -> None:
    """Check without a cluster: does it fit, what does it cost, do the files hold to all rules?"""
    from ..config.errors import WRONG
    from ..deploy.check import check, explained

    cluster, workload, files = _rendered(file, ctx.args)
    checked = check(cluster, workload, files, schemas)
    print(explained(checked, cluster))
    if checked.faults:
        raise typer.Exit(WRONG)


@cluster_app.command("diff", context_settings=_FORWARD)
def diff(
    ctx: typer.Context,
    file: FileArgument,
    live: Annotated[bool, typer.Option("--live", help="Compare with the cluster itself (kubectl diff).")] = False,
) -> None:
    """Compare with the files that were applied last, or with the cluster itself."""
    from ..deploy.hand_over import changes, check_context, cluster_diff

    cluster, workload, files = _rendered(file, ctx.args)
    if live and cluster.target != "kuberay":
        from ..config.errors import UserError

        raise UserError(f"--live asks Kubernetes, and the target is {cluster.target}: leave it out")
    if live:
        check_context(cluster)
    found = cluster_diff(cluster, files) if live else changes(workload.name, files)
    print(found or "no difference")


@cluster_app.command("apply", context_settings=_FORWARD)
def apply(ctx: typer.Context, file: FileArgument, schemas: SchemasOption = None, yes: YesOption = False) -> None:
    """Check, show the plan, ask, and hand the files to kubectl, sbatch or ray."""
    from ..config.errors import WRONG
    from ..deploy.check import check, explained
    from ..deploy.hand_over import apply_commands, changes, check_context, run_commands, write_files

    cluster, workload, files = _rendered(file, ctx.args)
    checked = check(cluster, workload, files, schemas)
    print(explained(checked, cluster))
    if checked.faults:
        raise typer.Exit(WRONG)
    check_context(cluster)
    commands = apply_commands(cluster, workload.name, files)
    print(changes(workload.name, files) or "no difference to the files applied last")
    _confirm(commands, yes)
    write_files(workload.name, files)
    run_commands(commands)
    print(_next(cluster, workload))


@cluster_app.command("delete", context_settings=_FORWARD)
def delete(ctx: typer.Context, file: FileArgument, yes: YesOption = False) -> None:
    """End a job and give its nodes back. Volumes and runs stay."""
    from ..deploy.hand_over import check_context, delete_commands, run_commands

    cluster, workload = _read(file, ctx.args)
    check_context(cluster)
    commands = delete_commands(cluster, workload.name)
    _confirm(commands, yes)
    run_commands(commands)


def _read(file: str, arguments: list[str]) -> tuple[ClusterFile, Workload]:
    from ..deploy.read import read_cluster_file
    from ..deploy.workload import read_workload

    cluster = read_cluster_file(file)
    return cluster, read_workload(cluster, arguments)


def _rendered(file: str, arguments: list[str]) -> tuple[ClusterFile, Workload, dict[str, str]]:
    from ..deploy.render import render

    cluster, workload = _read(file, arguments)
    return cluster, workload, render(cluster, workload)


def _confirm(commands: list[list[str]], yes: bool) -> None:
    """Show commands, and end here unless the user wants them."""
    import shlex

    print("to run:\n" + "\n".join(f"  {shlex.join(argv)}" for argv in commands))
    if yes:
        return
    if not sys.stdin.isatty():
        from ..config.errors import UserError

        raise UserError("nothing was sent, because nobody can be asked here\n  to send it: add --yes before --")
    if not typer.confirm("go on?"):
        print("nothing was sent")
        raise typer.Exit(0)


def _next(cluster: ClusterFile, workload: Workload) -> str:
    """Return the commands with which to follow a job."""
    from ..config.commands import command
    from ..deploy.hand_over import applied_folder
    from ..deploy.launcher.render import FILE

    namespace = f"--namespace {cluster.namespace} "
    return {
        "kuberay": f"follow it: kubectl {namespace}get rayjob {workload.name} --watch",
        "slurm": f"follow it: squeue --name {workload.name}; tail -F {cluster.home}/slurm/{workload.name}-*.log",
        "ray": (
            f"open a way to it: ray dashboard {applied_folder(workload.name) / FILE}\n"
            f"  then: {command('jobs', 'submit', '--', *workload.arguments)}"
        ),
    }[cluster.target]
