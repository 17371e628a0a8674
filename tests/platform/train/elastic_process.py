"""One rank of `test_elastic`: the same training in many layouts and options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.platform.config.trees import load_experiment
from tests.platform.train.zero_process import BATCH, DIT, Curve, batch, new_model, plain_curve
from torch import Tensor

from causalfusion import Model, Objective, draw
from causalfusion.attention.plan import AttentionPlan
from causalfusion_platform.checkpoint.engine_state import load_engine, save_engine
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.read import Batch
from causalfusion_platform.tasks.class_to_image import ClassToImageObjective
from causalfusion_platform.train.engine import build_engine, choose_precision, grad_norm, optimizer_step
from causalfusion_platform.train.objective import ReadyStep

OVERLAPPED = [
    "+train.deepspeed.zero_optimization.overlap_comm=true",
    "+train.deepspeed.zero_optimization.reduce_bucket_size=4000",
]
"""Many small buckets, as `OVERLAPPED_BUCKET` gives a large model."""
STEPS, BAD_STEP = 8, 3
CPU = torch.device("cpu")
BF16 = ["train.precision=bf16", "optim.clip_grad_norm=0"]
REDUCED_IN_BF16 = "+train.deepspeed.torch_autocast.lower_precision_safe_modules=[torch.nn.Linear,torch.nn.Conv2d]"
"""Earlier versions had DeepSpeed's own list, of linear layers and convolutions."""


class Run:
    """A model under training, in some layout."""

    def __init__(
        self,
        rank: int,
        world: int,
        settings: Sequence[str],
        make_model: Callable[[Experiment], Model] = new_model,
    ) -> None:
        self.rank, self.world = rank, world
        self.experiment = experiment = load_experiment(
            "smoke", [f"train.num_workers={world}", f"train.global_batch_size={BATCH}", *settings]
        )
        model = make_model(experiment)
        self.objective = ClassToImageObjective(model, experiment)
        wanted = experiment.train.precision
        precision = "fp32" if wanted == "auto" else choose_precision(wanted, CPU)
        self.engine = build_engine(model, experiment, CPU, precision)

    def step(self, index: int, damage: Callable[[Tensor], Tensor] | None = None) -> list[float]:
        """Train on global batch `index`, damaged on the last rank: [loss, MSE, gradient norm]."""
        rows = batch(index, self.rank, self.world)
        if damage is not None and self.rank == self.world - 1:
            rows = Batch(rows.samples, rows.row_ids, damage(rows.latents), rows.labels)
        ready = ReadyStep(self.objective.step(rows, index), self.experiment.train.rows_at_once, CPU)
        loss, values = optimizer_step(self.engine, ready)
        means = torch.stack([loss, values["mse"]])
        torch.distributed.all_reduce(means)
        return [*(means / self.world).tolist(), float(grad_norm(self.engine))]

    def weights(self) -> list[Tensor]:
        """All weights in full, in the order of the model: under ZeRO 3 gathered from the ranks."""
        from deepspeed.runtime.zero import GatheredParameters

        parameters = list(self.engine.module.parameters())
        if self.experiment.train.stage < 3:
            return [p.detach().clone() for p in parameters]
        with GatheredParameters(parameters):
            return [p.detach().clone() for p in parameters]


def curve(rank: int, world: int, settings: Sequence[str]) -> Curve:
    run = Run(rank, world, settings)
    return [run.step(index) for index in range(STEPS)]


def resumed(rank: int, world: int, settings: Sequence[str], folder: Path) -> dict[str, Curve]:
    """The last steps, and the same steps from a checkpoint."""
    run = Run(rank, world, settings)
    before = [run.step(index) for index in range(STEPS - 2)]
    save_engine(run.engine, folder)
    straight = [run.step(index) for index in range(STEPS - 2, STEPS)]
    again = Run(rank, world, settings)
    load_engine(again.engine, folder)
    return {
        "curve": before + straight,
        "again": before + [again.step(index) for index in range(STEPS - 2, STEPS)],
    }


