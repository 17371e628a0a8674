"""Tasks, which runs learn. `open_task` returns the one that an experiment names.

`task` is the interface, with a docstring for each thing that a task says. `class_to_image` is class-conditional
image generation, the paper's main system. `text_image` draws images from text and describes images. Both
build on `generation`. `finetune/` trains classifiers and captioners from their models. `captions` is the base of
tasks that learn captions. `activations` estimates the memory of models, and `final` keeps the tensors of a run's
end. Open `task` first.
"""

from __future__ import annotations

import importlib
import inspect

from ..config.errors import UserError
from ..config.schema import Experiment
from .class_to_image import ClassToImage
from .finetune import Captioning, Classification
from .task import Task, TaskContext, check_data
from .text_image import TextImage

__all__ = ["TASKS", "Task", "TaskContext", "check_data", "open_task"]

TASKS: dict[str, type[Task]] = {
    "class_to_image": ClassToImage,
    "text_image": TextImage,
    "classification": Classification,
    "captioning": Captioning,
}


def open_task(experiment: Experiment) -> Task:
    """Return the task of an experiment: one of `TASKS`, or `package.module:Class` of your own.

    Raises:
        UserError: there is none of that name.
    """
    name = experiment.task
    if name in TASKS:
        return TASKS[name](experiment)
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute) if attribute else None
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"task={name} cannot be imported: {error}\n"
            f"  modules are found in the directory of the command, and in folders of PYTHONPATH on every node\n"
            f"  allowed: {_allowed()}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Task)) or inspect.isabstract(kind):
        raise UserError(f"task={name} is not a task\n  allowed: {_allowed()}")
    return kind(experiment)


def _allowed() -> str:
    return f"{', '.join(TASKS)}, or package.module:Class, a subclass of causalfusion_platform.tasks.Task"
