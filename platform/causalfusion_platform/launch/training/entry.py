"""Entry point of Ray Train in a worker process. Light to import: Ray's controller imports it too."""

from __future__ import annotations

from typing import Any


def enter_worker(arguments: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker. Its heavy imports happen in the workers, not in Ray's controller.

    Args:
        arguments: `job`, a Job as JSON, and `actor`, the ProgressActor actor.
    """
    from ...assemble import Job
    from ...library_warnings import leave_out
    from .worker import ray_worker

    leave_out()
    ray_worker(Job.model_validate_json(arguments["job"]), arguments["actor"])
