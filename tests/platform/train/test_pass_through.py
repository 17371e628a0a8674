"""Keys for DeepSpeed: merged, or refused with the reason."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.train import deepspeed_keys
from causalfusion_platform.train.pass_through import check_deepspeed, merged

MakeExperiment = Callable[..., Experiment]


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"zero_optimization": {"reduce_bucket_size": 1e8, "stage3_prefetch_bucket_size": 1000}},
        {"zero_optimization": {"prefetch_bucket_size": 1000, "offload_optimizer": {"buffer_count": 2}}},
        {"fp16": {"loss_scale_window": 10}, "prescale_gradients": True, "steps_per_print": 5},
        {"comms_logger": {"enabled": True}, "flops_profiler": {"enabled": False}},
        {"data_types": {"grad_accum_dtype": "fp32"}, "timers": {"throughput": {"enabled": False}}},
    ],
)
def test_what_deepspeed_reads_goes_through(make_experiment: MakeExperiment, keys: dict[str, Any]) -> None:
    check_deepspeed(make_experiment(train={"deepspeed": keys}))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "zero_optimization.stage",
            "train.deepspeed.zero_optimization.stage conflicts with train.zero_stage=null: set",
        ),
        ("train_batch_size", "conflicts with train.global_batch_size=128: set that one"),
        ("train_micro_batch_size_per_gpu", "conflicts with train.micro_batch_size=null"),
        ("gradient_accumulation_steps", "conflicts with train.micro_batch_size"),
        ("gradient_clipping", "conflicts with optim.clip_grad_norm=1.0"),
        ("bf16.enabled", "conflicts with train.precision=auto"),
        ("fp16.enabled", "conflicts with train.precision"),
        ("torch_autocast.dtype", "conflicts with train.precision"),
        ("optimizer.type", "train.deepspeed.optimizer conflicts with optim.base_lr"),
        ("scheduler.type", "conflicts with optim.warmup_images"),
        ("zero_optimization.offload_optimizer.device", "conflicts with train.offload=none"),
        ("zero_optimization.offload_param.device", "conflicts with train.offload=none"),
        ("zero_optimization.cpu_offload", "conflicts with train.offload=none"),
        ("compile.deepcompile", "train.deepspeed.compile conflicts with train.compile=False"),
        ("activation_checkpointing.profile", "conflicts with train.activation_checkpointing"),
        ("zero_optimization.compute_grad_norm", "cannot be set: the gradient norm decides"),
        ("zero_optimization.offload_optimizer.ratio", "cannot be set: it makes optimizer steps of its own"),
        ("checkpoint.load_universal", "cannot be set: resuming sets it"),
        ("gradient_allreduce_op", "cannot be set: the loss is a mean"),
    ],
)
def test_a_conflict_is_refused_with_its_reason(make_experiment: MakeExperiment, path: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_deepspeed(make_experiment(train={"deepspeed": nested(path, 1)}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "steps_per_prin",
            1,
            "train.deepspeed.steps_per_prin is not a key that DeepSpeed reads; did you mean steps_",
        ),
        ("zero_optimisation.stage3", 1, "did you mean zero_optimization?"),
        ("zero_optimization.reduce_bucket_sise", 1, "did you mean reduce_bucket_size?"),
        ("zero_optimization.offload_optimizer.buffer_cound", 1, "did you mean buffer_count?"),
        ("checkpoint.tag_validatio", "Warn", "did you mean tag_validation?"),
        ("xyz", 1, "known here: aio, bf16"),
        ("zero_optimization", True, "is a section of DeepSpeed's configuration with keys, got True"),
        (
            "zero_optimization.reduce_bucket_size",
            -1,
            "reduce_bucket_size=-1 is refused by DeepSpeed: Input should be",
        ),
        (
            "zero_optimization.offload_optimizer.buffer_count",
            "many",
            "offload_optimizer.buffer_count='many' is refused",
        ),
        ("fp16.loss_scale", -1.0, "fp16.loss_scale=-1.0 is refused by DeepSpeed"),
    ],
)
def test_what_deepspeed_does_not_take_is_refused(
    make_experiment: MakeExperiment, path: str, value: object, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_deepspeed(make_experiment(train={"deepspeed": nested(path, value)}))


def test_settings_are_merged_deeply_and_neither_is_changed() -> None:
    ours: dict[str, Any] = {"a": 1, "section": {"b": 2, "inner": {"c": 3}}}
    theirs = {"d": 4, "section": {"inner": {"e": 5}}, "f": {"g": 6}}
    assert merged(ours, theirs) == {
        "a": 1,
        "d": 4,
        "section": {"b": 2, "inner": {"c": 3, "e": 5}},
        "f": {"g": 6},
    }
    assert ours == {"a": 1, "section": {"b": 2, "inner": {"c": 3}}}


def test_the_table_of_top_level_keys_is_that_of_deepspeed() -> None:
    """Its reading functions name them by constants or in quotes: every name found is known here, and no other."""
    from deepspeed.comm import config as comm
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime import config, precision_config
    from deepspeed.runtime.activation_checkpointing import config as activations
    from deepspeed.runtime.swap_tensor import aio_config
    from deepspeed.utils import config as timers

    found: set[str] = set()
    for module in (config, precision_config, activations, aio_config, timers):
        source = inspect.getsource(module)
        names = re.findall(
            r"(?:get_scalar_param\(\s*param_dict,|param_dict\.get\(|param_dict\[)\s*([A-Z_0-9]+)\b", source
        )
        found |= {getattr(module, name) for name in names}
        found |= set(re.findall(r"""param_dict(?:\.get\(|\[)["']([a-z_]+)""", source))
        found |= set(re.findall(r"""["']([a-z_]+)["'] in config\b""", source))
    found |= {"communication_data_type", "seq_parallel_communication_data_type"}  # handed on by argument
    found |= set(monitor.DeepSpeedMonitorConfig.model_fields)
    found |= {"comms_logger"} if "comms_logger" in inspect.getsource(comm) else set()

    def top(paths: Any) -> set[str]:
        return {path.partition(".")[0] for path in paths}

    known = top(deepspeed_keys.DERIVED) | top(deepspeed_keys.RESERVED)
    known |= {*deepspeed_keys.VALUES, *deepspeed_keys.CHECKED, *deepspeed_keys.UNCHECKED}
    assert found - known == set()
    assert known - found == {
        "autotuning",
        "data_efficiency",
        "flops_profiler",
        "tensor_parallel",
    }  # in other modules
