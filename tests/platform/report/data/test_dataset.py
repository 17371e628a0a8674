"""What a person sees of a data set fits 80 columns and says what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.cells import cell_len

from causalfusion_platform.data.classes import Classes
from causalfusion_platform.data.manifest import (
    AutoencoderId,
    Crop,
    Manifest,
    Quarantined,
    Shard,
    SourceId,
)
from causalfusion_platform.data.stats import LatentStats, Spread
from causalfusion_platform.report.data.dataset import class_lines, stats_lines, summary_lines


def manifest_of(names: list[str]) -> Manifest:
    shard = Shard(file="a.parquet", rows=1200, row_groups=[1000, 200], bytes=3 * 2**20, sha256="0" * 64)
    return Manifest(
        source=SourceId(kind="folders", location="s3://bucket/" + "folder " * 20, items=1_300_000, digest="1" * 64),
        autoencoder=AutoencoderId(name="AutoencoderKL", scale=0.18215, weights_sha256="abcdef" * 10 + "0123"),
        crop=Crop(size=256),
        shape=(4, 32, 32),
        posterior=True,
        flip=True,
        class_names=names,
        faults={"cmyk": {"convert": 22}, "corrupt": {"skip": 3, "keep": 1}},
        rows=1200,
        shards=[shard],
        quarantined=[Quarantined(file="b.parquet", rows=4096, reason="the file is missing")],
    )


def classes_of(counts: list[int], per_group: list[int], mixed: float) -> Classes:
    labels: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)
    return Classes(labels=labels, counts=np.array(counts), per_group=np.array(per_group), mixed=mixed)


def check_width(lines: list[str]) -> None:
    assert max(map(cell_len, lines)) <= 80


def test_summary() -> None:
    lines = summary_lines(Path("shards/mine"), manifest_of(["a"]))
    check_width(lines)
    text = " ".join(" ".join(lines).split())
    for part in [
        "shards/mine split train rows 1,200 in 1 shard, 2 row groups size 3 MiB, 2,621 bytes per row",
        "latents 4×32×32 float16: mean, std, mean_flip, std_flip",
        "autoencoder AutoencoderKL, scale 0.18215, weights abcdefabcdefabcd",
        "images ADM's centre crop to 256×256",
        "holds posterior yes · mirrored images yes · captions no",
        "source folders, 1,300,000 items: s3://bucket/folder folder",
        "faults cmyk convert 22; corrupt skip 3, keep 1",
        "set aside 1 shard with 4,096 rows",
        f"digest {manifest_of(['a']).digest}",
    ]:
        assert part in text


def test_a_bar_per_class() -> None:
    names = ["ant", "中文" * 20, "[red]bee[/red]", "none"]
    lines = class_lines(manifest_of(names), classes_of([8, 100, 50, 0], [3, 3, 3], 2.5))
    check_width(lines)
    assert lines[0] == "classes       4, 1 of them without rows"
    assert lines[1].startswith("per class     8 (ant), median 50, 100 (中文中文")
    assert lines[2] == "mixing        3 classes in a median row group; random order: 2"
    bars = lines[4:]
    assert [bar.count("█") for bar in bars] == [4, 51, 25, 0]  # eighths of a cell are not counted
    assert cell_len(bars[1]) == 80
    assert bars[2].startswith("[red]bee[/red]")
    assert bars[3].split() == ["none", "0"]


@pytest.mark.parametrize("high", [20, 21, 1300])
def test_many_classes(high: int) -> None:
    """Every class is in one of at most 20 ranges of sizes."""
    counts = [1 + 37 * place % high for place in range(1000)]
    lines = class_lines(manifest_of([f"n{place:08d}" for place in range(1000)]), classes_of(counts, [9], 9))
    check_width(lines)
    start = lines.index("rows of a class → number of classes") + 1
    assert len(lines) - start <= 20
    total = 0
    for line in lines[start:]:
        ends = [int(end.replace(",", "")) for end in line.split()[0].split("–")]
        expected = sum(ends[0] <= count <= ends[-1] for count in counts)
        assert int(line.split()[1].replace(",", "")) == expected
        total += expected
    assert total == 1000


def test_all_classes_of_one_size() -> None:
    lines = class_lines(manifest_of([str(place) for place in range(30)]), classes_of([40] * 30, [9], 9))
    assert lines[1] == "per class     40 rows each"
    assert lines[-1].startswith("40 30 █")


@pytest.mark.parametrize(
    ("per_group", "mixed", "warned"),
    [([1, 1, 2], 9.0, True), ([26, 27, 26], 226.0, True), ([220, 230], 226.0, False), ([1, 1], 1.0, False)],
)
def test_classes_that_are_not_mixed(per_group: list[int], mixed: float, warned: bool) -> None:
    lines = class_lines(manifest_of(["a", "b"]), classes_of([10, 10], per_group, mixed))
    check_width(lines)
    assert any("--order shuffled" in line for line in lines) == warned


@pytest.mark.parametrize("scale", [1.0, 0.18215])
@pytest.mark.parametrize("posterior", [0.0, 0.125])
def test_statistics(scale: float, posterior: float) -> None:
    spread = Spread(mean=-1.2345678e-5, std=0.5, posterior_std=posterior, min=-1234.5678, max=65504.0)
    stats = LatentStats(rows=1_300_000, views=2, scale=scale, channels=[spread] * 3, overall=spread)
    lines = stats_lines(Path("shards/mine"), stats)
    check_width(lines)
    assert lines[0] == "shards/mine: 1,300,000 rows, each with its mirrored image"
    heads = ["channel", "mean", "std", *["posterior"] * (posterior > 0), "min", "max"]
    cells = ["-1.235e-05", "0.5", *["0.125"] * (posterior > 0), "-1235", "6.55e+04"]
    if scale != 1:
        heads += ["mean/s", "std/s"]
        cells += ["-6.778e-05", "2.745"]
    assert [line.split() for line in lines[1:6]] == [heads, *([name, *cells] for name in ["0", "1", "2", "all"])]
    assert lines[-1].endswith(f" {scale / 0.5:.5g}")
