"""Cost of training an experiment, worked out without starting or writing anything."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from pydantic import BaseModel

from causalfusion import count_parameters
from causalfusion.flops import training_flops

from ...config.compose import Composed, flatten, home
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.digits import NUM_ROWS, SHAPE, SOURCE
from ...data.manifest import MANIFEST_FILE, Manifest
from ...data.validate import check_model_fits
from ...report.runs.dry_run import DataPlan, Plan
from ...train.device import peak
from ...train.engine import choose_precision
from ...train.memory import Memory, checkpoint_bytes, estimate, longest_sequence
from ...train.rates import warmup_images
from ..runs.public_config import public_config


def make_plan(composed: Composed) -> Plan:
    """Work out the plan of an experiment.

    Raises:
        UserError: the model does not fit the data.
    """
    experiment = composed.experiment
    data = _data(experiment)
    precision = planned_precision(experiment)
    image_flops = training_flops(experiment.model, experiment.objective, attention="visible", skip_unread=True)
    warmup: float | None = None
    if data.rows is not None or experiment.optim.warmup_epochs is None:
        warmup = warmup_images(experiment, data.rows)
    return Plan(
        experiment=experiment,
        changed=changed_keys(composed),
        data=data,
        parameters=count_parameters(experiment.model),
        longest=longest_sequence(experiment),
        shortest=_shortest(experiment),
        precision=precision,
        warmup=warmup,
        flops=image_flops * experiment.train.total_images,
        checkpoint_bytes=checkpoint_bytes(experiment, precision),
        memory={stage: _memory(experiment, stage, precision) for stage in (0, 1, 2, 3)},
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
    kind = type(composed.experiment.model)
    known |= {f"model.{field.name}": field.default for field in dataclasses.fields(kind)}
    for key in ("runs", "data.path"):  # both were made absolute after they were written
        known[key] = str(home() / known[key])
    return {key: value for key, value in flatten(tree) if key not in known or _plain(known[key]) != _plain(value)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _memory(experiment: Experiment, stage: int, precision: str) -> Memory | None:
    if stage == 0 and precision in ("bf16_weights", "fp16"):
        return None
    return estimate(experiment, workers=experiment.train.num_workers, zero_stage=stage, precision=precision)


def _data(experiment: Experiment) -> DataPlan:
    folder = experiment.data.path
    if experiment.data.prepare and not (folder / MANIFEST_FILE).is_file():
        return DataPlan(NUM_ROWS, SHAPE, SOURCE, "written when training starts")
    try:
        manifest = Manifest.read(folder)
    except UserError as error:
        return DataPlan(None, None, None, str(error))
    check_model_fits(manifest, experiment.model, folder)
    source = f"{manifest.source.kind} {manifest.source.location}, {manifest.autoencoder.name} latents"
    return DataPlan(manifest.rows, manifest.shape, source, f"{len(manifest.shards)} shards, not read now")


def _shortest(experiment: Experiment) -> int:
    """Tokens of the shortest sequence: all in one AR step, unless their number is fixed."""
    one_step = dataclasses.replace(experiment.objective, num_ar_steps=experiment.objective.num_ar_steps or 1)
    return longest_sequence(experiment.model_copy(update={"objective": one_step}))
