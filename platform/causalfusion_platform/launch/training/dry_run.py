"""Cost of training an experiment, worked out without starting or writing anything."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from pydantic import BaseModel

from ...config.compose import Composed, flatten
from ...config.errors import UserError
from ...config.files import home
from ...config.finetune import FinetuneConfig
from ...config.schema import Experiment
from ...data import digits, mnist, split_digits
from ...data.manifest import Manifest
from ...data.prepare import is_written_later
from ...data.validate import CheckedShards
from ...report.runs.dry_run import DataPlan, Plan
from ...tasks import Task, check_data, open_task
from ...train.device import peak
from ...train.engine import choose_precision
from ...train.memory import Memory, checkpoint_bytes, estimate
from ...train.rates import warmup_images
from ..runs.public_config import public_config

_MNIST = (mnist.TRAIN_ROWS, mnist.SHAPE, mnist.location("training"))
_SPLIT = (split_digits.TRAIN_ROWS, digits.SHAPE, split_digits.location("training", 0))
_WRITTEN: dict[bool | str, tuple[int, tuple[int, ...], str]] = {
    True: (digits.NUM_ROWS, digits.SHAPE, digits.SOURCE),
    "split": _SPLIT,
    "captions": _SPLIT,
    "mnist": _MNIST,
    "mnist-captions": _MNIST,
}
"""Value of data.prepare → rows, shape and source of what is written."""


def make_plan(composed: Composed) -> Plan:
    """Work out the plan of an experiment.

    Raises:
        UserError: the task is not known, or it cannot train on the data.
    """
    experiment = composed.experiment
    task = open_task(experiment)
    data = _data(task)
    precision = planned_precision(experiment)
    row_flops = task.flops()
    warmup: float | None = None
    if data.rows is not None or experiment.optim.warmup_epochs is None:
        warmup = warmup_images(experiment, data.rows)
    return Plan(
        experiment=experiment,
        changed=changed_keys(composed),
        data=data,
        parameters=task.size.parameters,
        model=task.describe_model(),
        precision=precision,
        warmup=warmup,
        flops=None if row_flops is None else row_flops * experiment.train.total_images,
        checkpoint_bytes=checkpoint_bytes(task, precision),
        memory={stage: _memory(task, stage, precision) for stage in (0, 1, 2, 3)},
        cpu_peak=peak(torch.device("cpu"), precision),
    )


def planned_precision(experiment: Experiment) -> str:
    """Return the arithmetic on the workers' device: `auto` means bf16 for a GPU of another machine."""
    train = experiment.train
    if train.gpus_per_worker and not torch.cuda.is_available():
        return "bf16" if train.precision == "auto" else train.precision
    return choose_precision(train.precision, torch.device("cuda" if train.gpus_per_worker else "cpu"))


def changed_keys(composed: Composed) -> dict[str, Any]:
    """Return the keys that differ from the schema's defaults, as written."""
    tree = public_config(composed)
    defaults: dict[str, Any] = {}
    for name, field in Experiment.model_fields.items():
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        if isinstance(default, BaseModel):
            default = default.model_dump(mode="json")
        elif dataclasses.is_dataclass(default) and not isinstance(default, type):
            default = dataclasses.asdict(default)
        defaults[name] = default
    known = dict(flatten(defaults))
    if composed.experiment.finetune is not None:  # null without it
        known |= dict(flatten({"finetune": FinetuneConfig().model_dump(mode="json")}))
    kind = type(composed.experiment.model)
    known |= {f"model.{field.name}": field.default for field in dataclasses.fields(kind)}
    for key in ("runs", "data.path"):  # both were made absolute after they were written
        known[key] = str(home() / known[key])
    return {key: value for key, value in flatten(tree) if key not in known or _plain(known[key]) != _plain(value)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _memory(task: Task, stage: int, precision: str) -> Memory | None:
    if stage == 0 and precision in ("bf16_weights", "fp16"):
        return None
    return estimate(task, workers=task.experiment.train.num_workers, zero_stage=stage, precision=precision)


def _data(task: Task) -> DataPlan:
    experiment = task.experiment
    folder = experiment.data.path
    if is_written_later(experiment.data):
        task.check_paths()
        if (subset := experiment.data.subset) is not None:
            taken = f"{subset.per_class:,} rows of each class of {subset.of}"
            return DataPlan(None, None, taken, "written when training starts")
        return DataPlan(*_WRITTEN[experiment.data.prepare], "written when training starts")
    try:
        manifest = Manifest.read(folder)
    except UserError as error:
        return DataPlan(None, None, None, str(error))
    check_data(task, CheckedShards(folder, manifest, {}, hashes=False))
    source = f"{manifest.source.kind} {manifest.source.location}, {manifest.autoencoder.name} latents"
    return DataPlan(manifest.rows, manifest.shape, source, f"{len(manifest.shards)} shards, not read now")
