"""`make soak`: kill processes at random, repeat the same commands, and compare the ends with undisturbed ones.

`make soak ARGS="--minutes 60 --seed 7 --only train,sweep"` says how long, with which kills, and what.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

from .kills import Kill, launch
from .scenarios import SCENARIOS, Scenario

KILLS = 10
"""Kills of a soak of the usual length, shared among the scenarios in turn."""
_LAUNCHES = 12
"""Launches of one disturbed scenario before it counts as never ending."""


def disturb(scenario: Scenario, home: Path, kills: int, draw: random.Random, seconds: float) -> list[str]:
    """Launch a scenario until it ends by itself, with some launches disturbed. Return what was found."""
    found = []
    for number in range(_LAUNCHES):
        kill = Kill.drawn(scenario.targets, seconds, draw) if number < kills else None
        end = launch(scenario.command(home), home, kill)
        print(f"    {end}", flush=True)
        if end.traceback:
            found.append(f"{scenario.name}: a traceback: {end.traceback}")
        if end.status == 0 and (kill is None or not kill.done):
            return found
        if end.status not in (0, 3, 75, -9) or (end.status != 0 and not (kill and kill.done)):
            found.append(f"{scenario.name}: exit status {end.status}: {end.tail}")
    return [*found, f"{scenario.name}: did not end in {_LAUNCHES} launches"]


def soak(home: Path, minutes: float, seed: int, only: list[str]) -> list[str]:
    """Disturb each scenario in turn until the time is up. Return all findings."""
    draw, end, found, rounds = random.Random(seed), time.monotonic() + 60 * minutes, list[str](), 0
    chosen = [scenario for scenario in SCENARIOS if scenario.name in only]
    quiet: dict[str, tuple[dict[str, object], float]] = {}
    done = 0
    while time.monotonic() < end and done < KILLS:
        for scenario in chosen:
            if time.monotonic() >= end:
                break
            if scenario.name not in quiet:
                folder = home / "quiet" / scenario.name
                scenario.prepare(folder, home)
                started = time.monotonic()
                undisturbed = launch(scenario.command(folder), folder, None)
                print(f"{scenario.name} undisturbed: {undisturbed}", flush=True)
                if undisturbed.status != 0:
                    found.append(f"{scenario.name}: undisturbed, it ended with {undisturbed.status}")
                    chosen = [one for one in chosen if one is not scenario]
                    continue
                quiet[scenario.name] = (scenario.state(folder), time.monotonic() - started)
            reference, seconds = quiet[scenario.name]
            folder = home / f"round-{rounds}" / scenario.name
            scenario.prepare(folder, home)
            kills = draw.randint(1, 3)
            done += kills
            print(f"{scenario.name}, {kills} kills", flush=True)
            found += disturb(scenario, folder, kills, draw, seconds)
            state = scenario.state(folder)
            found += [
                f"{scenario.name}: {key}: undisturbed {_short(reference.get(key))}, now {_short(state.get(key))}"
                for key in sorted({*reference, *state})
                if reference.get(key) != state.get(key)
            ]
        rounds += 1
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:100]} … {text[-90:]}"


def main() -> int:
    """Run the soak and print its seed and its findings. Return 1 if there are any."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="no scenario begins after this time")
    parser.add_argument("--seed", type=int, default=None, help="of the kills; printed")
    parser.add_argument("--only", default=",".join(names), help=f"some of {', '.join(names)}")
    given = parser.parse_args()
    only = given.only.split(",")
    if strange := {*only} - {*names}:
        parser.error(f"{', '.join(strange)} is none of {', '.join(names)}")
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(Path(folder), given.minutes, seed, only)
    for line in found:
        print(f"FOUND {line}")
    print(f"seed {seed}: {len(found)} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
