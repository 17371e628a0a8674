"""Environment variables of a job. Ray shows them, and the command line, to everybody who may use the cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ...config.errors import UserError
from ...config.files import HOME_VARIABLE
from ...config.job_end import JOB_VARIABLE
from ...config.owner import USER_VARIABLE
from ...config.secret_names import is_secret_name, secret_in

STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds from SIGTERM to SIGKILL when Ray stops a job. Ray reads it from the job's variables."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN = {
    HOME_VARIABLE: "give it with --home",
    USER_VARIABLE: f"set {USER_VARIABLE} in your own environment",
    JOB_VARIABLE: "give the job's id with --job-id",
    "PATH": "submit sets it for a head on this machine; elsewhere the nodes have their own",
    "PYTHONPATH": "submit sets it for a source checkout; elsewhere put the packages into the image",
    "RAY_ADDRESS": "Ray sets it in every job",
    "RAY_API_SERVER_ADDRESS": "name the cluster with --address",
}
_WHERE = (
    "  Ray keeps a job's variables and command, and shows them to everybody with the cluster's token\n"
    "  set it where the nodes start: in a Secret that the cluster's file names, or with export before ray start\n"
    "  a configuration takes it from there: tracking.uri='${oc.env:MLFLOW_TRACKING_URI}'"
)


def given_variables(options: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `--env`.

    Args:
        options: each NAME=VALUE, or NAME to take the value from `environ`.
        environ: environment of this command.

    Raises:
        UserError: a name is not one, is not set, is set by `submit` itself, or its value is a secret.
    """
    found: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not _NAME.fullmatch(name):
            raise UserError(f"--env {name!r:.80} is not the name of a variable\n  give NAME=VALUE, or NAME")
        if name in _OWN:
            raise UserError(f"--env {name} cannot be given: {_OWN[name]}")
        if is_secret_name(name):
            raise UserError(f"--env {name} is a secret by its name, and would be shown to others\n{_WHERE}")
        if not equals:
            if name not in environ:
                raise UserError(
                    f"--env {name}: this variable is not set here\n  set it, or give --env {name}=VALUE"
                )
            value = environ[name]
        if (secret := secret_in(value, environ)) is not None:
            raise UserError(f"the value of --env {name} holds {secret}, which would be shown to others\n{_WHERE}")
        if name == STOP_VARIABLE and not value.isdecimal():
            raise UserError(f"--env {name}={value!r:.40} is not a number of seconds, such as 600")
        found[name] = value
    return found


def refuse_secrets(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Check that the command line of a job shows no secret.

    Raises:
        UserError: an argument holds a password in an address, or the value of a variable such as AWS_SESSION_TOKEN.
    """
    for argument in arguments:
        if (secret := secret_in(argument, environ)) is not None:
            name = argument.partition("=")[0] if "=" in argument else "an argument"
            raise UserError(f"{name} holds {secret}, which would be shown to others\n{_WHERE}")
