"""Parameter groups keep their own learning rate and weight decay, at every step and after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.platform.train.trained import BATCH, CPU, alone, tiny
from torch import Tensor, nn

from causalfusion import PRESETS, build_model
from causalfusion_platform.checkpoint.engine_state import load_engine, save_engine
from causalfusion_platform.checkpoint.universal import convert, load_universal
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.train.engine import build_engine
from causalfusion_platform.train.optimizer import (
    ParameterGroup,
    build_optimizer,
    set_hyperparameters,
    set_learning_rate,
)

RATES = (0.01, 0.02, 0.005, 0.03, 0.01, 0.02)
SAVED_AFTER = 3
SCALES, DECAYS = (1.0, 0.1), (0.3, 0.0)
LATER_DECAYS = (0.5, 0.2)


class Network(nn.Module):
    """Two layers, each of them a parameter group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)
        self.blocks: list[nn.Module] = []

    def forward(self, rows: Tensor) -> Tensor:
        """(B, 5) → a loss."""
        loss: Tensor = (self.last(self.first(rows).tanh()) - 0.5).square().mean()
        return loss


def network() -> Network:
    torch.manual_seed(3)
    return Network()


def groups_of(model: Network, decays: tuple[float, float]) -> list[ParameterGroup]:
    return [
        ParameterGroup(tuple(layer.parameters()), scale, decay)
        for layer, scale, decay in zip((model.first, model.last), SCALES, decays, strict=True)
    ]


def engine_of(experiment: Experiment, decays: tuple[float, float], *, universal: bool = False) -> Any:
    model: Any = network()
    return build_engine(model, experiment, CPU, "fp32", groups=groups_of(model, decays), load_universal=universal)


def rows_of(step: int) -> Tensor:
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))


def plain(decays_at: Callable[[int], tuple[float, float]]) -> list[Tensor]:
    """The same steps by torch's own AdamW, whose groups are written by hand at each step."""
    model = network()
    settings = [{"params": list(layer.parameters())} for layer in (model.first, model.last)]
    optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.95), eps=1e-8)
    for step, rate in enumerate(RATES):
        decays = decays_at(step)
        optimizer.param_groups[0].update(lr=rate, weight_decay=decays[0])
        optimizer.param_groups[1].update(lr=rate / 10, weight_decay=decays[1])
        optimizer.zero_grad()
        model(rows_of(step)).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def train(engine: Any, start: int, stop: int) -> None:
    for step in range(start, stop):
        set_learning_rate(engine, RATES[step])
        engine.backward(engine(rows_of(step)))
        engine.step()


def check(engine: Any, expected: list[Tensor]) -> None:
    from deepspeed.runtime.zero import GatheredParameters

    parameters = list(engine.module.parameters())
    with GatheredParameters(parameters):
        for found, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found.detach(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_groups_train_as_with_torch_alone(tmp_path: Path, stage: int) -> None:
    """Weight decay and rate are of each group, before a save, after it, and where the settings were changed."""
    alone()
    experiment = tiny(tmp_path, train={"zero_stage": stage}, optim={"clip_grad_norm": 0.0})
    engine = engine_of(experiment, DECAYS)
    train(engine, 0, SAVED_AFTER)
    save_engine(engine, tmp_path / "saved")
    train(engine, SAVED_AFTER, len(RATES))
    check(engine, plain(lambda _: DECAYS))
    for later in (DECAYS, LATER_DECAYS):
        again = engine_of(experiment, later)
        load_engine(again, tmp_path / "saved")
        set_hyperparameters(again, experiment)
        train(again, SAVED_AFTER, len(RATES))
        check(again, plain(lambda step, later=later: DECAYS if step < SAVED_AFTER else later))  # type: ignore[misc]


def test_groups_outlive_a_conversion(tmp_path: Path) -> None:
    """ZeRO 1 goes into ZeRO 2 through the universal format."""
    alone()
    optim = {"clip_grad_norm": 0.0}
    engine = engine_of(tiny(tmp_path, train={"zero_stage": 1}, optim=optim), DECAYS)
    train(engine, 0, SAVED_AFTER)
    save_engine(engine, tmp_path / "saved")
    experiment = tiny(tmp_path, train={"zero_stage": 2}, optim=optim)
    again = engine_of(experiment, LATER_DECAYS, universal=True)
    load_universal(again, convert(tmp_path / "saved", tmp_path / "universal", 2))
    set_hyperparameters(again, experiment)
    train(again, SAVED_AFTER, len(RATES))
    check(again, plain(lambda step: DECAYS if step < SAVED_AFTER else LATER_DECAYS))


def test_one_group_has_the_settings_of_the_experiment(tmp_path: Path) -> None:
    experiment = tiny(tmp_path, optim={"weight_decay": 0.25})
    optimizer = build_optimizer(build_model(PRESETS["tiny"]), experiment)
    (group,) = optimizer.param_groups
    plain_group = torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert set(group) == set(plain_group)  # a checkpoint holds no keys of ours
    assert (group["lr"], group["weight_decay"]) == (experiment.learning_rate, 0.25)


def test_each_trained_parameter_is_in_one_group(tmp_path: Path) -> None:
    model, experiment = network(), tiny(tmp_path)
    first, last = groups_of(model, DECAYS)
    with pytest.raises(ValueError, match=r"last\.weight is in 0 parameter groups"):
        build_optimizer(model, experiment, [first])
    with pytest.raises(ValueError, match=r"first\.weight is in 2 parameter groups"):
        build_optimizer(model, experiment, [first, first, last])
    with pytest.raises(ValueError, match="4 parameters of the groups are not the model's"):
        build_optimizer(model, experiment, [first, last, *groups_of(network(), DECAYS)])
    for parameter in model.last.parameters():
        parameter.requires_grad = False
    assert len(build_optimizer(model, experiment, [first]).param_groups) == 1
