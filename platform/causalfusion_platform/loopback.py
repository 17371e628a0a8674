"""Connections to this machine itself, which go around any proxy of the environment."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# urllib compares an IPv6 address with its brackets, requests without them.
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_NAMES = ("no_proxy", "NO_PROXY")


def bypass_proxy(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keep proxies of the environment from connections to this machine, here and in processes started from here.

    Adds `LOOPBACK` to the hosts that the user excludes. Nothing changes if the environment names no proxy.
    """
    if not any(value and key.lower().endswith("_proxy") and key not in _NAMES for key, value in environ.items()):
        return
    given = [environ.get(name, "") for name in _NAMES]
    # Programs read one of the two names, most of them lower case first.
    for name, value, other in zip(_NAMES, given, reversed(given), strict=True):
        hosts = [host.strip() for host in (value or other).split(",") if host.strip()]
        if "*" not in hosts:  # it stands for all hosts, but only alone
            hosts += [host for host in LOOPBACK if host not in hosts]
        environ[name] = ",".join(hosts)
