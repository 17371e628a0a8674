"""Warnings of libraries that a user can do nothing about, each with the reason to leave it out."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import MutableMapping

BEGINNINGS = {
    "`torch.distributed.all_gather_into_tensor` is deprecated": "DeepSpeed calls it",
    "The maximum number of concurrent tasks for": "a small data set has fewer windows than data.concurrency",
    "starlette.middleware.wsgi is deprecated": "MLflow's server uses it",
    "Consider boosting PBT performance by enabling `reuse_actors`": "the process of a member holds its training",
}
"""Beginning of a warning → reason. No commas and no colons: they also go into an environment variable."""

LOGGED = {
    "DeepSpeed": (
        "**** You are using ZeRO with an untested optimizer",
        "the optimizers are meant to be torch's, and tests compare them at every ZeRO stage",
    ),
}
"""Name of a logger → beginning of a message, and the reason."""

LEVELS = {
    "alembic": (logging.WARNING, "MLflow logs each migration of its database"),
    "mlflow.store.db.utils": (logging.CRITICAL, "its errors are raised as well"),
    "urllib3.connectionpool": (logging.ERROR, "retries are counted by the delivery of records"),
    "PIL": (logging.CRITICAL, "faults of images become findings"),
}
"""Name of a logger → the lowest level that is printed, and the reason."""

_VARIABLE = "PYTHONWARNINGS"


def leave_out(environ: MutableMapping[str, str] = os.environ) -> None:
    """Leave the warnings out in this process, and in those that it starts: a local Ray's workers, MLflow's server.

    Processes of a Ray cluster that was there before call this themselves. What the user asks for in PYTHONWARNINGS
    comes first.
    """
    known = [f"ignore:{beginning}" for beginning in BEGINNINGS]
    asked = [entry for entry in environ.get(_VARIABLE, "").split(",") if entry and entry not in known]
    environ[_VARIABLE] = ",".join([*known, *asked])  # of two entries that match, the later one counts
    for beginning in BEGINNINGS:
        warnings.filterwarnings("ignore", message=re.escape(beginning), append=True)
    # Faults of images become findings. Before the user's filters: an error in place of a warning would change them.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for name, (level, _) in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name, (beginning, _) in LOGGED.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _LeftOut) for one in logger.filters):
            logger.addFilter(_LeftOut(beginning))


class _LeftOut(logging.Filter):
    """Filter of one message."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for the message that is left out."""
        return not record.getMessage().startswith(self.beginning)
