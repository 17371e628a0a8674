"""`causalfusion doctor`: checks that an experiment can run here. Every check tries the operation itself.

`machine`, `task`, `storage`, `services` and `step` hold the checks, `check` the result of one. Open `diagnose`
below first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...config.schema import Experiment
from .check import Check
from .machine import check_compiler, check_gpu, check_memory, check_python, check_versions
from .services import check_ports, check_ray, check_token
from .step import check_step
from .storage import check_disk, check_mlflow, check_shards, check_storage
from .task import check_task

_NEED_THE_TASK = ("disk", "shards", "memory", "dry step")


def diagnose(
    experiment: Experiment, ray_address: str | None, begin: Callable[[str, int, int], None] = lambda *_: None
) -> Iterator[Check]:
    """Make every check, one after the other. One that breaks off is a failure, and the others go on.

    Checks that need the task are left out if it cannot be opened.

    Args:
        experiment: what is to run.
        ray_address: RAY_ADDRESS, the cluster that it is to run on. None: this machine.
        begin: called before each check with its name, the number of those before it, and of all.
    """
    elsewhere = ray_address not in (None, "local")
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", check_python),
        ("packages", check_versions),
        ("compiler", lambda: check_compiler(experiment)),
        ("GPU", lambda: check_gpu(experiment, elsewhere=elsewhere)),
        ("task", lambda: check_task(experiment)),
        ("storage", lambda: check_storage(experiment)),
        ("disk", lambda: check_disk(experiment)),
        ("shards", lambda: check_shards(experiment)),
        ("MLflow", lambda: check_mlflow(experiment)),
        ("Ray token", check_token),
        ("Ray cluster", lambda: check_ray(experiment, ray_address)),
        ("ports", check_ports),
        ("memory", lambda: check_memory(experiment, elsewhere=elsewhere)),
        ("dry step", lambda: check_step(experiment)),
    ]
    failed: set[str] = set()
    for number, (name, check) in enumerate(checks):
        if "task" in failed and name in _NEED_THE_TASK:
            continue
        begin(name, number, len(checks))
        try:
            found = check()
        except Exception as error:  # whatever a broken machine raises
            found = Check(name, "FAIL", f"the check broke off: {type(error).__name__}: {error}")
        if found.verdict == "FAIL":
            failed.add(name)
        yield found
