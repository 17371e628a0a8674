"""One rank of `test_finetune`: fine-tune with each ZeRO stage, and the same by torch alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tests.platform.config.trees import load_experiment
from tests.platform.tasks.text_process import projections
from torch import Tensor

from causalfusion import draws
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.augment.mixing import draw_mixing
from causalfusion_platform.data.manifest import AutoencoderId, Manifest, Shard, SourceId
from causalfusion_platform.data.read import worker_rows
from causalfusion_platform.tasks import open_task
from causalfusion_platform.tasks.finetune import Captioning, Classification
from causalfusion_platform.tasks.finetune.base import Finetune
from causalfusion_platform.tasks.finetune.validation import in_order, own_parts
from causalfusion_platform.train.ema import Averages
from causalfusion_platform.train.ema_profiles import Exponential
from causalfusion_platform.train.engine import build_engine
from causalfusion_platform.train.loop import TrainLoop, TrainState

BATCH, STEPS, CLASSES, LONGEST = 8, 4, 10, 6
MICRO_BATCHES = {1: (8, 2), 2: (4, 2)}
KINDS = ("classify", "caption", "frozen")
Measured = list[list[float]]
"""[loss, share of right predictions, gradient norm, learning rate] of each step, means over the ranks."""


def experiment_of(kind: str, world: int = 1, stage: int = 0, micro: int = BATCH) -> Experiment:
    """A tiny model, fine-tuned in 4 steps, the first of which is warmup. All draws matter: rates are high."""
    recipe = "finetune/digits-caption" if kind == "caption" else "finetune/digits-classify"
    sizes = {"vocabulary": 40, "max_tokens": LONGEST, "width": 16, "num_heads": 2, "dropout": 0.3}
    head = [f"finetune.caption_head.{key}={value}" for key, value in sizes.items()]
    return load_experiment(
        recipe,
        [
            "model.preset=tiny",
            "data.path=absent",
            "data.prepare=false",
            f"finetune.freeze={str(kind == 'frozen').lower()}",
            *(head if kind == "caption" else ["finetune.drop_path=0.5"]),
            f"train.num_workers={world}",
            f"train.zero_stage={stage}",
            f"train.micro_batch_size={micro}",
            f"train.global_batch_size={BATCH}",
            f"train.images={STEPS * BATCH}",
            "+train.deepspeed.zero_optimization.stage3_param_persistence_threshold=0",
            "optim.warmup_epochs=null",
            f"optim.warmup_images={BATCH}",
            "optim.eps=1.0",  # updates are then in proportion to gradients, also where those are noise
            "optim.base_lr=20.0",
            "optim.clip_grad_norm=1.0",
        ],
    )


def columns(step: int) -> dict[str, Tensor]:
    """A global batch of noise, with labels and texts."""
    generator = torch.Generator().manual_seed(step)
    return {
        "row_id": torch.arange(step * BATCH, (step + 1) * BATCH),
        "latent": torch.randn(BATCH, 1, 8, 8, generator=generator).half(),
        "label": torch.randint(CLASSES, (BATCH,), generator=generator),
        "tokens": torch.randint(40, (BATCH, LONGEST), generator=generator, dtype=torch.int32),
        "lengths": torch.randint(2, LONGEST + 1, (BATCH,), generator=generator, dtype=torch.int32),
        "cut": torch.zeros(BATCH, dtype=torch.int32),
    }


def batch(task: Classification | Captioning, step: int, rank: int = 0, world: int = 1) -> Any:
    """This rank's part of a global batch."""
    own = worker_rows(BATCH, rank, world)
    return task.collate({name: part[own].numpy() for name, part in columns(step).items()}, step * BATCH + own.start)


def new_model(task: Classification | Captioning) -> Any:
    torch.manual_seed(draws.stream_seed(task.experiment.seed, "initial weights"))
    model = task.build_model()
    with torch.no_grad():  # a new classifier's head is nearly zero, and passes no gradient on
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def trained(kind: str, rank: int, world: int, stage: int, micro: int) -> dict[str, Any]:
    """Train with the engine. Return the numbers of each step, and some of the weights after the last one."""
    experiment = experiment_of(kind, world, stage, micro)
    task = open_task(experiment)
    assert isinstance(task, Classification | Captioning)
    model, device = new_model(task), torch.device("cpu")
    groups = task.parameter_groups(model)
    engine = build_engine(model, experiment, device, "fp32", groups=groups)
    averages = Averages(engine.module, [Exponential(0.0, warmup=False)])
    loop = TrainLoop(experiment, engine, task.objective(model), averages, TrainState(), device)
    measured: Measured = []
    for index in range(STEPS):
        done = loop.train_step(loop.ready(batch(task, index, rank, world)))
        loop.state.step += 1
        loop.state.images_seen += BATCH
        averages.update(loop.state.step)
        # Captions have different numbers of tokens, so that the mean of a share depends on the parts.
        means = torch.stack([done.loss, done.values["accuracy"] if kind != "caption" else done.loss])
        torch.distributed.all_reduce(means)
        rates = [group["lr"] for group in engine.optimizer.param_groups]
        measured.append([*(means / world).tolist(), float(done.grad_norm), *rates])
    return {"steps": measured, "weights": projections(averages.full_state())}


