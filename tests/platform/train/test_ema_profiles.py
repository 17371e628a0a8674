"""What the averages remember, against closed forms, and how a configuration names them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from causalfusion_platform.config.schema import Experiment, OptimConfig
from causalfusion_platform.train.ema_profiles import Exponential, PowerFunction, Profile, profiles_of


def weights_of_steps(profile: Profile, steps: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How much each of the weights at steps 0 (the initial ones) … `steps` counts in the average."""
    counts = np.zeros(steps + 1)
    counts[0] = 1
    for step in range(1, steps + 1):
        decay = profile.decay(step)
        counts *= decay
        counts[step] += 1 - decay
    return counts


def test_a_constant_decay() -> None:
    counts = weights_of_steps(Exponential(0.9, warmup=False), 50)
    expected = 0.1 * 0.9 ** np.arange(50)[::-1]
    np.testing.assert_allclose(counts[1:], expected, rtol=1e-12)
    assert counts[0] == pytest.approx(0.9**50)


def test_warmup_takes_the_smaller_decay() -> None:
    profile = Exponential(0.9, warmup=True)
    assert [profile.decay(step) for step in (1, 10, 79, 80, 10**6)] == [2 / 11, 11 / 20, 80 / 89, 0.9, 0.9]
    assert Exponential(0.1, warmup=True).decay(1) == 0.1


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_a_power_function_counts_steps_by_their_power(sigma: float) -> None:
    """(τ/t)^(γ+1) − ((τ−1)/t)^(γ+1): what the weighting τ^γ puts on step τ; nothing is left of the start."""
    profile = PowerFunction(sigma)
    counts = weights_of_steps(profile, 1000)
    edges = (np.arange(1001) / 1000) ** (profile.gamma + 1)
    np.testing.assert_allclose(counts[1:], np.diff(edges), rtol=1e-9, atol=1e-300)
    assert counts[0] == 0
    times = np.arange(1, 1001) - 0.5
    mean = (counts[1:] * times).sum()
    spread = np.sqrt((counts[1:] * (times - mean) ** 2).sum()) / 1000
    assert spread == pytest.approx(sigma, rel=1e-3)


def test_the_widths_of_the_paper() -> None:
    """EDM2 gives γ = 16.97 and 6.94 for σ_rel = 0.05 and 0.10."""
    assert PowerFunction(0.05).gamma == pytest.approx(16.97, abs=0.005)
    assert PowerFunction(0.10).gamma == pytest.approx(6.94, abs=0.005)


def test_names() -> None:
    profiles = (
        Exponential(0.9999, warmup=True),
        Exponential(0.99999999, warmup=True),
        Exponential(0.0, warmup=True),
    )
    assert [profile.name for profile in profiles] == ["ema-0.9999", "ema-0.99999999", "ema-0.0"]
    names = [PowerFunction(sigma).name for sigma in (0.1, 0.05, 0.075, 0.00001)]
    assert names == ["power-0.10", "power-0.05", "power-0.075", "power-1e-05"]


def test_profiles_of_a_configuration(make_experiment: Callable[..., Experiment]) -> None:
    assert profiles_of(OptimConfig()) == (Exponential(0.9999, warmup=True),)
    experiment = make_experiment(
        optim={"ema_decay": 0.9, "ema_warmup": False, "ema_more_decays": [0.99, 0.5], "ema_power": [0.05, 0.1]}
    )
    assert profiles_of(experiment.optim) == (
        Exponential(0.9, warmup=False),
        Exponential(0.99, warmup=False),
        Exponential(0.5, warmup=False),
        PowerFunction(0.05),
        PowerFunction(0.1),
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ema_more_decays": [0.9999]}, "ema_more_decays name an average twice: 0.9999"),
        ({"ema_more_decays": [0.9, 0.99, 0.9]}, "ema_more_decays name an average twice: 0.9"),
        ({"ema_power": [0.1, 0.10]}, "ema_power name an average twice: 0.1"),
        ({"ema_power": [0.28]}, "less than 0.28"),
        ({"ema_power": [0.0]}, "greater than 0"),
        ({"ema_more_decays": [1.0]}, "less than 1"),
    ],
)
def test_refusals(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OptimConfig.model_validate(keys)
