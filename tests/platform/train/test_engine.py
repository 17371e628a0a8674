"""The engine's configuration: precision, learning rate, DeepSpeed's settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from causalfusion import PRESETS, build_model
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment, Precision
from causalfusion_platform.train.deepspeed_config import Arithmetic, deepspeed_config
from causalfusion_platform.train.engine import build_engine, choose_precision, set_products
from causalfusion_platform.train.optimizer import GuardedAdamW, build_optimizer
from causalfusion_platform.train.rates import learning_rate_at

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
@pytest.mark.parametrize("wanted", ["fp32", "bf16", "bf16_weights", "fp16"])
def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, hardware: bool, wanted: Precision) -> None:
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


@pytest.mark.parametrize(("epochs", "rows", "images"), [(2.0, 500, 1000), (0.5, 2000, 1000), (0.0, 7, 0)])
def test_a_warmup_in_epochs_is_one_in_images(
    make_experiment: MakeExperiment, epochs: float, rows: int, images: int
) -> None:
    train = {"global_batch_size": 100}
    experiment = make_experiment(optim={"base_lr": 0.256, "warmup_epochs": epochs}, train=train)
    for seen in range(0, 2001, 100):
        expected = 0.1 * min(1, seen / images if images else 1)
        assert learning_rate_at(experiment, seen, rows) == pytest.approx(expected, rel=1e-12)


def test_a_warmup_is_given_once_and_epochs_need_a_data_set(make_experiment: MakeExperiment) -> None:
    with pytest.raises(ValueError, match="leave one out"):
        make_experiment(optim={"warmup_epochs": 1, "warmup_images": 10})
    with pytest.raises(ValueError, match="rows of the data set"):
        learning_rate_at(make_experiment(optim={"warmup_epochs": 1}), 10)


def mae_rate(epoch: float, *, peak: float, lowest: float, warmup: int, epochs: int) -> float:
    """The rule of MAE's fine-tuning, by the epochs seen before the step."""
    if epoch < warmup:
        return peak * epoch / warmup
    return lowest + (peak - lowest) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def test_a_cosine_is_that_of_mae_at_every_step(make_experiment: MakeExperiment) -> None:
    """Table 12: 50 epochs, 5 of them warmup, a rate of 1e-3 for 256 images, batches of 1,024, and MAE's minimum."""
    rows, batch = 10_240, 1024
    optim = {"base_lr": 1e-3, "warmup_epochs": 5, "schedule": "cosine", "min_lr": 1e-6}
    experiment = make_experiment(optim=optim, train={"global_batch_size": batch, "images": 50 * rows})
    steps = 50 * rows // batch
    found = [learning_rate_at(experiment, (step + 1) * batch, rows) for step in range(steps)]
    expected = [mae_rate(step / 10, peak=4e-3, lowest=1e-6, warmup=5, epochs=50) for step in range(steps)]
    assert found == pytest.approx(expected, rel=1e-12, abs=0)
    assert found[0] == 0
    assert max(found) == pytest.approx(4e-3, rel=1e-12)
    assert 1e-6 < found[-1] < 6e-6


def test_a_lowest_rate_needs_a_cosine_below_the_peak(make_experiment: MakeExperiment) -> None:
    with pytest.raises(ValueError, match="set schedule=cosine"):
        make_experiment(optim={"min_lr": 1e-6})
    with pytest.raises(ValueError, match=r"min_lr 0.01 exceeds the peak of the learning rate, 0.005"):
        make_experiment(
            optim={"base_lr": 0.01, "min_lr": 0.01, "schedule": "cosine"}, train={"global_batch_size": 128}
        )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("micro", "rows", "parts"), [(None, 24, 1), (24, 24, 1), (6, 6, 4), (1, 1, 24)])
def test_deepspeed_is_told_what_the_experiment_says(
    make_experiment: MakeExperiment, stage: int, precision: Arithmetic, micro: int | None, rows: int, parts: int
) -> None:
    train = {"global_batch_size": 96, "num_workers": 4, "zero_stage": stage, "micro_batch_size": micro}
    experiment = make_experiment(optim={"clip_grad_norm": 0.7}, train=train)
    config = deepspeed_config(experiment, precision, CPU)
    assert config["zero_optimization"] == {"stage": stage}
    assert config["communication_data_type"] == "fp32"
    # With ZeRO 0 the optimizer does the clipping.
    assert config["gradient_clipping"] == (0.7 if stage else 0)
    assert build_optimizer(build_model(PRESETS["tiny"]), experiment).clip_norm == (None if stage else 0.7)
    assert config["train_batch_size"] == 96
    assert config["train_micro_batch_size_per_gpu"] == rows
    assert config["gradient_accumulation_steps"] == parts
    assert config["torch_autocast"]["enabled"] is (precision == "bf16")
    assert config["torch_autocast"]["dtype"] == "bfloat16"
    assert config["torch_autocast"]["lower_precision_safe_modules"] == []  # gradients stay fp32
    assert not {"fp16", "bf16", "optimizer", "scheduler"} & set(config)  # parameters stay fp32


