"""Deliver to MLflow what runs recorded while it was away."""

from __future__ import annotations

import logging
from pathlib import Path

from ...assemble import SPOOL_FOLDER
from ...config.errors import UserError
from ...tracking.courier import Courier
from ...tracking.mlflow import answers
from .folder import read_state
from .lock import only_launch, refuse_if_under_way

logger = logging.getLogger(__name__)


def sync_run(run_dir: Path, *, seconds: float = 600) -> int:
    """Deliver the records that a run which is not under way has left, in order; return how many there were.

    Raises:
        UserError: there is no such run, it is under way (and delivers them itself), or MLflow does not take them.
    """
    state = read_state(run_dir)
    if state is None:
        raise UserError(f"{run_dir} is no folder of a run\n  list them: causalfusion runs list")
    refuse_if_under_way(run_dir)
    with only_launch(run_dir):
        ids: list[str] = []
        courier = Courier(
            run_dir / SPOOL_FOLDER, state.tracking_uri, run_id=state.mlflow_run_id, on_run_id=ids.append
        )
        waiting = courier.pending()
        reason = answers(state.tracking_uri)
        if waiting and reason is not None:
            raise UserError(
                f"MLflow does not answer at {state.tracking_uri}: {reason}\n"
                f"  {waiting} records wait in {courier.folder}; give the same command when it is back"
            )
        courier.start()
        left = courier.drain(seconds)
        courier.stop()
        if ids:
            state.model_copy(update={"mlflow_run_id": ids[-1]}).write(run_dir)
        if left:
            raise UserError(f"{left} of {waiting} records could not be delivered: {courier.state}")
        if courier.refused():
            logger.info(courier.state)
    return waiting
