"""One rank of `test_text_image`: train text and images with each ZeRO stage, and the same by torch alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from tests.platform.config.trees import load_experiment
from torch import Tensor

from causalfusion import CaptionConfig, CausalFusion, TextImageObjective, Texts, draw, draws
from causalfusion.text.tokenizer import train_bpe
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.read import worker_rows
from causalfusion_platform.sampling.describe import describe_together
from causalfusion_platform.tasks.text_image import TextImage
from causalfusion_platform.tasks.text_image.training import TextImageBatch
from causalfusion_platform.train.ema import Averages
from causalfusion_platform.train.ema_profiles import Exponential
from causalfusion_platform.train.engine import build_engine
from causalfusion_platform.train.loop import TrainLoop, TrainState

BATCH, STEPS, VOCABULARY, LONGEST, SHARE, WEIGHT = 6, 4, 40, 8, 0.2, 0.25
LAST = (4, 9, 14, 19)
"""Positions of the texts behind their images: one a step, on the second rank, twice, and on the first, twice."""
MICRO_BATCHES = {1: (6, 1), 2: (3, 1)}
"""World size → rows at once."""
ALL = "objective.text.share=1.0"
TRANSFUSION = (
    "model.architecture=transfusion",
    "objective.num_ar_steps=1",
    "objective.ar_weight=1",
)
Measured = list[list[float]]
"""[loss, MSE, text loss, share of cut captions, gradient norm] of each step, means over the ranks."""


class Engine:
    """A model in place of its engine."""

    def __init__(self, module: CausalFusion) -> None:
        self.module = module

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def experiment_of(world: int = 1, stage: int = 0, micro: int = BATCH, *more: str) -> Experiment:
    """A tiny model of text. ZeRO 3 keeps no parameter whole, however small."""
    return load_experiment(
        "text",
        [
            "model.preset=tiny",
            f"model.text.vocabulary={VOCABULARY}",
            f"model.text.max_tokens={LONGEST}",
            f"objective.text.share={SHARE}",
            f"objective.text.weight={WEIGHT}",
            f"train.num_workers={world}",
            f"train.zero_stage={stage}",
            f"train.micro_batch_size={micro}",
            f"train.global_batch_size={BATCH}",
            "+train.deepspeed.zero_optimization.stage3_param_persistence_threshold=0",
            "optim.warmup_images=0",
            "optim.eps=1.0",  # updates are then in proportion to gradients, also where those are noise
            "optim.base_lr=20.0",
            *more,
        ],
    )


def batch(step: int, rank: int = 0, world: int = 1) -> TextImageBatch:
    """This rank's part of a batch of noise with texts of 2 to 8 tokens. Every third caption is cut."""
    generator = torch.Generator().manual_seed(step)
    first, own = step * BATCH, worker_rows(BATCH, rank, world)
    columns = {
        "row_id": torch.arange(first, first + BATCH),
        "latent": torch.randn(BATCH, 1, 8, 8, generator=generator).half(),
        "tokens": torch.randint(VOCABULARY, (BATCH, LONGEST), generator=generator, dtype=torch.int32),
        "lengths": torch.randint(2, LONGEST + 1, (BATCH,), generator=generator, dtype=torch.int32),
        "cut": (torch.arange(first, first + BATCH) % 3 == 0).int(),
    }
    return TextImage.collate({name: part[own].numpy() for name, part in columns.items()}, first + own.start)


