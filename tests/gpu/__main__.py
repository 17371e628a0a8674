"""`make test-gpu`: train, resume and sample on one GPU. Without a GPU, or with `--tiny`, on the CPU."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from . import model, program


def main(arguments: Sequence[str]) -> int:
    """Make all checks. Return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="make test-gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="few steps on the CPU: a rehearsal")
    parser.add_argument("--only", choices=("model", "program"), help="make these checks alone")
    parser.add_argument("--seconds", type=float, default=150, help="time for each command (default: 150)")
    asked = parser.parse_args(arguments)
    tiny = asked.tiny or not torch.cuda.is_available()
    if tiny and not asked.tiny:
        print("no GPU found: few steps on the CPU go through every check")
    device = torch.device("cpu" if tiny else "cuda")
    amount = model.Amount(24, 16, compared=4) if tiny else model.Amount(600, 64, compared=20)
    started, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        if asked.only != "program":
            outcomes += model.check(device, amount, Path(folder) / "model")
        if asked.only != "model":
            outcomes += program.check(device, asked.seconds, Path(folder), images=256 if tiny else program.IMAGES)
    print("", *outcomes, f"{time.monotonic() - started:.0f} s", sep="\n")
    print(json.dumps([asdict(outcome) for outcome in outcomes], ensure_ascii=False))
    return int(not all(outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
