"""The moving averages of weights that are whole, without an engine: closed form, files, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.platform.train.zero_process import bytes_held
from torch import Tensor, nn

from causalfusion import PRESETS, Model, build_model
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.train.ema import Averages
from causalfusion_platform.train.ema_profiles import Exponential, PowerFunction, Profile

HALF: tuple[Profile, ...] = (Exponential(0.5, warmup=False),)


def tiny() -> Model:
    return build_model(PRESETS["tiny"])


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_averages_follow_their_rules() -> None:
    model = tiny()
    set_all(model, 1.0)
    profiles = (Exponential(0.9, warmup=False), Exponential(0.9, warmup=True), PowerFunction(0.1))
    with pytest.raises(AssertionError):
        Averages(model, profiles)  # two of one name
    profiles = (Exponential(0.9, warmup=False), Exponential(0.8, warmup=True), PowerFunction(0.1))
    averages = Averages(model, profiles)
    expected = dict.fromkeys(("ema-0.9", "ema-0.8", "power-0.10"), 1.0)
    for step in range(1, 101):
        value = (-1.0) ** step * step
        set_all(model, value)
        averages.update(step)
        decays = (0.9, min(0.8, (1 + step) / (10 + step)), (1 - 1 / step) ** (PowerFunction(0.1).gamma + 1))
        for name, decay in zip(expected, decays, strict=True):
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in expected.items():
        state = averages.full_state(name)
        for tensor in state.values():
            torch.testing.assert_close(tensor, torch.full_like(tensor, value), rtol=1e-5, atol=1e-5)
    assert averages.main == "ema-0.9"
    assert same(averages.full_state(), averages.full_state("ema-0.9"))
    assert not same(averages.full_state(), averages.full_state("ema-0.8"))
    assert bytes_held(averages) == 3 * 4 * sum(parameter.numel() for parameter in model.parameters())


def test_a_model_loads_the_full_state() -> None:
    model, sampler = tiny(), tiny()
    sampler.load_state_dict(Averages(model, HALF).full_state())
    assert same(dict(sampler.state_dict()), dict(model.state_dict()))


def test_the_averages_are_apart_from_the_weights() -> None:
    model = tiny()
    set_all(model, 1.0)
    averages = Averages(model, HALF)
    set_all(model, 5.0)
    state = averages.full_state()
    assert all(bool((tensor == 1).all()) for tensor in state.values())
    for tensor in state.values():
        tensor.zero_()
    assert all(bool((tensor == 1).all()) for tensor in averages.full_state().values())
    averages.update(1)
    assert all(bool((parameter == 5).all()) for parameter in model.parameters())
    assert all(bool((tensor == 3).all()) for tensor in averages.full_state().values())


def test_weights_in_bf16_without_masters_are_refused() -> None:
    """Averaging them would be off by 2^−9 of their size."""
    with pytest.raises(UserError, match=r"torch.bfloat16 .*no fp32 master[\s\S]*train.zero_stage=1"):
        Averages(tiny().bfloat16(), HALF)
    frozen = nn.Linear(2, 2, dtype=torch.bfloat16).requires_grad_(False)
    assert Averages(frozen, HALF).full_state()["bias"].dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found(bad: float) -> None:
    model = tiny()
    set_all(model, 3e38)  # finite, though their squares and their sum are not
    averages = Averages(model, HALF)
    assert averages.finite()
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[-1] = bad
    assert averages.finite()
    averages.update(1)
    assert not averages.finite()


def test_each_average_is_loaded_from_its_own_file(tmp_path: Path) -> None:
    profiles = (*HALF, PowerFunction(0.1))
    folders = {}
    wanted = {}
    for number, profile in enumerate(profiles):
        wanted[profile.name] = {name: torch.randn_like(p) for name, p in tiny().named_parameters()}
        folders[profile.name] = tmp_path / str(number)
        folders[profile.name].mkdir()
        save_file(wanted[profile.name], folders[profile.name] / "model.safetensors")
    folders["power-0.10"] /= "model.safetensors"  # the file itself will do
    folders["of-another-run"] = tmp_path / "nothing"
    averages = Averages(tiny(), profiles)
    averages.load(folders)
    for name, state in wanted.items():
        assert same(averages.full_state(name), state)


def test_what_does_not_fit_is_not_loaded(tmp_path: Path) -> None:
    averages = Averages(tiny(), HALF)
    with pytest.raises(UserError, match=r"no average ema-0.5; it has ema-0.9, ema-0.99\n  set optim.ema_decay"):
        averages.load({"ema-0.99": tmp_path, "ema-0.9": tmp_path})
    with pytest.raises(UserError, match=r"model.safetensors"):
        averages.load({"ema-0.5": tmp_path})
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"model.safetensors"):
        averages.load({"ema-0.5": tmp_path})
    state = averages.full_state()
    del state["head.bias"]
    state["head.weight"] = state["head.weight"].T.contiguous()
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing \(1\): head.bias[\s\S]*extra[\s\S]*head.weight"):
        averages.load({"ema-0.5": tmp_path})
