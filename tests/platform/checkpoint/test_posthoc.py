"""Averages chosen after training, against brute force over every step of a run."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from scipy.integrate import quad
from tests.platform.checkpoint.made import hash_files
from torch import Tensor

from causalfusion import PRESETS, DiffusionConfig, build_model, load_diffusion, load_weights, save_weights
from causalfusion_platform.checkpoint.manifest import Facts, write_manifest
from causalfusion_platform.checkpoint.posthoc import WIDEST, combination, exponent, power_name, reconstruct
from causalfusion_platform.cli.main import main
from causalfusion_platform.config.errors import UserError

STEPS, SNAPSHOTS, WIDTHS = 400, (100, 200, 300, 400), (0.05, 0.1)
Array = npt.NDArray[np.float64]


def profile(step: int, sigma: float, times: Array) -> Array:
    """(γ + 1) τ^γ / t^(γ + 1) up to t, 0 after it; γ by bisection."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        width = (middle + 1) ** 0.5 / (middle + 2) / (middle + 3) ** 0.5
        low, high = (middle, high) if width > sigma else (low, middle)
    density: Array = np.where(times < step, (low + 1) * (times / step) ** low / step, 0.0)
    return density


def direct(walk: dict[str, Tensor], sigma: float, step: int = STEPS) -> dict[str, Tensor]:
    """The average of weights (steps + 1, …) by the integral of the profile over each step."""
    gamma = exponent(sigma)
    edges = (np.arange(step + 1) / step) ** (gamma + 1)
    counts = torch.from_numpy(np.diff(edges))
    return {name: torch.tensordot(counts, values[1 : step + 1].double(), 1) for name, values in walk.items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    squares = [float((one[name].double() - other[name].double()).square().sum()) for name in one]
    return math.sqrt(sum(squares))


def checkpoint(run: Path, step: int, averages: dict[str, dict[str, Tensor]], order: int = 0) -> Path:
    folder = run / "checkpoints" / f"images-{step:012d}"
    main_state = dict(build_model(PRESETS["tiny"]).state_dict())
    save_weights(folder / "weights", PRESETS["tiny"], main_state, DiffusionConfig(prediction="v"))
    for name, state in averages.items():
        (folder / "averages" / name).mkdir(parents=True)
        tensors = {key: tensor.float() for key, tensor in state.items()}
        save_file(tensors, folder / "averages" / name / "model.safetensors")
    facts = Facts(
        step=step,
        images_seen=step,
        order=order,
        seed=0,
        world_size=1,
        zero_stage=1,
        precision="fp32",
        config_digest="0" * 64,
        data_digest="0" * 64,
        averages=list(averages),
    )
    write_manifest(folder, facts, hash_files(folder))
    return folder


@pytest.fixture(scope="module")
def walk() -> dict[str, Tensor]:
    """Weights that walk at random from where they start, all along a run."""
    generator = torch.Generator().manual_seed(0)
    walk = {}
    for name, tensor in build_model(PRESETS["tiny"]).state_dict().items():
        shape = (STEPS + 1, *tensor.shape)
        walk[name] = 0.5 + 0.02 * torch.randn(shape, generator=generator).cumsum(0)
    return walk


@pytest.fixture
def run_folder(tmp_path: Path, walk: dict[str, Tensor]) -> Path:
    """A run that kept two power-function averages, an exponential one, and four checkpoints."""
    for step in SNAPSHOTS:
        averages = {power_name(sigma): direct(walk, sigma, step) for sigma in WIDTHS}
        averages["ema-0.99"] = {name: torch.full_like(values[0], torch.nan) for name, values in walk.items()}
        checkpoint(tmp_path / "run", step, averages)
    return tmp_path / "run"


@pytest.mark.parametrize("sigma", [0.001, 0.05, 0.1, 0.2, 0.28, WIDEST])
def test_the_exponent_has_the_width(sigma: float) -> None:
    """Mean and variance of τ under τ^γ on [0, 1], integrated numerically."""
    gamma = exponent(sigma)

    def moment(power: int) -> float:
        start = max(0.0, 1 - 60 / (gamma + 1))  # nothing of a narrow peak is before that
        return float(quad(lambda t: (gamma + 1) * t ** (gamma + power), start, 1, epsabs=1e-14)[0])

    assert moment(0) == pytest.approx(1, abs=1e-9)
    assert (moment(2) - moment(1) ** 2) ** 0.5 == pytest.approx(sigma, rel=1e-4)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.289, float("nan")])
def test_impossible_widths(sigma: float) -> None:
    with pytest.raises(ValueError, match="a relative width"):
        exponent(sigma)


def test_a_stored_average_is_itself() -> None:
    stored = list(itertools.product((100, 200), WIDTHS))
    for wanted, choice in enumerate(stored):
        fit = combination(stored, choice)
        np.testing.assert_allclose(fit.weights, np.eye(4)[wanted], atol=1e-6)
        assert fit.residual < 1e-6


