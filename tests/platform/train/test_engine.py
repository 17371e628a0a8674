"""The engine's configuration: precision, learning rate, DeepSpeed's settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch

from causalfusion import PRESETS, build_model
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.train.engine import (
    build_optimizer,
    choose_precision,
    deepspeed_config,
    learning_rate_at,
)

MakeExperiment = Callable[..., Experiment]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def set_hardware(monkeypatch: pytest.MonkeyPatch, *, amx: bool, avx: bool, gpu: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or gpu

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)


@pytest.mark.parametrize(("amx", "avx", "gpu"), list(itertools.product([False, True], repeat=3)))
def test_auto_is_bf16_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool, gpu: bool
) -> None:
    """A GPU that only emulates bf16 does not count."""
    set_hardware(monkeypatch, amx=amx, avx=avx, gpu=gpu)
    assert choose_precision("auto", CPU) == {False: "fp32", True: "bf16"}[amx or avx]
    assert choose_precision("auto", GPU) == {False: "fp32", True: "bf16"}[gpu]


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, wanted: Literal["fp32", "bf16"]
) -> None:
    set_hardware(monkeypatch, amx=hardware, avx=hardware, gpu=hardware)
    for device in (CPU, GPU):
        assert choose_precision(wanted, device) == wanted


@pytest.mark.parametrize(("base", "batch", "peak"), [(1e-4, 2048, 8e-4), (4e-3, 128, 2e-3), (1e-4, 256, 1e-4)])
def test_the_peak_rate_grows_with_the_batch(
    make_experiment: MakeExperiment, base: float, batch: int, peak: float
) -> None:
    experiment = make_experiment(optim={"base_lr": base}, train={"global_batch_size": batch})
    assert experiment.learning_rate == pytest.approx(peak, rel=1e-12)
    assert learning_rate_at(experiment, 0) == pytest.approx(peak, rel=1e-12)  # no warmup
    assert learning_rate_at(experiment, 10**9) == pytest.approx(peak, rel=1e-12)


def test_the_rate_rises_linearly_and_stays(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(optim={"base_lr": 0.256, "warmup_images": 1000}, train={"global_batch_size": 100})
    rates = [learning_rate_at(experiment, images) for images in range(0, 2001, 100)]
    expected = [0.01 * step for step in range(11)] + [0.1] * 10
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_is_told_what_the_experiment_says(
    make_experiment: MakeExperiment, stage: int, precision: Literal["fp32", "bf16"]
) -> None:
    experiment = make_experiment(
        optim={"clip_grad_norm": 0.7}, train={"global_batch_size": 96, "num_workers": 4, "zero_stage": stage}
    )
    config = deepspeed_config(experiment, precision)
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_clipping"] == 0.7
    assert config["train_batch_size"] == 96
    # DeepSpeed refuses batch sizes that do not multiply up.
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 4 == 96
    assert config["torch_autocast"]["enabled"] is (precision == "bf16")
    assert config["torch_autocast"]["dtype"] == "bfloat16"
    assert "optimizer" not in config
    assert "scheduler" not in config
    assert not {"fp16", "bf16"} & set(config)  # parameters stay fp32


def test_the_optimizer_is_adamw_as_configured(make_experiment: MakeExperiment) -> None:
    """One step against AdamW's formula, on every parameter."""
    experiment = make_experiment(
        optim={"base_lr": 0.01, "betas": (0.8, 0.7), "eps": 0.1, "weight_decay": 0.5},
        train={"global_batch_size": 512},
    )
    model = build_model(PRESETS["tiny"])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, experiment)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.3)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = before[name] * (1 - 0.02 * 0.5)
        expected = decayed - 0.02 * 0.3 / (0.3 + 0.1)  # after one step both moments are the gradient's own
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
