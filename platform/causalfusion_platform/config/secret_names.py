"""Names of environment variables that hold secrets, and secrets in texts that others will see."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .secrets import SHORTEST

# A variable that ends so names a file, which holds the secret.
_FILES = ("FILE", "PATH", "DIR")
_WORDS = ("KEY", "KEYS", "PASS", "PAT", "PWD", "CREDENTIAL", "CREDENTIALS", "SECRET", "SECRETS")
_ENDINGS = ("TOKEN", "TOKENS", "PASSWORD", "PASSWD", "PASSPHRASE", "APIKEY", "SECRET")
_VARIABLE = re.compile(r"\$\{oc\.env:[^}]*\}")
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s'\"]*[^/?#\s'\":@][^/?#\s'\"]*@")


def is_secret_name(name: str) -> bool:
    """Say whether an environment variable of this name holds a secret, such as MLFLOW_TRACKING_PASSWORD.

    The name of a file with a secret, such as RAY_AUTH_TOKEN_PATH, is not one. Neither is PWD, the shell's folder.
    """
    words = name.upper().split("_")
    if words[-1] in _FILES or words == ["PWD"]:
        return False
    return any(word in _WORDS or word.endswith(_ENDINGS) for word in words)


def secret_in(text: str, environ: Mapping[str, str]) -> str | None:
    """Return a description of the first secret in a text, without its value. None: there is none.

    Args:
        text: such as an argument of a command.
        environ: environment with variables whose values must not be in the text.
    """
    if _CREDENTIALS.search(_VARIABLE.sub("", text)):
        return "a user or a password in an address"
    for name, value in environ.items():
        if len(value) >= SHORTEST and is_secret_name(name) and value in text:
            return f"the value of {name}"
    return None


def without_credentials(text: str) -> str:
    """Return a text with *** in place of users and passwords in its addresses."""

    def shown(found: re.Match[str]) -> str:
        return "***@" if _VARIABLE.sub("", found[0]).strip(":@") else found[0]

    return _CREDENTIALS.sub(shown, text)