@pytest.mark.parametrize(("precision", "section"), [("bf16_weights", "bf16"), ("fp16", "fp16")])
def test_weights_of_16_bits_have_their_section(
    make_experiment: MakeExperiment, precision: Arithmetic, section: str
) -> None:
    config = deepspeed_config(make_experiment(train={"precision": precision}), precision, CPU)
    assert config[section]["enabled"] is True
    assert config["communication_data_type"] == section
    assert config["data_types"] == {"buffer_dtype": section}
    assert ("bf16" in config) != ("fp16" in config)
    assert "torch_autocast" not in config
    if section == "fp16":
        assert config["fp16"]["loss_scale"] == 0  # dynamic


@pytest.mark.parametrize(
    ("offload", "sections"),
    [
        ("none", set()),
        ("optimizer", {"offload_optimizer"}),
        ("parameters", {"offload_optimizer", "offload_param"}),
    ],
)
def test_offloaded_state_is_pinned_for_a_gpu(
    make_experiment: MakeExperiment, offload: str, sections: set[str]
) -> None:
    experiment = make_experiment(train={"zero_stage": 3, "offload": offload})
    for device, pinned in ((CPU, False), (GPU, True)):
        zero = deepspeed_config(experiment, "fp32", device)["zero_optimization"]
        assert set(zero) == {"stage", *sections}
        assert all(zero[section] == {"device": "cpu", "pin_memory": pinned} for section in sections)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_are_reduced_during_the_backward_pass_on_gpus(
    make_experiment: MakeExperiment, stage: int, workers: int
) -> None:
    """ZeRO 3 does so by itself, and ZeRO 0 cannot."""
    experiment = make_experiment(train={"zero_stage": stage, "num_workers": workers})
    zero = deepspeed_config(experiment, "fp32", GPU)["zero_optimization"]
    if workers == 2 and stage in (1, 2):
        assert zero == {"stage": stage, "overlap_comm": True, "reduce_bucket_size": 50_000_000}
    else:
        assert zero == {"stage": stage}
    assert deepspeed_config(experiment, "fp32", CPU)["zero_optimization"] == {"stage": stage}


@pytest.mark.parametrize(
    ("train", "stage"),
    [
        ({}, 0),
        ({"num_workers": 2}, 1),
        ({"zero_stage": 1}, 1),
        ({"zero_stage": 0, "num_workers": 2}, 0),
        ({"precision": "bf16_weights"}, 1),
        ({"precision": "fp16", "num_workers": 2}, 1),
        ({"offload": "optimizer"}, 1),
        ({"offload": "parameters"}, 3),
        ({"offload": "parameters", "precision": "bf16_weights"}, 3),
    ],
)
def test_the_lowest_stage_that_works_is_taken(
    make_experiment: MakeExperiment, train: dict[str, object], stage: int
) -> None:
    experiment = make_experiment(train=train)
    assert experiment.train.stage == stage
    assert deepspeed_config(experiment, "fp32", CPU)["zero_optimization"]["stage"] == stage


