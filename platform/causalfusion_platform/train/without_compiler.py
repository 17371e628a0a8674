"""Optimizers of torch without the import of its compiler, which takes a second of CPU in each process."""

from __future__ import annotations

import sys

import torch


def leave_compiler_out() -> None:
    """Let the optimizers of this process work without `torch._dynamo`, unless it is imported already.

    Their methods import it at the first call, to exempt themselves from compilation. Nothing here compiles an
    optimizer. Call this where nothing is compiled.

    Private: the attribute under which `torch._compile` keeps the exempted function. Without it the import comes
    back.
    """
    if "torch._dynamo" in sys.modules:
        return
    for method in vars(torch.optim.Optimizer).values():
        function = getattr(method, "__wrapped__", None)
        if function is not None and getattr(method, "__globals__", {}).get("__name__") == "torch._compile":
            function.__dynamo_disable = function
