"""Rules for texts that start Ray, and for every rendered file: a token, no other user's Ray, no secret."""

from __future__ import annotations

import re
from collections.abc import Iterator


def ray_command(where: str, line: str) -> Iterator[str]:
    """Find faults of a command that may start Ray: no token, or a dashboard for other hosts."""
    yield from no_ray_stop(where, line)
    yield from dashboard_for_others(where, line)
    if "ray start" in line and "RAY_AUTH_MODE=token" not in line:
        yield f"{where}: `ray start` without RAY_AUTH_MODE=token: whoever reaches a port would command this Ray"


def dashboard_for_others(where: str, text: str) -> Iterator[str]:
    """Find dashboards that other hosts can reach."""
    for host in re.finditer(r"--dashboard-host[= ](\S+)", text):
        if host[1] not in ("127.0.0.1", "localhost"):
            yield f"{where}: --dashboard-host={host[1]}: only 127.0.0.1 is allowed; reach it through a tunnel"


def no_ray_stop(where: str, text: str) -> Iterator[str]:
    """Find commands that end other users' Ray."""
    if re.search(r"\bray stop\b", text):
        yield f"{where}: `ray stop` ends every Ray on the host, other users' too"
    if re.search(r"\bray symmetric-run\b", text):
        yield f"{where}: `ray symmetric-run` refuses beside another Ray, and ends with `ray stop`"


_TOKEN = re.compile(
    r"(?i)\b(RAY_AUTH_TOKEN|[A-Z_]*(?:PASSWORD|SECRET|ACCESS_KEY|API_KEY)[A-Z_]*)\s*[=:]\s*['\"]?(?![\"'$]|\s|$)[^\s'\"]+"
)
_CREDENTIALS = re.compile(r"[a-z+]+://[^\s/@'\"]+@")


def written_secrets(name: str, text: str) -> Iterator[str]:
    """Find values of secrets in a rendered file. They are not shown."""
    for number, line in enumerate(text.splitlines(), 1):
        found = _TOKEN.search(line)
        if found:
            yield f"{name}:{number}: {found[1]} is written out; name a file or a Secret"
        if _CREDENTIALS.search(line):
            yield f"{name}:{number}: an address with a user or a password; name a Secret"
