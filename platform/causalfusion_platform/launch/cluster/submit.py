"""Send a `causalfusion` command to a running Ray head as a job, and follow it to its end."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...config.errors import UserError
from ...config.files import HOME_VARIABLE
from ...config.job_end import JOB_VARIABLE
from ...config.owner import USER_VARIABLE, user_name
from ...storage.home import expanded
from .follow import connect, follow_job, say
from .head import CLUSTER_HOME, Head
from .job_variables import STOP_VARIABLE, given_variables, refuse_secrets
from .jobs import PREFIX, PROGRAM, job_command
from .named import find_cluster
from .run_name import check_job_id, new_job_id, run_of, tracking_of

# Without a trailing slash a pattern matches the folder itself, so that Ray does not walk into it.
EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".import_linter_cache",
    ".env",
    "*.db",
    "/runs",
    "/shards",
    "/outputs",
    "/dist",
    "/build",
    "mlruns",
    "mlartifacts",
)

STOP_SECONDS = 600
"""Time that a job has for its checkpoint when it is stopped. Ray's own default is 3 seconds."""


def submit_job(
    arguments: Sequence[str],
    *,
    address: str | None = None,
    working_dir: Path = Path(),
    home: str | None = None,
    job_id: str | None = None,
    variables: Sequence[str] = (),
    wait: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run `causalfusion ARGUMENTS` as a job of a Ray cluster and return the exit status to end with.

    The job's log goes to stdout, everything else to stderr. Without `wait`, stdout gets the job's id alone.

    Args:
        arguments: command line of `causalfusion` without its first word, such as ["train", "quickstart"].
        address: URL of the head's dashboard, or a name of clusters.yaml. None: see `resolve_address`.
        working_dir: folder sent along, the job's current directory. A source checkout runs as it is sent.
        home: the job's CAUSALFUSION_HOME. None: this directory for a head on this host, else CLUSTER_HOME.
        job_id: the job's submission id, unique in the cluster. None makes one from the run's name.
        variables: environment variables of the job, as NAME=VALUE, or as NAME to take the value from `environ`.
        wait: follow the job to its end.
        environ: environment to read addresses and the token from.

    Returns:
        0 if the job succeeded, its driver's exit code if it failed (GAVE_UP if that is not one of `STATUSES`),
        JOB_STOPPED if it was stopped, JOB_INTERRUPTED if following was interrupted here. Without `wait`: 0 once
        submitted.

    Raises:
        UserError: nothing to run, no Ray head at the address, no accepted token, a secret that others would see,
            or a refused job.
    """
    command = entrypoint(arguments)
    refuse_secrets(arguments, environ)
    given = given_variables(variables, environ)
    job_id = new_job_id(run_of(arguments) or arguments[0]) if job_id is None else check_job_id(job_id)
    folder = check_working_dir(working_dir)
    cluster = find_cluster(address, environ)
    head = cluster.head
    home = job_home(home, head)
    environment = runtime_env(folder, head, home)
    environment["env_vars"] = job_variables(job_id, environ) | given | environment["env_vars"]
    say(f"sending {folder} to {head.address}")
    start(head, command, environment, metadata_of(arguments, folder, environ), job_id)
    hints = next_commands(cluster.name, job_id)
    say(f"job {job_id} is submitted to {head.address}; its results go to {home} ({HOME_VARIABLE})\n{hints}")
    if not wait:
        print(job_id, flush=True)
        return 0
    return follow_job(head, job_id, hints)


def start(head: Head, command: str, environment: dict[str, Any], metadata: dict[str, str], job_id: str) -> None:
    """Submit a job to Ray.

    Args:
        head: the cluster's head.
        command: its shell command.
        environment: Ray's runtime environment.
        metadata: kept by Ray with the job, and shown to everybody who may use the cluster.
        job_id: its id.

    Raises:
        UserError: Ray refuses it.
    """
    client = connect(head)
    try:
        client.submit_job(entrypoint=command, runtime_env=environment, metadata=metadata, submission_id=job_id)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(_refused(error, head, environment.get("working_dir"), job_id)) from error


def job_variables(job_id: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables that every job gets, and that `--env` may replace."""
    return {JOB_VARIABLE: job_id, USER_VARIABLE: user_name(environ), STOP_VARIABLE: str(STOP_SECONDS)}


def metadata_of(arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata with which `list`, `resume` and `fetch` know a job. It holds no secrets."""
    known = {
        "user": user_name(environ),
        "command": shlex.join(arguments),
        "version": version("causalfusion-platform"),
        "run": run_of(arguments),
        "tracking": tracking_of(arguments),
        "folder": str(folder),
    }
    return {f"{PREFIX}{name}": value for name, value in known.items() if value is not None}


def next_commands(cluster: str, job: str) -> str:
    """Return the shell commands that show a job's log and state and stop it, one a line.

    Args:
        cluster: address of the head's dashboard, or a name of clusters.yaml.
        job: the job's id.
    """
    commands = {
        "log": job_command(cluster, "logs", job, "--follow"),
        "state": job_command(cluster, "list"),
        "stop": job_command(cluster, "stop", job),
    }
    return "\n".join(f"  {name + ':':7}{command}" for name, command in commands.items())


def entrypoint(arguments: Sequence[str]) -> str:
    """Return the shell command of the job.

    Raises:
        UserError: no arguments are given, or they begin with an option (a misspelt one of `submit`).
    """
    if not arguments:
        raise UserError(
            "nothing to submit: the command is missing after --\n"
            "  for example: causalfusion submit -- train quickstart name=first"
        )
    if arguments[0].startswith("-"):
        raise UserError(
            f"submit has no option {arguments[0]!r}; its options come before --, the command after it\n"
            "  all options: causalfusion submit --help"
        )
    return shlex.join([*PROGRAM, *arguments])


def check_working_dir(working_dir: Path) -> Path:
    """Return the absolute path of the folder to send.

    Raises:
        UserError: it is not a folder, or it is a home directory or the file system's root.
    """
    folder = expanded(working_dir).absolute()
    if not folder.is_dir():
        raise UserError(f"--working-dir {str(working_dir)!r} is not a folder; name the one to send to the job")
    if folder.resolve() in (expanded("~").resolve(), Path(folder.anchor)):
        raise UserError(
            f"--working-dir {str(folder)!r} would send all of it to the cluster\n"
            "  change to a project folder, or name one: causalfusion submit --working-dir FOLDER -- ..."
        )
    return folder


def job_home(option: str | None, head: Head) -> str:
    """Return the job's CAUSALFUSION_HOME, an absolute path on the cluster's nodes.

    Raises:
        UserError: a relative path for a cluster elsewhere, where it would be lost with the job's folder.
    """
    if option is None:
        return str(Path.cwd()) if head.on_this_host else CLUSTER_HOME
    if head.on_this_host:
        return str(expanded(option).absolute())
    if not option.startswith("/"):
        raise UserError(
            f"--home {option!r} is not an absolute path; on a cluster elsewhere it must be one\n"
            f"  name a folder that every node mounts, such as {CLUSTER_HOME}"
        )
    return option


def runtime_env(working_dir: Path, head: Head, home: str) -> dict[str, Any]:
    """Return Ray's runtime environment for the job: the files it gets and the variables it sees."""
    variables = {HOME_VARIABLE: home}
    if is_checkout(working_dir):
        # Relative on purpose: Ray puts the unpacked folder in front and starts the driver and every worker
        # inside it, and Python makes these absolute at start-up. (RAY_RUNTIME_ENV_CREATE_WORKING_DIR is only
        # known while the environment is built: in env_vars it expands to nothing.)
        variables["PYTHONPATH"] = os.pathsep.join(("platform", "models"))
    if head.on_this_host:
        # A head started by path knows its own Python, but `python` in the job's shell would be another one.
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}${{PATH}}"
        # With two Rays on one host, workers would otherwise guess whose dashboard to ask.
        variables["RAY_API_SERVER_ADDRESS"] = head.address
    return {"working_dir": str(working_dir), "excludes": list(EXCLUDES), "env_vars": variables}


def is_checkout(folder: Path) -> bool:
    """Return True if `folder` is a source checkout of this project."""
    return all((folder / part).is_dir() for part in ("platform/causalfusion_platform", "models/causalfusion"))


def _refused(error: Exception, head: Head, folder: str | None, job_id: str) -> str:
    text = str(error)
    if "already exists" in text:
        return f"--job-id {job_id!r} is taken at {head.address}; choose another, or leave the option out"
    if "413" in text or "exceeds the maximum size" in text:
        return (
            f"--working-dir {folder!r} is too large to send; Ray takes about 100 MiB\n"
            "  list what the job does not need in a .rayignore file there (the form of .gitignore)"
        )
    last_line = (text.strip() or repr(error)).splitlines()[-1]
    return f"the Ray head at {head.address} refused the job: {last_line}"
