"""Send a `causalfusion` command to a running Ray head as a job, and follow it to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.errors import GAVE_UP, JOB_INTERRUPTED, JOB_STOPPED, STATUSES, UserError
from ...ray_private import JOB_CLIENT_LOGGERS
from ...storage.home import expanded
from .head import Head, find_head, resolve_address
from .session import dashboard_address

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CLUSTER_HOME = "/mnt/causalfusion"
"""Path at which a cluster's nodes are expected to mount the folder that outlives jobs."""

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

_POLL_S = 1.0
_LOST_AFTER_S = 60.0


def submit_job(
    arguments: Sequence[str],
    *,
    address: str | None = None,
    working_dir: Path = Path(),
    home: str | None = None,
    job_id: str | None = None,
    wait: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run `causalfusion ARGUMENTS` as a job of a Ray cluster and return the exit status to end with.

    The job's log goes to stdout, everything else to stderr. Without `wait`, stdout gets the job's id alone.

    Args:
        arguments: command line of `causalfusion` without its first word, such as ["train", "quickstart"].
        address: URL of the head's dashboard. None reads the environment, see `resolve_address`.
        working_dir: folder sent along, the job's current directory. A source checkout runs as it is sent.
        home: the job's CAUSALFUSION_HOME. None: this directory for a head on this host, else CLUSTER_HOME.
        job_id: the job's submission id, unique in the cluster. None lets Ray choose.
        wait: follow the job to its end.
        environ: environment to read addresses and the token from.

    Returns:
        0 if the job succeeded, its driver's exit code if it failed (GAVE_UP if that is not one of `STATUSES`),
        JOB_STOPPED if it was stopped, JOB_INTERRUPTED if following was interrupted here. Without `wait`: 0 once
        submitted.

    Raises:
        UserError: nothing to run, no Ray head at the address, no accepted token, or a refused job.
    """
    command = entrypoint(arguments)
    folder = check_working_dir(working_dir)
    head = find_head(resolve_address(address, environ), environ)
    home = job_home(home, head)
    client = _connect(head)
    _say(f"sending {folder} to {head.address}")
    try:
        job = client.submit_job(
            entrypoint=command, runtime_env=runtime_env(folder, head, home), submission_id=job_id
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(_refused(error, head, folder, job_id)) from error
    hints = ray_commands(head, job, environ)
    _say(f"job {job} is submitted to {head.address}; its results go to {home} (CAUSALFUSION_HOME)\n{hints}")
    if not wait:
        print(job, flush=True)
        return 0
    try:
        return _follow(client, job, hints)
    except KeyboardInterrupt:
        _say(f"\nno longer following; job {job} goes on\n{hints}")
        return JOB_INTERRUPTED


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
    return shlex.join(["python", "-m", "causalfusion_platform", *arguments])


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
    variables = {"CAUSALFUSION_HOME": home}
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


def ray_commands(head: Head, job: str, environ: Mapping[str, str]) -> str:
    """Return the shell commands that show the job's log and status and stop it, one a line."""
    settings = []
    if head.token is not None and environ.get("RAY_AUTH_MODE") != "token":
        settings.append("RAY_AUTH_MODE=token")
    if (environ.get("RAY_API_SERVER_ADDRESS") or environ.get("RAY_ADDRESS") or head.address) != head.address:
        # For Ray's own commands the environment wins over --address.
        settings.append(f"RAY_API_SERVER_ADDRESS={head.address}")
    verbs = {"log": "logs --follow", "status": "status", "stop": "stop"}
    where = f"--address {head.address} {shlex.quote(job)}"
    return "\n".join(
        f"  {name + ':':8}" + " ".join([*settings, "ray job", verb, where]) for name, verb in verbs.items()
    )


def exit_status(status: str, driver_exit_code: int | None) -> int:
    """Return the exit status for a job that has ended with Ray's `status`."""
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return JOB_STOPPED
    code = driver_exit_code or GAVE_UP
    code = code if code > 0 else 128 - code  # -N: ended by signal N
    return code if code in STATUSES else GAVE_UP


def _connect(head: Head) -> JobSubmissionClient:
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for name in JOB_CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)  # the user does not need to know their steps
    headers = {"Authorization": f"Bearer {head.token}"} if head.token else None
    try:
        with dashboard_address(head.address):
            return JobSubmissionClient(head.address, headers=headers)
    except RayError as error:  # only for a head that asks for no token: ours is a header of its own
        raise UserError(
            f"RAY_AUTH_MODE is token here, but there is no token; the head at {head.address} asks for none\n"
            "  unset RAY_AUTH_MODE, or set it to disabled"
        ) from error
    except (RuntimeError, OSError) as error:
        raise UserError(f"the Ray head at {head.address} does not take jobs: {error}") from error


def _follow(client: JobSubmissionClient, job: str, hints: str) -> int:
    """Print the job's log until it has ended. A broken connection is taken up where it broke."""
    printed, lost_since = 0, None
    while True:
        try:
            printed, failure = asyncio.run(_print_log(client, job, printed))
            details = client.get_job_info(job)
            if details.status.is_terminal():
                if failure is None:
                    break
            else:
                lost_since = None  # the head is there; only the log's stream had broken
        except BrokenPipeError:
            raise  # whoever read our output has gone
        except (RuntimeError, OSError) as error:
            failure = error
        if failure is not None:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _LOST_AFTER_S:
                raise UserError(f"lost the Ray head while following job {job}: {failure}\n{hints}")
        time.sleep(_POLL_S)
    code = exit_status(str(details.status.value), details.driver_exit_code)
    if code and details.driver_exit_code is None and details.message:
        _say(details.message)  # it never started, so that no log holds the reason
    ended = details.driver_exit_code or code
    _say(f"job {job} {details.status.value.lower()}" + (f" with exit status {ended}" if code else ""))
    return code


async def _print_log(client: JobSubmissionClient, job: str, skip: int) -> tuple[int, Exception | None]:
    """Print the log without its first `skip` characters.

    Returns:
        The number of characters printed by now, and what broke the stream before the log's end, if anything.
    """
    from aiohttp import ClientError

    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            # Every stream begins with the log's first character.
            print(text[max(skip - seen, 0) :], end="", flush=True)
            seen += len(text)
    except BrokenPipeError:
        raise
    except (ClientError, RuntimeError, OSError) as error:
        return max(seen, skip), error
    return max(seen, skip), None


def _refused(error: Exception, head: Head, folder: Path, job_id: str | None) -> str:
    text = str(error)
    if job_id and "already exists" in text:
        return f"--job-id {job_id!r} is taken at {head.address}; choose another, or leave the option out"
    if "413" in text or "exceeds the maximum size" in text:
        return (
            f"--working-dir {str(folder)!r} is too large to send; Ray takes about 100 MiB\n"
            "  list what the job does not need in a .rayignore file there (the form of .gitignore)"
        )
    last_line = (text.strip() or repr(error)).splitlines()[-1]
    return f"the Ray head at {head.address} refused the job: {last_line}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
