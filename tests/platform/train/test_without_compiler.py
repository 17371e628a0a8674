"""Optimizers without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import run_environment

CODE = """
import sys, torch
from causalfusion_platform.train.optimizer import GuardedAdamW
from causalfusion_platform.train.without_compiler import leave_compiler_out
leave_compiler_out()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = GuardedAdamW([weight], clip_norm=None, lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    (weight**2).sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert not {name for name in ("torch._dynamo", "sympy") if name in sys.modules}
other = torch.nn.Parameter(torch.ones(3))  # by torch's own step, which imports the compiler
reference = torch.optim.AdamW([other], lr=0.1)
for _ in range(2):
    reference.zero_grad()
    (other**2).sum().backward()
    reference.step()
assert "torch._dynamo" in sys.modules
assert torch.equal(weight, other) and not torch.equal(other, torch.ones(3))
assert weight.requires_grad and torch.is_grad_enabled()
"""


def test_steps_need_no_compiler_and_are_torchs(own_folder: Path) -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=300, cwd=own_folder, env=run_environment())