def new_model(experiment: Experiment) -> CausalFusion:
    torch.manual_seed(draws.stream_seed(experiment.seed, "initial weights"))
    model = TextImage(experiment).build_model()
    with torch.no_grad():  # a new model predicts zero images, whose gradient reaches the last layer only
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def trained(rank: int, world: int, stage: int, micro: int, *more: str) -> dict[str, Any]:
    """Train with the engine. Return the numbers of each step, and some of the weights after the last one."""
    experiment = experiment_of(world, stage, micro, *more)
    model, device = new_model(experiment), torch.device("cpu")
    objective = TextImage(experiment).objective(model)
    engine = build_engine(model, experiment, device, "fp32")
    averages = Averages(engine.module, [Exponential(0.0, warmup=False)])
    loop = TrainLoop(experiment, engine, objective, averages, TrainState(), device)
    measured: Measured = []
    for index in range(STEPS):
        done = loop.train_step(loop.ready(batch(index, rank, world)))
        loop.state.step += 1
        loop.state.images_seen += BATCH
        averages.update(loop.state.step)
        means = torch.stack([done.loss, *(done.values[name] for name in ("mse", "text_loss", "captions_cut"))])
        torch.distributed.all_reduce(means)
        measured.append([*(means / world).tolist(), float(done.grad_norm)])
    return {"steps": measured, "weights": projections(averages.full_state())}


def plain(*more: str, described: Collection[int] = LAST) -> dict[str, Any]:
    """The same by torch alone: each row on its own, and AdamW on the sum of their losses.

    The model runs once a row, so that no other row, kind or padding takes part in its loss.
    """
    experiment = experiment_of(1, 0, BATCH, *more)
    model = new_model(experiment)
    kinds = [experiment_of(1, 0, BATCH, *more, f"objective.text.share={share}") for share in (0, 1)]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=experiment.learning_rate,
        betas=experiment.optim.betas,
        eps=experiment.optim.eps,
        weight_decay=0,
    )
    measured: Measured = []
    for index in range(STEPS):
        rows = batch(index)
        targets = sum(int(rows.lengths[row]) - 1 for row in range(BATCH) if rows.samples[row] in described)
        loss, mse, text = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for row, position in enumerate(rows.samples):
            last, length, one = position in described, int(rows.lengths[row]), slice(row, row + 1)
            objective = TextImageObjective(model, kinds[last].objective, experiment.diffusion)
            alone = Texts(rows.tokens[one, :length], rows.lengths[one], torch.tensor([last]))
            drawn = draw(
                model.config, experiment.objective, experiment.diffusion, seed=0, step=index, samples=rows.samples
            )
            # A text's summed entropy over the targets of the batch, and the mean of the images' losses.
            found = objective(model, rows.latents[one], alone, drawn.part(one), targets / BATCH)
            loss, mse, text = loss + found.weighted / BATCH, mse + found.mse / BATCH, text + found.text / BATCH
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        cut = sum(position % 3 == 0 for position in rows.samples) / BATCH
        measured.append([float(loss), float(mse), float(text), cut, float(norm)])
    return {"steps": measured, "weights": projections(model.state_dict())}


def projections(weights: dict[str, Tensor]) -> list[float]:
    """Return three numbers of each tensor: its sum, its norm, and its product with a random one."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in sorted(weights):
        tensor = weights[name].double()
        other = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        found += [float(tensor.sum()), float(tensor.norm()), float((tensor * other).sum())]
    return found


def run(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Measure all cases of one number of ranks, and the reference on one."""
    del folder
    cases = [(stage, micro) for stage in (0, 1, 2, 3) for micro in MICRO_BATCHES[world]]
    found = {f"{stage}, {micro} at once": trained(rank, world, stage, micro) for stage, micro in cases}
    found["transfusion"] = trained(rank, world, 3, 3, *TRANSFUSION)
    found["all described"] = trained(rank, world, 3, 3, ALL)
    found["captions"] = captions()
    if world == 1:
        found |= {"plain": plain(), "plain transfusion": plain(*TRANSFUSION)}
        found["plain, all described"] = plain(ALL, described=range(STEPS * BATCH))
    return found


def captions() -> dict[str, list[str]]:
    """Sampled texts of five images and of one, shared out over the ranks: one of two may have none."""
    tokenizer = train_bpe(["a few words", "some other words"], vocabulary=270)
    model = new_model(experiment_of(1, 0, BATCH, "model.text.vocabulary=300")).eval()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    config = CaptionConfig(temperature=1.0)
    return {
        str(count): describe_together(model, images[:count], tokenizer, config, seed=3, batch_size=2, bf16=False)
        for count in (5, 1)
    }
