"""What commands import: an answer that needs no Ray, DeepSpeed or MLflow does not wait for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import run_environment

COMMANDS = ["--help", "config show quickstart", "train smoke --dry-run"]
HEAVY = {"deepspeed", "diffusers", "matplotlib", "mlflow", "optuna", "pandas", "ray", "sklearn"}
CODE = """
import contextlib, importlib, io, json, sys
from causalfusion_platform.cli.main import main
loaded = []
for command in sys.argv[1:]:
    sys.argv = ["causalfusion", *command.split()]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main()
    assert len(said.getvalue()) > 100, command
    loaded.append(sorted(name for name in sys.modules if "." not in name))
for module in ("train", "launch", "worker"):
    importlib.import_module(f"causalfusion_platform.launch.training.{module}")
print(json.dumps([*loaded, sorted(sys.modules)]))
"""


def test_commands_import_what_they_need(own_folder: Path) -> None:
    """In one interpreter: a command has what those before it have loaded. Last, the modules of a local run."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *COMMANDS],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=own_folder,
        env=run_environment(),
    )
    assert done.returncode == 0, done.stderr
    loaded = [set(names) for names in json.loads(done.stdout.splitlines()[-1])]
    assert not loaded[0] & {*HEAVY, "torch", "hydra", "numpy", "pyarrow"}
    for command, names in zip([*COMMANDS, "train smoke --local"], loaded, strict=True):
        assert not names & HEAVY, command
