"""Peaks by name and by measuring; FLOPs and tokens of steps against what the model is really given."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from causalfusion import (
    PRESETS,
    CausalFusion,
    DiffusionConfig,
    Objective,
    ObjectiveConfig,
    build_model,
    draw,
    preset,
)
from causalfusion.baselines.dit import DiTConfig
from causalfusion.flops import training_flops
from causalfusion_platform.train.device import (
    Arithmetic,
    memory_in_use,
    peak,
    peak_of,
    products_in,
    sequence_tokens,
    shortest,
    step_flops,
)

CPU = torch.device("cpu")


# NVIDIA's data sheets; the names are those that the driver gives.
@pytest.mark.parametrize(
    ("name", "arithmetic", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp16", 989.5),
        ("NVIDIA H200", "tf32", 494.5),
        ("NVIDIA H200 NVL", "fp32", 60),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla T4", "fp16", 65),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-32GB", "fp16", 112),
        ("Tesla V100S-PCIE-32GB", "fp32", 16.4),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("Tesla T4", "tf32", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
        ("NVIDIA L40", "bf16", None),
    ],
)
def test_peak_by_name(name: str, arithmetic: Arithmetic, tflops: float | None) -> None:
    found = peak_of(name, arithmetic)
    assert found.tflops == tflops
    assert ("data sheet" in found.source) == (tflops is not None)


def test_the_peak_of_a_cpu_is_measured_on_the_threads_in_use() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = peak(CPU, "fp32")
    finally:
        torch.set_num_threads(before)
    assert one.source == "measured: 512×512 fp32 products on 1 thread"
    assert one.tflops is not None
    assert 1e-5 < one.tflops < 10
    assert "bf16" in peak(CPU, "bf16_weights").source
    assert "fp16" in peak(CPU, "fp16").source


@pytest.mark.parametrize(
    ("wall", "cpu", "seconds"),
    [
        (0.005, 0.010, 0.005),  # alone, on two threads
        (0.011, 0.010, 0.005),  # another process has half of the cores
        (0.005, 0.014, 0.005),  # a third thread of this process computes too
    ],
)
def test_the_time_of_a_product_is_that_with_a_core_for_each_thread(wall: float, cpu: float, seconds: float) -> None:
    """Clocks that go on by so much at each product. Once it took longer, which does not count."""
    clocks = {"wall": 100.0, "cpu": 7.0}
    longer = iter([3.0])

    def product() -> None:
        slow = next(longer, 1.0)
        clocks["wall"] += slow * wall
        clocks["cpu"] += slow * cpu

    found = shortest(product, 2, lambda: clocks["wall"], lambda: clocks["cpu"])
    assert found == pytest.approx(seconds)
    assert clocks["wall"] == pytest.approx(100.2, abs=0.04)  # it ends


@pytest.mark.parametrize(
    ("precision", "on_cpu", "on_gpu"),
    [
        ("fp32", "fp32", "fp32"),
        ("tf32", "fp32", "tf32"),
        ("bf16", "bf16", "bf16"),
        ("bf16_weights", "bf16", "bf16"),
        ("fp16", "fp16", "fp16"),
        ("auto", "bf16", "bf16"),
    ],
)
def test_the_arithmetic_of_products(precision: str, on_cpu: str, on_gpu: str) -> None:
    assert (products_in(precision, "cpu"), products_in(precision, "cuda")) == (on_cpu, on_gpu)


def test_a_device_of_another_kind_has_no_known_peak() -> None:
    assert peak(torch.device("meta"), "fp32").tflops is None


def test_memory_in_use_is_the_most_that_was_resident() -> None:
    gpu, before = memory_in_use(CPU)
    block = bytearray(b"x") * (before + (64 << 20))
    del block
    _, after = memory_in_use(CPU)
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
    assert gpu == 0
    assert after == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)
    assert after >= before + (64 << 20)


def compositions(total: int) -> list[list[int]]:
    """Every way to cut `total` tokens into AR steps."""
    found = []
    for cuts in itertools.product([False, True], repeat=total - 1):
        sizes, size = [], 1
        for cut in cuts:
            if cut:
                sizes.append(size)
                size = 0
            size += 1
        found.append([*sizes, size])
    return found


@pytest.mark.parametrize("copies", [1, 3])
def test_step_flops_average_to_the_training_flops_of_the_masked_model(copies: int) -> None:
    model = preset("tiny", input_size=6)  # 9 tokens: 256 ways to cut
    objective = ObjectiveConfig(ar_decay=0.7, time_copies=copies)
    weights = [0.7**steps for steps in range(9)]
    expected = 0.0
    for sizes in compositions(9):
        steps = len(sizes)
        probability = weights[steps - 1] / sum(weights) / math.comb(8, steps - 1)
        expected += probability * step_flops(model, sizes, objective)
    assert expected == pytest.approx(
        training_flops(model, objective, attention="visible", skip_unread=True), rel=1e-12
    )


def test_a_dit_costs_the_same_whatever_the_split() -> None:
    model, objective = PRESETS["DiT-L/2"], ObjectiveConfig(num_ar_steps=1)
    assert step_flops(model, [256], objective) == training_flops(model, objective)


@pytest.mark.parametrize(("name", "copies"), [("tiny", 1), ("tiny", 2), ("digits-dit", 1), ("in-context-4", 1)])
def test_tokens_are_those_that_the_blocks_see(name: str, copies: int) -> None:
    config = preset(name, hidden_size=16, num_heads=2, depth=1, input_size=8, in_channels=1)
    dit = isinstance(config, DiTConfig)
    objective = ObjectiveConfig(num_ar_steps=1 if dit else None, ar_decay=1.0, time_copies=copies)
    model = build_model(config)
    seen: list[int] = []
    block = model.blocks[0]
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    loss = Objective(model, objective, DiffusionConfig())
    for step in range(6):
        drawn = draw(config, objective, DiffusionConfig(), seed=0, step=step, samples=range(2))
        loss(model, torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), drawn)
        assert seen.pop() == sequence_tokens(config, drawn.sizes, copies)
    assert isinstance(model, CausalFusion) != dit