def guarded(rank: int, world: int, settings: Sequence[str], *, damaged: bool) -> dict[str, Any]:
    """Refuse one step; beside it, a run in which that step does not happen.

    Args:
        rank: this rank.
        world: number of ranks.
        settings: overrides of the experiment.
        damaged: a NaN of the last rank makes the step bad; else nothing does, and it is refused nevertheless.
    """
    run, asked = Run(rank, world, settings), []
    bad_step = BAD_STEP if damaged else 0

    def allow() -> bool:
        asked.append(float(grad_norm(run.engine)))
        # Without damage the first question is answered No: a second one about the same step would get a Yes.
        return math.isfinite(asked[-1]) if damaged else len(asked) > 1

    run.engine.basic_optimizer.allow = allow
    norms = []
    for index in range(STEPS):
        damage = torch.Tensor.log if damaged and index == bad_step else None  # of −1: NaN
        norms.append(run.step(index, damage)[2])

    other = Run(rank, world, settings)
    expected = [other.step(index)[2] for index in range(STEPS) if index != bad_step]
    gathered: list[list[float]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(gathered, norms)
    states = [list(r.engine.basic_optimizer.state.values()) for r in (run, other)]
    return {
        "norms": norms,
        "asked": asked,
        "norms_agree": all(each == norms for each in gathered),
        "bad_norms": [[i for i, norm in enumerate(each) if not math.isfinite(norm)] for each in gathered],
        "others_equal": norms[:bad_step] + norms[bad_step + 1 :] == expected,
        "weights_equal": all(torch.equal(a, b) for a, b in zip(run.weights(), other.weights(), strict=True)),
        "moments_equal": all(
            torch.equal(a[key], b[key])
            for a, b in zip(*states, strict=True)
            for key in ("step", "exp_avg", "exp_avg_sq")
        ),
        "optimizer_steps": [int(state["step"]) for state in states[0]],
    }


def trained_model(experiment: Experiment) -> Model:
    """A model whose every weight has a gradient. A new one predicts zero, so that most have none."""
    model = new_model(experiment)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def plain_gradient(experiment: Experiment, rows_at_once: int) -> Tensor:
    """The first step's gradient by torch alone: bf16 under autocast, micro-batches added up in fp32."""
    model = trained_model(experiment)
    rows, parts = batch(0, 0, 1), BATCH // rows_at_once
    drawn = draw(experiment.model, experiment.objective, experiment.diffusion, seed=0, step=0, samples=rows.samples)
    objective = Objective(model, experiment.objective, experiment.diffusion)

    def predict(
        noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, plan: AttentionPlan
    ) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = model(noised, clean, positions, t, labels, plan)
        return out

    for part in range(parts):
        some = slice(part * rows_at_once, (part + 1) * rows_at_once)
        loss = objective(predict, rows.latents[some], rows.labels[some], drawn.part(some))
        (loss.weighted / parts).backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def bf16_gradient(rank: int, world: int, settings: Sequence[str]) -> dict[str, Any]:
    """The first step's gradient in two micro-batches a rank, against that of torch alone."""
    from deepspeed.utils import safe_get_full_optimizer_state

    at_once = BATCH // world // 2
    run = Run(rank, world, [*BF16, micro(at_once), *settings], trained_model)
    loss, _, norm = run.step(0)
    scale = 1 - run.experiment.optim.betas[0]  # the first moment after one step is that times the gradient
    moments = [
        run.engine.basic_optimizer.state[parameter]["exp_avg"]
        if run.experiment.train.stage == 0
        else safe_get_full_optimizer_state(parameter, "exp_avg")
        for parameter in run.engine.module.parameters()
    ]
    found = torch.cat([moment.flatten() for moment in moments]) / scale
    wanted = plain_gradient(run.experiment, at_once)
    return {
        "loss": loss,
        "norms": [norm, float(found.norm()), float(wanted.norm())],
        "error": float((found - wanted).abs().max() / wanted.abs().max()),
        "share of zeros": float((wanted == 0).float().mean()),
    }


def continued(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """A bf16 run goes on from a checkpoint of a version that reduced gradients in bf16."""
    settings = [*BF16, *stage(1, micro(4))]
    old = Run(rank, world, [*settings, REDUCED_IN_BF16])
    old.step(0)
    save_engine(old.engine, folder)
    new = Run(rank, world, settings)
    load_engine(new.engine, folder)
    same = all(torch.equal(a, b) for a, b in zip(old.weights(), new.weights(), strict=True))
    return {"weights_equal": same, "losses": [run.step(1)[0] for run in (old, new)]}


def bytes_kept(settings: Sequence[str]) -> int:
    """What the first forward pass keeps for the backward pass, parameters left out."""
    run, kept = Run(0, 1, settings), dict[int, int]()
    parameters = {p.untyped_storage().data_ptr() for p in run.engine.module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run.step(0)
    return sum(kept.values())


def stage(number: int, *more: str) -> list[str]:
    return [f"train.zero_stage={number}", *more]


def micro(rows: int | None) -> str:
    return f"train.micro_batch_size={'null' if rows is None else rows}"


def run(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Train in all layouts of this group's size as one rank."""
    results: dict[str, Any] = {"plain": plain_curve([], STEPS)}
    splits: dict[int, list[tuple[int, int | None]]] = {
        1: [(0, None), (0, 2), (1, 1), (2, 4), (3, 8)],
        2: [(0, None), (1, 4), (2, 2), (2, None), (3, 1)],
        4: [(0, 1), (1, 2), (2, 4), (3, 2)],
    }
    results["splits"] = {
        f"stage {number}, {world} workers, {rows} rows": curve(rank, world, stage(number, micro(rows)))
        for number, rows in splits[world]
    }
    if world == 1:
        again = "train.activation_checkpointing=true"
        results["dit"] = plain_curve(DIT, STEPS)
        results["recomputed"] = {
            "0": curve(rank, world, stage(0, again)),
            "3": curve(rank, world, stage(3, again, micro(4))),
            "dit": curve(rank, world, stage(1, again, *DIT)),
        }
        results["bytes kept"] = {"all": bytes_kept(stage(0)), "recomputed": bytes_kept(stage(0, again))}
        results["compiled dit"] = curve(rank, world, stage(1, "train.compile=true", *DIT))
        results["16 bits"] = {
            str(number): resumed(
                rank, world, stage(number, "train.precision=bf16_weights", micro(8)), folder / f"bf16-{number}"
            )
            for number in (1, 2, 3)
        }
    if world == 2:
        results["offloaded"] = {
            f"{what} {number}": resumed(
                rank, world, stage(number, f"train.offload={what}", micro(4)), folder / f"offload-{what}-{number}"
            )
            for what, number in (("optimizer", 2), ("optimizer", 3), ("parameters", 3))
        }
        cases = {
            "0": stage(0),
            "0, no clipping, in parts": stage(0, "optim.clip_grad_norm=0", micro(4)),
            "1": stage(1),
            "2, no clipping, in parts": stage(2, "optim.clip_grad_norm=0", micro(4)),
            "3, partition groups": stage(3, "+train.deepspeed.zero_optimization.sub_group_size=4000"),
            "1, bf16 weights": stage(1, "train.precision=bf16_weights"),
        }
        results["damaged"] = {name: guarded(rank, world, case, damaged=True) for name, case in cases.items()}
        results["refused"] = {
            name: guarded(rank, world, case, damaged=False) for name, case in cases.items() if "bf16" not in name
        }
    # Last, since DeepSpeed keeps in its process that an engine has had autocast.
    if world <= 2:
        results["bf16"] = {str(number): bf16_gradient(rank, world, stage(number)) for number in (0, 1, 2, 3)}
    if world == 2:
        for number in (1, 2):
            overlapped = stage(number, *OVERLAPPED)
            results["bf16"][f"{number}, overlapped"] = bf16_gradient(rank, world, overlapped)
        results["bf16"]["1, as before"] = bf16_gradient(rank, world, stage(1, REDUCED_IN_BF16))
        results["continued"] = continued(rank, world, folder / "continued")
    return results
