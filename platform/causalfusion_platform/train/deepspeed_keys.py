"""Keys of DeepSpeed's configuration: those that follow from our settings, and those that are free."""

from __future__ import annotations

# DeepSpeed's key → our setting that it follows from.
DERIVED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "optim.clip_grad_norm",
    "optimizer": "optim.base_lr",
    "scheduler": "optim.warmup_images",
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.offload_optimizer.device": "train.offload",
    "zero_optimization.offload_param.device": "train.offload",
    "zero_optimization.cpu_offload": "train.offload",
    "zero_optimization.cpu_offload_param": "train.offload",
    "bf16.enabled": "train.precision",
    "bfloat16": "train.precision",
    "fp16.enabled": "train.precision",
    "torch_autocast.enabled": "train.precision",
    "torch_autocast.dtype": "train.precision",
    "data_types.param_dtype": "train.precision",
    "data_types.buffer_dtype": "train.precision",
    "activation_checkpointing": "train.activation_checkpointing",
    "compile": "train.compile",
}

_OTHER_STEP = "it makes optimizer steps of its own, which could not be held back when a gradient is bad"
_OTHER_MODEL = "it cuts the model in a way that this training does not"

# DeepSpeed's key → why this training cannot have it changed.
RESERVED = {
    "zero_optimization.compute_grad_norm": "the gradient norm decides on each step",
    "zero_optimization.zenflow": _OTHER_STEP,
    "zero_optimization.offload_optimizer.super_offload": _OTHER_STEP,
    "zero_optimization.offload_optimizer.ratio": _OTHER_STEP,
    "zero_allow_untested_optimizer": "the optimizer is torch's own",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's own",
    "checkpoint.load_universal": "resuming sets it when the number of workers has changed",
    "gradient_allreduce_op": "the loss is a mean over the global batch",
    "managed_gradient_accumulation": "micro-batches of a step are added up by DeepSpeed",
    "sequence_parallel_size": _OTHER_MODEL,
    "tensor_parallel": _OTHER_MODEL,
    "expert_parallel": _OTHER_MODEL,
    "pipeline": _OTHER_MODEL,
    "hybrid_engine": _OTHER_MODEL,
    "weight_quantization": _OTHER_MODEL,
    "data_efficiency": "the order of the images is the project's own (data.*)",
    "autotuning": "it starts runs of its own; sweep over train.* instead",
}

# Other top-level keys that DeepSpeed reads: single values, sections that it checks itself, and sections of which
# it ignores unknown keys.
VALUES = (
    "communication_data_type",
    "dataloader_drop_last",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "steps_per_print",
    "use_data_before_expert_parallelism",
    "vocabulary_size",
    "wall_clock_breakdown",
)
CHECKED = ("bf16", "comet", "comms_logger", "csv_monitor", "fp16", "tensorboard", "wandb", "zero_optimization")
UNCHECKED = {
    "aio": (
        "block_size", "intra_op_parallelism", "overlap_events", "queue_depth", "single_submit", "use_gds",
    ),
    "checkpoint": (
        "checkpoint_serialization", "parallel_write", "tag_validation", "use_node_local_storage", "writer",
    ),
    "data_types": ("grad_accum_dtype", "keep_in_fp32_modules"),
    "flops_profiler": (
        "detailed", "enabled", "module_depth", "output_file", "profile_step", "recompute_fwd_factor", "top_modules",
    ),
    "timers": ("throughput",),
    "torch_autocast": ("lower_precision_safe_modules",),
}  # fmt: skip
