"""One rank of `test_zero`: train, compare the averages, save, load, train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import brentq
from tests.platform.config.trees import load_experiment
from tests.platform.ranks import wait_for
from torch import Tensor, nn

from causalfusion import Model, Objective, build_model, draw, draws
from causalfusion_platform.checkpoint.engine_state import load_engine, save_engine
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.digits import digits
from causalfusion_platform.data.read import Batch, worker_rows
from causalfusion_platform.tasks.class_to_image import ClassToImageObjective
from causalfusion_platform.train.ema import Averages
from causalfusion_platform.train.ema_profiles import Exponential, PowerFunction
from causalfusion_platform.train.engine import build_engine
from causalfusion_platform.train.loop import TrainLoop, TrainState

STEPS_BEFORE, STEPS_AFTER, BATCH = 4, 2, 16
AVERAGED_STEPS = 12
DIT = ["model.preset=digits-dit", "model.depth=2", "objective.num_ar_steps=1"]
Curve = list[list[float]]
PROFILES = (Exponential(0.9, warmup=False), Exponential(0.99, warmup=False), PowerFunction(0.1))
CASES: dict[str, dict[str, Any]] = {
    "0": {},
    "1": {},
    "2": {},
    "3": {},
    "1-bf16": {"bf16": {"enabled": True}},
    "2-bf16": {"bf16": {"enabled": True}},
    "3-bf16": {"bf16": {"enabled": True}},
    # DeepSpeed has an optimizer of its own for this one.
    "1-bf16-fp32-gradients": {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
    "3-autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    "2-offload": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
}
"""ZeRO stage, and what is changed in DeepSpeed's configuration."""
LOADED = ("0", "1", "2", "3", "3-bf16")
"""Those whose averages are loaded with another number of ranks."""


class Odd(nn.Module):
    """Sizes that two ranks cannot share evenly, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 13)
        self.second = nn.Linear(13, 75)
        self.mix = nn.Conv2d(3, 2, 3)
        self.gain = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.linspace(-1, 1, 75), requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, 7) → a loss."""
        image = (self.second(self.first(rows).tanh()) * self.gain + self.frozen).view(-1, 3, 5, 5)
        loss: Tensor = (self.mix(image).float() - 0.3).square().mean()
        return loss


