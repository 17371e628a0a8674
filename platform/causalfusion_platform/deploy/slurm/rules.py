"""Check scripts of Slurm."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from ..text_rules import dashboard_for_others, no_ray_stop, ray_command, written_secrets


def check_script(name: str, text: str) -> Iterator[str]:
    """Check a script of Slurm: its syntax, its options, and the rules of this project."""
    if shutil.which("bash"):
        parsed = subprocess.run(["bash", "-n"], input=text, capture_output=True, encoding="utf-8", timeout=20)
        if parsed.returncode:
            yield f"{name}: not a script: {parsed.stderr.strip()}"
    options = dict(
        (line.removeprefix("#SBATCH --").partition("=")[::2])
        for line in text.splitlines()
        if line.startswith("#SBATCH ")
    )
    for needed in ("job-name", "nodes", "cpus-per-task", "mem", "time", "signal", "requeue", "output"):
        if needed not in options:
            yield f"{name}: #SBATCH --{needed} is missing"
    if not options.get("signal", "").startswith("B:USR1@"):
        yield f"{name}: --signal={options.get('signal', '')}: only B:USR1@SECONDS lets a run write its checkpoint"
    if options.get("ntasks-per-node") != "1":
        yield f"{name}: --ntasks-per-node is not 1: each task would start another Ray on the node"
    if "umask 077" not in text:
        yield f"{name}: without `umask 077` others can read the token's file"
    if "SLURM_JOB_ID" not in text:
        yield f"{name}: ports do not come from the job's id: two jobs on one node would meet"
    for line in text.splitlines():
        if re.search(r"(^|[;&|({{ ])ray start\b", line) and "${common[@]}" not in line:
            yield from ray_command(name, line)
    if "RAY_AUTH_MODE=token" not in text:
        yield f"{name}: RAY_AUTH_MODE=token is missing: whoever reaches a port would command this Ray"
    yield from dashboard_for_others(name, text)
    yield from no_ray_stop(name, text)
    yield from written_secrets(name, text)
