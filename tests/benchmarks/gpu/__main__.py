"""`make bench-gpu`: measure one GPU. Without a GPU, or with `--tiny`, go through every section on the CPU."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from causalfusion import CausalFusionConfig, preset

from . import attention, ceilings, sampling, training
from .card import facts_of
from .ceilings import Ceilings
from .deadline import Deadline, OutOfTime
from .report import Report
from .steps import Size

SECTIONS = ("ceilings", "training L", "sampling", "attention", "training XL", "training H")
"""In the order of their worth, since the last ones may find no time left."""
_SECONDS = {
    "ceilings": 30,
    "training L": 200,
    "sampling": 110,
    "attention": 70,
    "training XL": 120,
    "training H": 120,
}


@dataclass(frozen=True)
class Plan:
    """Sizes of all measurements."""

    size: Size
    cases: sampling.Cases
    tiny: bool

    def config(self, name: str) -> CausalFusionConfig:
        """Return the model of a name, or in a rehearsal a small one of the same kind."""
        small = {"input_size": 8, "in_channels": 4, "patch_size": 1, "class_tokens": 16}
        config = preset("tiny", **small) if self.tiny else preset(f"{name}-system-256")
        assert isinstance(config, CausalFusionConfig)
        return config


ON_A_GPU = Plan(
    size=Size(batch=64, steps=20, multiple=64),
    cases=sampling.Cases(images=(64, 8), ar_steps=(1, 16), diffusion_steps=(20, 250)),
    tiny=False,
)
TINY = Plan(
    size=Size(batch=2, steps=2, multiple=16),
    cases=sampling.Cases(images=(2, 1), ar_steps=(1, 2), diffusion_steps=(2, 3)),
    tiny=True,
)


def main(arguments: Sequence[str]) -> int:
    """Run the sections that were asked for. Return the exit status."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU: a rehearsal of every section")
    parser.add_argument("--budget", type=float, default=520, help="seconds for all sections (default: 520)")
    parser.add_argument("--out", type=Path, help="folder of bench-gpu.json (default: none is written)")
    parser.add_argument("--section", choices=SECTIONS, action="append", help="run this section; may be repeated")
    asked = parser.parse_args(arguments)
    tiny = asked.tiny or not torch.cuda.is_available()
    if tiny and not asked.tiny:
        print("no GPU found: small models on the CPU go through every section. No number says anything of a GPU.")
    device = torch.device("cpu" if tiny else "cuda")
    path = asked.out / "bench-gpu.json" if asked.out is not None else None
    report = Report(path, lambda line: print(line, flush=True))
    report.facts = facts_of(device) | {"rehearsal": tiny}
    run(report, TINY if tiny else ON_A_GPU, device, Deadline(asked.budget), asked.section or SECTIONS)
    print(report.text())
    print(report.json())
    return report.status


def run(report: Report, plan: Plan, device: torch.device, deadline: Deadline, asked: Sequence[str]) -> None:
    """Run the sections in their order, each within its own time and that of all."""
    reached: list[Ceilings] = []

    def one(name: str, own: Deadline) -> None:
        if name == "ceilings" or not reached:
            reached[:] = [ceilings.measure(report, device, plan.config("L"), own)]
        if name.startswith("training"):
            model = name.removeprefix("training ")
            training.measure(report, model, plan.config(model), plan.size, reached[0], device, own)
        elif name == "sampling":
            sampling.measure(report, "L", plan.config("L"), plan.cases, reached[0], device, own)
        elif name == "attention":
            attention.measure(report, plan.config("L"), plan.size, device, own)

    for name in SECTIONS:
        if name in asked:
            section(report, name, deadline.within(_SECONDS[name]), one)


def section(report: Report, name: str, deadline: Deadline, work: Callable[[str, Deadline], None]) -> None:
    """Run one section. Neither its deadline nor an error of it keeps the next from running."""
    report.show(f"\n{name}")
    started = time.monotonic()
    ended, failed = "complete", False
    try:
        with deadline.enforced():
            deadline.check(1, name)
            work(name, deadline)
    except OutOfTime as late:
        ended = str(late)
    except Exception as error:
        traceback.print_exc()
        ended, failed = f"{type(error).__name__}: {error}"[:300], True
    report.section(name, time.monotonic() - started, ended, failed=failed)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