def test_tf32_is_taken_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((7, 5), "fp32"), ((8, 0), "tf32"), ((9, 0), "tf32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert choose_precision("tf32", GPU) == expected
    assert choose_precision("tf32", CPU) == "fp32"


def test_only_tf32_multiplies_fp32_in_tf32() -> None:
    try:
        for precision in ("fp32", "tf32", "bf16", "tf32", "bf16_weights"):
            set_products(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is (precision == "tf32")
    finally:
        set_products("fp32")


def test_more_keys_are_merged(make_experiment: MakeExperiment) -> None:
    keys = {"zero_optimization": {"reduce_bucket_size": 10}, "prescale_gradients": True}
    config = deepspeed_config(make_experiment(train={"deepspeed": keys}), "fp32", CPU)
    assert config["zero_optimization"] == {"stage": 0, "reduce_bucket_size": 10}
    assert config["prescale_gradients"] is True
    assert config["train_batch_size"] == 128


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"micro_batch_size": 5}, "micro_batch_size 5 does not divide the 128 images of a worker"),
        ({"micro_batch_size": 128, "num_workers": 2}, "does not divide the 64 images of a worker"),
        ({"micro_batch_size": 0}, "greater than or equal to 1"),
        ({"gpus_per_worker": 2}, "must be 0 or 1, got 2: DeepSpeed puts a worker on the GPU"),
        ({"gpus_per_worker": 0.5}, "must be 0 or 1, got 0.5: .*raise train.num_workers"),
        (
            {"precision": "bf16_weights", "zero_stage": 0},
            "precision bf16_weights needs zero_stage 1 or 2 or 3, got 0",
        ),
        ({"precision": "fp16", "zero_stage": 0}, "precision fp16 needs zero_stage 1 or 2 or 3, got 0"),
        ({"offload": "optimizer", "zero_stage": 0}, "offload optimizer needs zero_stage 1 or 2 or 3, got 0"),
        ({"offload": "parameters", "zero_stage": 2}, "offload parameters needs zero_stage 3, got 2"),
    ],
)
def test_what_cannot_work_is_refused(
    make_experiment: MakeExperiment, train: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_experiment(train=train)


def test_an_engine_refuses_wrong_keys_and_fp16_without_hardware(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(PRESETS["tiny"])
    with pytest.raises(UserError, match="did you mean steps_per_print"):
        build_engine(model, make_experiment(train={"deepspeed": {"steps_per_prin": 1}}), CPU, "fp32")
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: False)
    with pytest.raises(UserError, match="no fp16 arithmetic"):
        build_engine(model, make_experiment(train={"precision": "fp16"}), CPU, "fp16")


def test_the_optimizer_is_adamw_as_configured(make_experiment: MakeExperiment) -> None:
    """One step against AdamW's formula, on every parameter."""
    experiment = make_experiment(
        optim={"base_lr": 0.01, "betas": (0.8, 0.7), "eps": 0.1, "weight_decay": 0.5},
        train={"global_batch_size": 512, "zero_stage": 1},  # gradients come clipped
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


@pytest.mark.parametrize("gradient", [1e-3, 1e-14])
def test_the_releases_epsilon_is_added_to_the_root(make_experiment: MakeExperiment, gradient: float) -> None:
    """ε = 1e-15: two steps against Adam's formula in float64; 1e-8 would swallow the small gradient."""
    experiment = make_experiment(
        optim={"base_lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-15},
        train={"global_batch_size": 256, "zero_stage": 1},  # gradients come clipped
    )
    model = build_model(PRESETS["tiny"])
    optimizer = build_optimizer(model, experiment)
    before = [p.detach().double() for p in model.parameters()]
    mean = square = 0.0
    change = 0.0
    for step, factor in enumerate((1.0, 3.0), start=1):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, factor * gradient)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * factor * gradient
        square = 0.95 * square + 0.05 * (factor * gradient) ** 2
        change += 0.01 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)) ** 0.5 + 1e-15)
    for parameter, start in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach().double(), start - change, rtol=1e-5, atol=1e-6)


def guarded(verdicts: list[bool], asked: list[int]) -> tuple[torch.nn.Parameter, GuardedAdamW]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = GuardedAdamW([parameter], lr=0.1)

    def allow() -> bool:
        asked.append(len(asked))
        return verdicts[asked[-1]]

    optimizer.allow = allow
    return parameter, optimizer


def test_a_refused_step_changes_nothing() -> None:
    verdicts = [False, True, False, True]
    parameter, optimizer = guarded(verdicts, [])
    other = torch.nn.Parameter(torch.ones(3))
    plain = torch.optim.AdamW([other], lr=0.1)
    for index, verdict in enumerate(verdicts):
        gradient = torch.tensor([1.0, -2.0, index])
        parameter.grad = gradient if verdict else gradient * torch.nan
        optimizer.step()
        if verdict:
            other.grad = gradient
            plain.step()
        assert torch.equal(parameter, other)
    assert all(torch.equal(optimizer.state[parameter][key], plain.state[other][key]) for key in plain.state[other])
    assert int(optimizer.state[parameter]["step"]) == 2


def test_one_verdict_serves_all_partitions_of_a_step() -> None:
    asked: list[int] = []
    parameter, optimizer = guarded([False, True, False], asked)
    now = [0]
    optimizer.clock = lambda: now[0]
    moved = []
    for now[0] in (5, 5, 6, 6, 6, 5):
        before = parameter.detach().clone()
        parameter.grad = torch.ones(3)
        optimizer.step()
        moved.append(not torch.equal(before, parameter))
    assert moved == [False, False, True, True, True, False]
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("limit", [0.0, 1.0, 100.0])
def test_an_optimizer_that_clips_knows_the_norm_before(limit: float) -> None:
    """The gradient (3, 4, 12) has the norm 13; Adam's first moment keeps a tenth of what was left of it."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = GuardedAdamW([parameter], clip_norm=limit, lr=0.1)
    norms = []

    def allow() -> bool:
        norms.append(float(optimizer._global_grad_norm))
        return True

    optimizer.allow = allow
    parameter.grad = torch.tensor([3.0, 4.0, 12.0])
    optimizer.step()
    assert norms == [13.0]
    kept = min(1.0, limit / 13) if limit else 1.0
    expected = torch.tensor([0.3, 0.4, 1.2]) * kept
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], expected, rtol=1e-5, atol=0)