def odd_engine(case: str, world: int) -> Any:
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(0)
    model = Odd()
    config = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // world,
        "zero_optimization": {"stage": int(case[0]), "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
        **CASES[case],
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def bytes_held(averages: Averages) -> int:
    """Return the memory of all averages on this rank."""
    return sum(tensor.nbytes for average in averages._averages.values() for tensor in average)


def masters(module: nn.Module, *, trained: bool = True) -> dict[str, Tensor]:
    """The fp32 weights in full, as DeepSpeed itself gathers them, in float64."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad == trained:
            full = safe_get_full_fp32_param(parameter)
            found[name] = (parameter.detach() if full is None else full).double().clone()
    return found


def true_decays() -> dict[str, Any]:
    gamma = brentq(lambda g: (g + 1) ** 0.5 / (g + 2) / (g + 3) ** 0.5 - 0.1, 0, 1e3, xtol=1e-12)
    return {
        "ema-0.9": lambda step: 0.9,
        "ema-0.99": lambda step: 0.99,
        "power-0.10": lambda step: ((step - 1) / step) ** (gamma + 1),
    }


def average_case(case: str, rank: int, world: int, folder: Path) -> dict[str, Any]:
    engine = odd_engine(case, world)
    averages = Averages(engine.module, PROFILES)
    decays = true_decays()
    reference = {name: masters(engine.module) for name in decays}
    generator = torch.Generator().manual_seed(1)
    dtype = torch.bfloat16 if "bf16" in case else torch.float32
    for step in range(1, AVERAGED_STEPS + 1):
        rows = torch.randn(BATCH, 7, generator=generator)[rank::world]
        engine.backward(engine(rows.to(dtype)))
        engine.step()
        averages.update(step)
        now = masters(engine.module)
        for name, decay in decays.items():
            for key, value in now.items():
                reference[name][key] = decay(step) * reference[name][key] + (1 - decay(step)) * value

    before = masters(engine.module)
    state = {name: averages.full_state(name) for name in decays}
    after = masters(engine.module)
    for name, tensors in state.items():
        if rank == 0:
            (folder / case / name).mkdir(parents=True)
            save_file(tensors, folder / case / name / "model.safetensors")
    held: list[int] = [0] * world
    torch.distributed.all_gather_object(held, bytes_held(averages))
    frozen = torch.linspace(-1, 1, 75).to(dtype).float()
    return {
        "errors": {
            name: max(float((state[name][key] - reference[name][key]).abs().max()) for key in now)
            for name in decays
        },
        "lag": max(float((state["ema-0.9"][key] - now[key]).abs().max()) for key in now),
        "keys": {name: list(tensors) for name, tensors in state.items()},
        "dtypes": sorted({str(tensor.dtype) for tensors in state.values() for tensor in tensors.values()}),
        "frozen_kept": all(torch.equal(tensors["frozen"], frozen) for tensors in state.values()),
        "main": all(torch.equal(averages.full_state()[key], state["ema-0.9"][key]) for key in now),
        "undisturbed": all(torch.equal(before[key], after[key]) for key in now),
        "bytes": held,
        "finite": averages.finite(),
    }


def load_case(case: str, world: int, folder: Path) -> bool:
    """Whether new averages, loaded from what another number of ranks wrote, are that bit for bit."""
    averages = Averages(odd_engine(case, world).module, PROFILES)
    written = {profile.name: folder / case / profile.name for profile in PROFILES}
    averages.load(written)
    same = True
    for name, place in written.items():
        expected, found = load_file(place / "model.safetensors"), averages.full_state(name)
        same &= expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    return same


def new_model(experiment: Experiment) -> Model:
    torch.manual_seed(draws.stream_seed(experiment.seed, "initial weights"))
    return build_model(experiment.model)


def build(experiment: Experiment) -> tuple[TrainLoop, Averages]:
    model = new_model(experiment)
    objective = ClassToImageObjective(model, experiment)
    device = torch.device("cpu")
    engine = build_engine(model, experiment, device, "fp32")
    averages = Averages(engine.module, PROFILES)
    return TrainLoop(experiment, engine, objective, averages, TrainState(), device), averages


def batch(step: int, rank: int, world: int) -> Batch:
    data = digits()
    rows = range(step * BATCH, (step + 1) * BATCH)[worker_rows(BATCH, rank, world)]
    return Batch(
        samples=rows,
        row_ids=torch.arange(rows.start, rows.stop),
        latents=torch.from_numpy(data.mean[rows.start : rows.stop]).float(),
        labels=torch.from_numpy(data.labels[rows.start : rows.stop]),
    )


def plain_curve(settings: Sequence[str], steps: int) -> Curve:
    """The same training by torch alone: one process, whole batches. [loss, MSE, gradient norm] of each step."""
    experiment = load_experiment("smoke", [f"train.global_batch_size={BATCH}", *settings])
    model = new_model(experiment)
    objective = Objective(model, experiment.objective, experiment.diffusion)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 * BATCH / 256, betas=(0.9, 0.95), weight_decay=0)
    curve = []
    for index in range(steps):
        rows = batch(index, 0, 1)
        drawn = draw(
            experiment.model, experiment.objective, experiment.diffusion, seed=0, step=index, samples=rows.samples
        )
        loss = objective(model, rows.latents, rows.labels, drawn)
        optimizer.zero_grad()
        loss.weighted.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append([float(loss.weighted), float(loss.mse), float(norm)])
    return curve


def step(loop: TrainLoop, averages: Averages, rank: int, world: int) -> float:
    loss = loop.train_step(loop.ready(batch(loop.state.step, rank, world))).loss
    loop.state.step += 1
    loop.state.images_seen += BATCH
    averages.update(loop.state.step)
    torch.distributed.all_reduce(loss)
    return float(loss) / world


def run_stage(stage: int, rank: int, world: int, folder: Path) -> dict[str, Any]:
    experiment = load_experiment(
        "smoke",
        [f"train.zero_stage={stage}", f"train.num_workers={world}", f"train.global_batch_size={BATCH}"],
    )
    loop, averages = build(experiment)
    losses = [step(loop, averages, rank, world) for _ in range(STEPS_BEFORE)]

    save_engine(loop.engine, folder / f"stage-{stage}")
    saved = {profile.name: folder / f"stage-{stage}" / f"{profile.name}.safetensors" for profile in PROFILES}
    for name, file in saved.items():
        state = averages.full_state(name)
        if rank == 0:
            save_file(state, file)
    torch.distributed.barrier()
    uninterrupted = [step(loop, averages, rank, world) for _ in range(STEPS_AFTER)]

    resumed_loop, resumed_averages = build(experiment)
    load_engine(resumed_loop.engine, folder / f"stage-{stage}")
    resumed_averages.load(saved)
    resumed_loop.state.step, resumed_loop.state.images_seen = STEPS_BEFORE, STEPS_BEFORE * BATCH
    resumed = [step(resumed_loop, resumed_averages, rank, world) for _ in range(STEPS_AFTER)]
    same = True
    for name in saved:
        pairs = zip(averages.full_state(name).values(), resumed_averages.full_state(name).values(), strict=True)
        same &= all(torch.equal(a, b) for a, b in pairs)
    new_model(experiment).load_state_dict(averages.full_state())  # as the sampler does
    return {"losses": losses, "uninterrupted": uninterrupted, "resumed": resumed, "resumed_averages_equal": same}


def run_dit() -> dict[str, list[list[float]]]:
    """Train a DiT with the engine (ZeRO 1), and with torch alone: loss, MSE, gradient norm and S of each step."""
    experiment = load_experiment(
        "smoke",
        [*DIT, f"train.global_batch_size={BATCH}"],
    )
    (loop, _), steps = build(experiment), []
    for index in range(STEPS_BEFORE):
        done = loop.train_step(loop.ready(batch(index, 0, 1)))
        loop.state.step += 1
        loop.state.images_seen += BATCH
        steps.append([float(done.loss), float(done.values["mse"]), float(done.grad_norm), done.numbers["ar_steps"]])

    return {"engine": steps, "plain": [[*values, 1.0] for values in plain_curve(DIT, STEPS_BEFORE)]}


def run(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Measure all cases as one rank; load what the group of the other size wrote."""
    own, other = folder / f"world-{world}", folder / f"world-{3 - world}"
    results: dict[str, Any] = {"averages": {case: average_case(case, rank, world, own) for case in CASES}}
    torch.distributed.barrier()
    (own / "written").touch()
    results |= {str(stage): run_stage(stage, rank, world, own) for stage in (0, 1, 2, 3)}
    if world == 1:
        results["dit"] = run_dit()
    wait_for(other / "written")
    results["loaded"] = {case: load_case(case, world, other) for case in LOADED}
    return results
