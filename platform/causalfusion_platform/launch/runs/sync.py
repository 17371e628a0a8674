"""Deliver the records of runs that MLflow has not received."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ...config.errors import UserError
from ...tracking.mlflow import answers
from .folder import RunFolder

logger = logging.getLogger(__name__)


def sync_run(run: RunFolder, *, seconds: float = 600, show: Callable[[int, int], None] = lambda *_: None) -> int:
    """Deliver the records that a run which is not under way has left, in order. Return their number.

    `show` is called with the number delivered, and that of all.

    Raises:
        UserError: the run does not exist, is under way (and delivers itself), or MLflow does not take them.
    """
    _ = run.started
    run.refuse_if_under_way()
    with run.lock():
        state = run.started
        address = state.address
        delivery = run.delivery()
        waiting = delivery.pending()
        reason = answers(address)
        if waiting and reason is not None:
            raise UserError(
                f"MLflow does not answer at {state.tracking_uri}: {reason}\n"
                f"  {waiting} records wait in {run.root}; give the same command when it is back"
            )
        delivery.start()
        try:
            left = delivery.drain(seconds, lambda left: show(max(waiting - left, 0), waiting))
        finally:
            delivery.stop()
        if left:
            raise UserError(f"{left} of {waiting} records could not be delivered: {delivery.state}")
        if delivery.refused():
            logger.info(delivery.state)
    return waiting