def plain(kind: str) -> dict[str, Any]:
    """The same by torch alone: each pair of rows on its own, and AdamW on the sum of their losses."""
    experiment = experiment_of(kind)
    task = open_task(experiment)
    assert isinstance(task, Classification | Captioning)
    model = new_model(task)
    groups = [
        {"params": list(group.parameters), "weight_decay": group.weight_decay, "scale": group.lr_scale}
        for group in task.parameter_groups(model)
    ]
    optim = experiment.optim
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=optim.betas, eps=optim.eps)
    measured: Measured = []
    for index in range(STEPS):
        rate = mae_rate(index, experiment.learning_rate, optim.min_lr)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        loss = right = torch.zeros(())
        for first in range(0, BATCH, 2):
            rows = slice(first, first + 2)
            found = captioned(model, index, rows) if kind == "caption" else classified(task, model, index, rows)
            loss, right = loss + found[0], right + found[1]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        second = float(loss if kind == "caption" else right)
        rates = [group["lr"] for group in optimizer.param_groups]
        measured.append([float(loss), second, float(norm), *rates])
    return {"steps": measured, "weights": projections(model.state_dict())}


def mae_rate(step: int, peak: float, lowest: float) -> float:
    """One step of warmup from 0, and half a cosine over the other three."""
    return 0.0 if step == 0 else lowest + (peak - lowest) * (1 + math.cos(math.pi * (step - 1) / (STEPS - 1))) / 2


def classified(task: Finetune, model: Any, step: int, rows: slice) -> tuple[Tensor, Tensor]:
    """Soft cross-entropy of two rows and the share of right ones, both over the rows of the batch.

    Targets are written out: smoothing .1 over ten classes, and the partner's with weight 1 − λ.
    """
    experiment = task.experiment
    whole = columns(step)
    images, labels = whole["latent"][rows].float(), whole["label"][rows]
    drawn = draw_mixing(task.finetune.augment, experiment.seed, step, 8, 8)
    assert drawn is not None
    targets = torch.full((2, CLASSES), 0.01)
    targets[torch.arange(2), labels] += 0.9
    if drawn.box is None:
        images = drawn.weight * images + (1 - drawn.weight) * images.flip(0)
    else:
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[drawn.box.slices] = True
        images = torch.where(inside, images.flip(0), images)
        assert drawn.weight == 1 - int(inside.sum()) / 64
    targets = drawn.weight * targets + (1 - drawn.weight) * targets.flip(0)
    positions = range(step * BATCH + rows.start, step * BATCH + rows.stop)
    drops = model.draw(experiment.seed, positions) if model.config.drop_path else None
    logits = model(images, drops)
    loss = -(targets * logits.softmax(dim=1).log()).sum() / BATCH
    return loss, (logits.argmax(dim=1) == targets.argmax(dim=1)).sum() / BATCH


def captioned(model: Any, step: int, rows: slice) -> tuple[Tensor, Tensor]:
    """Entropy of the tokens of two rows, over the target tokens of the batch: each row alone, without padding."""
    whole = columns(step)
    targets, total = int((whole["lengths"] - 1).sum()), torch.zeros(())
    for row in range(rows.start, rows.stop):
        length = int(whole["lengths"][row])
        tokens = whole["tokens"][row : row + 1, :length].long()
        logits = model(whole["latent"][row : row + 1].float(), tokens[:, :-1], model.draw(0, [step * BATCH + row]))
        chosen = logits[0].softmax(dim=1).log()[torch.arange(length - 1), tokens[0, 1:]]
        total = total - chosen.sum() / targets
    return total, total


def run(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Measure all cases of one number of ranks, and the reference on one."""
    del folder
    found: dict[str, Any] = {
        f"{kind}, {stage}, {micro} at once": trained(kind, rank, world, stage, micro)
        for kind in KINDS
        for stage, micro in zip((0, 1, 2, 3), 2 * MICRO_BATCHES[world], strict=True)
    }
    found["order"] = shared_out()
    if world == 1:
        found |= {kind: plain(kind) for kind in KINDS}
    return found


def shared_out() -> list[list[Any]]:
    """Results of held-out rows in shards of 5 and 2 rows, batches of 2, put together on every rank."""
    shards = [
        Shard(file=f"{name}.parquet", rows=rows, row_groups=[rows], bytes=1, sha256=64 * "0")
        for name, rows in (("a", 5), ("b", 2))
    ]
    manifest = Manifest(
        source=SourceId(kind="bundled", location="nowhere", items=7, digest=""),
        autoencoder=AutoencoderId(name="identity", scale=1.0),
        shape=(1, 8, 8),
        class_names=["one"],
        rows=7,
        shards=shards,
    )
    own = [[[alone.shards[0].file, row] for row in rows] for alone, rows in own_parts(manifest, 2)]
    return in_order(own)
