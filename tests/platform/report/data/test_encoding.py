"""What a person sees of an encoding: on a terminal, in a log file, and at its end."""

from __future__ import annotations

import logging
import re

import pytest
from tests.platform.report.screen import Clock, Screen

from causalfusion_platform.data.encode.progress import EncodingCounter, EncodingProgress
from causalfusion_platform.data.encode.records import Fault, count_faults
from causalfusion_platform.data.manifest import AutoencoderId, Manifest, Shard, SourceId
from causalfusion_platform.report.data.encoding import EncodingDisplay, encoding_panel
from causalfusion_platform.report.log import PLATFORM, log_to


def test_log_file_has_a_line_soon_then_every_ten_seconds_and_the_last(clock: Clock) -> None:
    screen = Screen()
    with log_to(screen.console), EncodingDisplay(screen.console) as display:
        logging.getLogger(PLATFORM).info("7 of 8 shards are finished and whole; 1 to do")
        display.show(EncodingProgress(0, 2000, 0.0, {}))
        for second in range(1, 36):
            clock.now = 100.0 + second
            display.show(EncodingProgress(50 * second, 2000, 50.0, {}))
        display.show(EncodingProgress(2000, 2000, 50.0, {"cmyk": 2}))
        display.show(EncodingProgress(2000, 2000, 50.0, {"cmyk": 2}))
    assert screen.lines == [
        "7 of 8 shards are finished and whole; 1 to do",
        "encode 150/2000 images  50.0 images/s  ETA 0:37",
        "encode 650/2000 images  50.0 images/s  ETA 0:27",
        "encode 1150/2000 images  50.0 images/s  ETA 0:17",
        "encode 1650/2000 images  50.0 images/s  ETA 0:07",
        "encode 2000/2000 images  50.0 images/s  ETA 0:00  2 cmyk",
    ]


def test_the_first_kinds_of_faults_are_named(clock: Clock) -> None:
    screen = Screen()
    faults = {"gray8": 9, "cmyk": 5, "tiny": 5, "truncated": 2, "huge": 1}
    with log_to(screen.console), EncodingDisplay(screen.console) as display:
        display.show(EncodingProgress(10, 10, 1.5, faults))
    assert screen.lines == ["encode 10/10 images  1.5 images/s  ETA 0:00  9 gray8, 5 cmyk, 5 tiny, 3 others"]


def test_terminal_shows_one_line_that_moves() -> None:
    screen = Screen(force_terminal=True, color_system=None)
    with log_to(screen.console), EncodingDisplay(screen.console) as display:
        display.bar.refresh()
        display.show(EncodingProgress(0, 2000, 0.0, {}))
        display.show(EncodingProgress(500, 2000, 50.0, {"cmyk": 1}))
        logging.getLogger(PLATFORM).info("[red] is not markup")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", screen.file.getvalue().replace("\r", "\n"))
    lines = [line.rstrip() for line in shown.splitlines()]
    assert any(line.startswith("encode") and line.endswith("source, autoencoder, Ray  0:00") for line in lines)
    assert any(line.startswith("encode ") and "25% 50.0 images/s  ETA 0:30  1 cmyk" in line for line in lines)
    assert "[red] is not markup" in lines
    assert not any("500/2000" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_counter_adds_up() -> None:
    counter = EncodingCounter()
    counter.encoded(8, 6, ["cmyk", "zero_bytes", "zero_bytes"])
    counter.encoded(4, 4, ["cmyk", "gray8", "zero_bytes"])
    items, images, faults = counter.read()
    assert (items, images) == (12, 10)
    assert list(faults.items()) == [("zero_bytes", 3), ("cmyk", 2), ("gray8", 1)]
    assert EncodingProgress(400, 1000, 12.0, faults).eta_seconds == 50
    assert EncodingProgress(400, 1000, 0.0, faults).eta_seconds > 1e9


# --- the end ----------------------------------------------------------------------------------------------

FAULTS = [
    *(Fault(key=f"n0144/[red]pic {number}.jpg", kind="truncated", action="skip", detail="") for number in range(5)),
    Fault(key="n0155/" + "long" * 40 + ".png", kind="tiny", action="convert", detail=""),
    Fault(key="n0155/b.png", kind="unlabelled", action="skip", detail=""),
    Fault(key="n0155/a.png", kind="unlabelled", action="skip", detail=""),
]


def manifest_of(shards: int, faults: list[Fault]) -> Manifest:
    return Manifest(
        source=SourceId(kind="folders", location="/far/away", items=1000, digest="0" * 64),
        autoencoder=AutoencoderId(name="AutoencoderKL", scale=0.18215, weights_sha256="1" * 64),
        shape=(4, 32, 32),
        posterior=True,
        class_names=[f"class {number}" for number in range(17)],
        rows=100 * shards,
        shards=[
            Shard(file=f"s{number}.parquet", rows=100, row_groups=[100], bytes=3 * 2**19, sha256="2" * 64)
            for number in range(shards)
        ],
        faults=count_faults(faults),
    )


def shown(manifest: Manifest, faults: list[Fault], made: int) -> list[str]:
    """Return the lines of the panel without their frame; each is 80 columns wide."""
    screen = Screen()
    screen.console.print(encoding_panel(manifest, faults, 12.34, made, "shards/[new]"))
    assert {len(line) for line in screen.lines} == {80}
    assert screen.lines[0].startswith("╭─ encoded into shards/[new] ─")
    return [line[2:-2].rstrip() for line in screen.lines[1:-1]]


def test_panel_says_what_is_there() -> None:
    manifest = manifest_of(9, [])
    assert shown(manifest, [], made=9) == [
        "latents      900 of 1000 items, 4×32×32 float16",
        "shards       9, 13.5 MiB",
        "classes      17: class 0, class 1, class 2, class 3, class 4, class 5, class",
        "             6, class 7, class 8, class 9, …",
        "autoencoder  AutoencoderKL, scale 0.18215",
        "time         12.3 s",
        f"digest       {manifest.digest[:16]}",
    ]


@pytest.mark.parametrize(("made", "there"), [(0, 9), (2, 7)])
def test_panel_says_how_many_shards_were_there(made: int, there: int) -> None:
    assert f"shards       9 ({there} were there), 13.5 MiB" in shown(manifest_of(9, []), [], made)


def test_panel_names_images_of_every_fault() -> None:
    """In the order of the list of faults; at most three keys each, whole, folded where they are long."""
    lines = shown(manifest_of(9, FAULTS), FAULTS, made=9)
    table = lines[lines.index("") + 1 : -1]
    assert lines[-1] == "every image with its fault: shards/[new]/_faults.csv"
    assert table[0].split() == ["fault", "action", "images", "such", "as"]
    heads = [line.split()[:3] for line in table[1:] if not line.startswith(" ")]
    assert heads == [["unlabelled", "skip", "2"], ["truncated", "skip", "5"], ["tiny", "convert", "1"]]
    start = table[0].index("such as")
    text = "".join(line[start:].ljust(76 - start) for line in table[1:])
    folded = re.sub(r" +", "", text)
    assert "n0155/a.png,n0155/b.png" in folded
    assert "n0144/[red]pic0.jpg,n0144/[red]pic1.jpg,n0144/[red]pic2.jpg…" in folded
    assert "pic3" not in folded
    assert f"n0155/{'long' * 40}.png" in folded