@pytest.mark.parametrize("wanted", [(400, 0.07), (400, 0.15), (350, 0.03)])
def test_the_combination_is_the_least_squares_fit(wanted: tuple[int, float]) -> None:
    """Against numpy's own fit of profiles on a fine grid, the last factor being 1 less the others."""
    stored = [(step, sigma) for step in (100, 250, 400) for sigma in WIDTHS]
    times = (np.arange(200_000) + 0.5) / 200_000 * 400
    columns = np.stack([profile(step, sigma, times) for step, sigma in stored], 1)
    target = profile(*wanted, times)
    others = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], target - columns[:, -1])[0]
    expected = np.append(others, 1 - others.sum())
    fit = combination(stored, wanted)
    np.testing.assert_allclose(fit.weights, expected, rtol=1e-3, atol=1e-4)
    left = np.linalg.norm(columns @ expected - target) / np.linalg.norm(target)
    assert left > 1e-3
    assert fit.residual == pytest.approx(left, rel=1e-3)


def test_many_snapshots_fit_well() -> None:
    """As in EDM2: two widths, snapshots all along; the fit does not blow up where they are close to each other."""
    stored = [(step, sigma) for step in range(20, 2001, 20) for sigma in WIDTHS]
    for sigma in (0.03, 0.07, 0.15, 0.2):
        fit = combination(stored, (2000, sigma))
        assert fit.residual < 0.005
        assert sum(fit.weights) == pytest.approx(1, abs=1e-9)
        assert sum(map(abs, fit.weights)) < 100
    with pytest.raises(ValueError, match="no stored averages"):
        combination([], (1, 0.1))


@pytest.mark.parametrize("sigma", [0.04, 0.07, 0.1, 0.15])
def test_an_average_is_reconstructed(
    run_folder: Path, walk: dict[str, Tensor], tmp_path: Path, sigma: float
) -> None:
    said = reconstruct(run_folder, sigma, tmp_path / "out")
    found = dict(load_weights(tmp_path / "out").state_dict())
    wanted = direct(walk, sigma)
    nearest = min(distance(direct(walk, stored), wanted) for stored in WIDTHS)
    if sigma in WIDTHS:
        assert distance(found, wanted) < 1e-3
    else:
        assert distance(found, wanted) < (0.15 if sigma > min(WIDTHS) else 0.5) * nearest
    assert load_diffusion(tmp_path / "out").prediction == "v"
    assert said.startswith(f"{tmp_path / 'out'}: {power_name(sigma)} at step 400, from 8 stored averages\n")
    assert "power-0.05, power-0.10 at steps 100, 200, 300, 400; the fit leaves " in said
    left = combination(list(itertools.product(SNAPSHOTS, WIDTHS)), (STEPS, sigma)).residual
    assert f"leaves {left:.2%} of" in said


def test_what_is_damaged_or_given_up_is_left_out(
    run_folder: Path, walk: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that has changed, a checkpoint without a manifest, and what a roll-back to step 200 has undone."""
    root = run_folder / "checkpoints"
    checkpoint(run_folder, 250, {power_name(0.1): direct(walk, 0.1, 250)}, order=1)
    (root / "images-000000000100" / "checkpoint.json").unlink()
    file = root / "images-000000000200" / "averages" / "power-0.05" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    said = reconstruct(root, 0.1, tmp_path / "out")
    assert "at step 250, from 2 stored averages\n  power-0.10 at steps 200, 250;" in said
    assert "power-0.05/model.safetensors is damaged" in caplog.text
    assert "images-000000000100 is left out" in caplog.text
    assert distance(dict(load_weights(tmp_path / "out").state_dict()), direct(walk, 0.1, 250)) < 1e-3


def test_refusals(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no power-function averages in [\s\S]*optim.ema_power=\[0.05,0.10\]"):
        reconstruct(tmp_path, 0.1, tmp_path / "out")
    only_others = tmp_path / "others"
    checkpoint(only_others, 5, {"ema-0.9": dict(build_model(PRESETS["tiny"]).state_dict())})
    with pytest.raises(UserError, match="no power-function averages"):
        reconstruct(only_others, 0.1, tmp_path / "out")
    for sigma in (0.0, 0.3, float("nan")):
        with pytest.raises(UserError, match=r"is not possible\n  allowed: above 0, up to 0.2887"):
            reconstruct(run_folder, sigma, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="exists and is not empty"):
        reconstruct(run_folder, 0.1, run_folder)


def test_the_command(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["causalfusion", "weights", "posthoc", *arguments])
        status: object = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        return (status, *capsys.readouterr())

    status, out, err = command(str(run_folder), "chosen", "--sigma", "0.07")
    assert (status, err) == (0, "")
    assert out.startswith("chosen: power-0.07 at step 400, from 8 stored averages\n")
    assert load_weights("chosen").config == PRESETS["tiny"]
    status, out, err = command(str(tmp_path / "nothing"), "other")
    assert (status, out) == (2, "")
    assert err.startswith("error: no power-function averages in ")
