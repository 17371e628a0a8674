"""Check of the experiment's task."""

from __future__ import annotations

from ...config.errors import UserError
from ...config.schema import Experiment
from ...tasks import open_task
from .check import Check


def check_task(experiment: Experiment) -> Check:
    """Import the task, and build its model without memory for the weights."""
    try:
        task = open_task(experiment)
    except UserError as error:
        return Check.failed("task", str(error))
    fields = ", ".join(task.fields)
    return Check("task", "ok", f"{experiment.task}: {task.size.parameters:,} parameters; reads {fields}")
