"""Faults at an exact point of a run: Python imports this in every process that finds it on PYTHONPATH.

The file named by CAUSALFUSION_TEST_FAULTS holds a list of faults, and may change while processes run:

    {"id": "…", "do": "SIGKILL", "rank": 1, "step": 6}           before that optimizer step (counted from 0)
    {"id": "…", "do": "nan", "rank": 1, "steps": [6, 7]}         that rank's images of these steps are NaN
    {"id": "…", "do": "SIGKILL", "before_manifest": 512}         when all but that checkpoint's manifest is there

With `"when": "<path>"` it waits until there is such a file or folder. A signal goes to `"pid"`, if given, or to the
process itself. Then it waits for `"pause"` seconds, a long step. With `"until_told": true` it waits no longer than
until the process has heard that it is to stop. Each fault happens once, over all processes and launches
(`<file>.<id>.<point>` is made first), but for `"again": true`. The product knows nothing of this: its functions are
wrapped when their modules are imported.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from typing import Any


def _faults() -> list[dict[str, Any]]:
    try:
        with open(os.environ["CAUSALFUSION_TEST_FAULTS"]) as file:  # noqa: PTH123
            faults: list[dict[str, Any]] = json.load(file)
            return faults
    except (OSError, ValueError):
        return []


def _claim(fault: dict[str, Any], point: object) -> bool:
    if fault.get("again"):
        return True
    try:
        name = f"{os.environ['CAUSALFUSION_TEST_FAULTS']}.{fault['id']}.{point}"
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _strike(fault: dict[str, Any]) -> None:
    while "when" in fault and not os.path.exists(fault["when"]):  # noqa: PTH110
        time.sleep(0.01)
    os.kill(fault.get("pid", os.getpid()), getattr(signal, fault["do"]))
    until = time.monotonic() + fault.get("pause", 0)
    while time.monotonic() < until and not (fault.get("until_told") and _controls[-1].stop_wanted()):
        time.sleep(0.02)


_controls: list[Any] = []
"""Those that training loops of this process ask whether to stop."""


def _wrap_control(module: Any) -> None:
    original = module.StopHook.__init__

    def __init__(self: Any, control: Any, *arguments: Any) -> None:
        _controls.append(control)
        original(self, control, *arguments)

    module.StopHook.__init__ = __init__


def _wrap_loop(module: Any) -> None:
    import torch

    original = module.TrainLoop.train_step

    def train_step(self: Any, ready: Any) -> Any:
        step = self.state.step
        for fault in _faults():
            due = step == fault.get("step") or step in fault.get("steps", ())
            if due and torch.distributed.get_rank() == fault.get("rank", 0) and _claim(fault, step):
                if fault["do"] == "nan":
                    ready.step.batch.latents.fill_(float("nan"))
                else:
                    _strike(fault)
        return original(self, ready)

    module.TrainLoop.train_step = train_step


def _wrap_store(module: Any) -> None:
    original = module.write_manifest

    def write_manifest(folder: Any, facts: Any, files: Any) -> Any:
        for fault in _faults():
            if fault.get("before_manifest") == facts.images_seen and _claim(fault, facts.images_seen):
                _strike(fault)
        return original(folder, facts, files)

    module.write_manifest = write_manifest


_WRAPPERS = {
    "causalfusion_platform.train.control": _wrap_control,
    "causalfusion_platform.train.loop": _wrap_loop,
    "causalfusion_platform.checkpoint.store": _wrap_store,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in _WRAPPERS:
            return None
        sys.meta_path.remove(self)
        try:
            spec: Any = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            _WRAPPERS[name](module)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Wrap what is imported already, and what will be."""
    for name, wrap in _WRAPPERS.items():
        if name in sys.modules:
            wrap(sys.modules[name])
    sys.meta_path.insert(0, _AfterImport())


if "CAUSALFUSION_TEST_FAULTS" in os.environ:
    install()
