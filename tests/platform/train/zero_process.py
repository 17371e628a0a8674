"""One rank of `test_zero`: train, compare the EMA, save, load, train on. Run as a module, one process a rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from causalfusion import Model, Objective, build_model, draw, draws
from causalfusion_platform.checkpoint.engine_state import load_engine, save_engine
from causalfusion_platform.config.compose import load_experiment
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.digits import digits
from causalfusion_platform.data.read import Batch
from causalfusion_platform.data.stream import worker_rows
from causalfusion_platform.train.ema import Ema
from causalfusion_platform.train.engine import build_engine
from causalfusion_platform.train.loop import TrainLoop, TrainState

STEPS_BEFORE, STEPS_AFTER, BATCH = 4, 2, 16


def new_model(experiment: Experiment) -> Model:
    torch.manual_seed(draws.stream_seed(experiment.seed, "initial weights"))
    return build_model(experiment.model)


def build(experiment: Experiment) -> TrainLoop:
    model = new_model(experiment)
    objective = Objective(model, experiment.objective, experiment.diffusion)
    device = torch.device("cpu")
    engine = build_engine(model, experiment, device, "fp32")
    ema = Ema(model, decay=0.9, warmup=False)
    return TrainLoop(experiment, engine, objective, ema, TrainState(), device)


def batch(step: int, rank: int, world: int) -> Batch:
    data = digits()
    rows = range(step * BATCH, (step + 1) * BATCH)[worker_rows(BATCH, rank, world)]
    return Batch(
        samples=rows,
        row_ids=torch.arange(rows.start, rows.stop),
        latents=torch.from_numpy(data.mean[rows.start : rows.stop]).float(),
        labels=torch.from_numpy(data.labels[rows.start : rows.stop]),
    )


def step(loop: TrainLoop, rank: int, world: int) -> float:
    loss = loop.train_step(batch(loop.state.step, rank, world)).loss
    loop.state.step += 1
    loop.state.images_seen += BATCH
    loop.ema.update(loop.state.step)
    torch.distributed.all_reduce(loss)
    return float(loss) / world


def weights(loop: TrainLoop) -> dict[str, torch.Tensor]:
    """All weights in full: under ZeRO 3 gathered from the ranks."""
    from deepspeed.runtime.zero import GatheredParameters

    parameters = dict(loop.engine.module.named_parameters())
    if not loop.ema.sharded:
        return {name: p.detach().clone() for name, p in parameters.items()}
    with GatheredParameters(list(parameters.values())):
        return {name: p.detach().clone() for name, p in parameters.items()}


def run_stage(stage: int, rank: int, world: int, folder: Path) -> dict[str, Any]:
    experiment = load_experiment(
        "smoke",
        [f"train.zero_stage={stage}", f"train.num_workers={world}", f"train.global_batch_size={BATCH}"],
    )
    loop = build(experiment)
    reference = {name: tensor.double() for name, tensor in weights(loop).items()}
    losses = []
    for _ in range(STEPS_BEFORE):
        losses.append(step(loop, rank, world))
        for name, tensor in weights(loop).items():
            reference[name] = 0.9 * reference[name] + 0.1 * tensor.double()
    average = loop.ema.full_state()
    ema_error = max(float((average[name].double() - reference[name]).abs().max()) for name in reference)
    moved = max(float((average[name].double() - weights(loop)[name].double()).abs().max()) for name in reference)

    save_engine(loop.engine, folder / f"stage-{stage}")
    saved_ema = {name: tensor.clone() for name, tensor in loop.ema.average.items()}
    uninterrupted = [step(loop, rank, world) for _ in range(STEPS_AFTER)]

    resumed_loop = build(experiment)
    load_engine(resumed_loop.engine, folder / f"stage-{stage}")
    resumed_loop.ema.load(saved_ema)
    resumed_loop.state.step, resumed_loop.state.images_seen = STEPS_BEFORE, STEPS_BEFORE * BATCH
    resumed = [step(resumed_loop, rank, world) for _ in range(STEPS_AFTER)]
    pairs = zip(loop.ema.full_state().values(), resumed_loop.ema.full_state().values(), strict=True)
    return {
        "losses": losses,
        "ema_error": ema_error,
        "ema_lag": moved,
        "sharded": loop.ema.sharded,
        "uninterrupted": uninterrupted,
        "resumed": resumed,
        "resumed_ema_equal": all(torch.equal(a, b) for a, b in pairs),
    }


def run_dit() -> dict[str, list[list[float]]]:
    """Train a DiT with the engine (ZeRO 1), and with torch alone: loss, MSE, gradient norm and S of each step."""
    experiment = load_experiment(
        "smoke",
        [
            "model.preset=digits-dit",
            "model.depth=2",
            "objective.num_ar_steps=1",
            f"train.global_batch_size={BATCH}",
        ],
    )
    loop, steps = build(experiment), []
    for index in range(STEPS_BEFORE):
        done = loop.train_step(batch(index, 0, 1))
        loop.state.step += 1
        loop.state.images_seen += BATCH
        steps.append([float(done.loss), float(done.mse), float(done.grad_norm), float(done.num_ar_steps)])

    model = new_model(experiment)
    objective = Objective(model, experiment.objective, experiment.diffusion)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 * BATCH / 256, betas=(0.9, 0.95), weight_decay=0)
    plain = []
    for index in range(STEPS_BEFORE):
        rows = batch(index, 0, 1)
        drawn = draw(
            experiment.model, experiment.objective, experiment.diffusion, seed=0, step=index, samples=rows.samples
        )
        loss = objective(model, rows.latents, rows.labels, drawn)
        optimizer.zero_grad()
        loss.weighted.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plain.append([float(loss.weighted), float(loss.mse), float(norm), 1.0])
    return {"engine": steps, "plain": plain}


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    results: dict[str, Any] = {
        str(stage): run_stage(stage, rank, world, folder / f"world-{world}") for stage in (0, 1, 2, 3)
    }
    if world == 1:
        results["dit"] = run_dit()
    if rank == 0:
        (folder / f"results-{world}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
