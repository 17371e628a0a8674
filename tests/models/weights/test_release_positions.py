"""What the positions of an imported checkpoint are taken for: frozen sinusoids, or learned ones."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from causalfusion.config import PositionEmbedding
from causalfusion.weights import import_release
from causalfusion.weights.checkpoint_file import CheckpointNotice

StateMaker = Callable[..., dict[str, Tensor]]
Sinusoids = Callable[[int, int], Tensor]
Choice = PositionEmbedding | Literal["auto"]

CHOICES: list[Choice] = ["auto", "sinusoidal", "learnable"]


@pytest.fixture
def write(tmp_path: Path, release_state: StateMaker) -> Callable[[Tensor], Path]:
    """Return a function that writes a checkpoint with the given positions."""

    def make(positions: Tensor) -> Path:
        _, tokens, width = positions.shape
        torch.save(release_state(tokens=tokens, width=width) | {"pos_embed": positions}, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return make


def averaged(positions: Tensor, steps: int) -> Tensor:
    """Average positions that do not move, as the release does at decay 0.9999: rounding errors add up."""
    average = positions.clone()
    for _ in range(steps):
        average.mul_(0.9999).add_(positions, alpha=1 - 0.9999)
    return average


@pytest.mark.parametrize("choice", CHOICES)
def test_sinusoids(write: Callable[[Tensor], Path], release_sinusoids: Sinusoids, choice: Choice) -> None:
    """Frozen unless they are named learnable: training may not have moved them yet."""
    table = release_sinusoids(4, 16)
    model = import_release(write(table), patch_size=2, position_embedding=choice)
    assert model.config.position_embedding == ("learnable" if choice == "learnable" else "sinusoidal")
    assert isinstance(model.positions, nn.Parameter) == (choice == "learnable")
    assert ("positions" in model.state_dict()) == (choice == "learnable")
    assert torch.equal(model.positions, table[0])


@pytest.mark.parametrize("choice", ["auto", "learnable"])
def test_learned_positions(write: Callable[[Tensor], Path], choice: Choice) -> None:
    positions = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(2))
    model = import_release(write(positions), patch_size=2, position_embedding=choice)
    assert model.config.position_embedding == "learnable"
    assert isinstance(model.positions, nn.Parameter)
    assert torch.equal(model.positions, positions[0])


def test_one_number_that_moved_makes_learned_positions(
    write: Callable[[Tensor], Path], release_sinusoids: Sinusoids
) -> None:
    table = release_sinusoids(4, 16)
    table[0, 9, 3] = torch.nextafter(table[0, 9, 3], torch.tensor(2.0))
    model = import_release(write(table), patch_size=2)
    assert model.config.position_embedding == "learnable"
    assert torch.equal(model.positions, table[0])


CASTS: list[Callable[[Tensor], Tensor]] = [
    Tensor.bfloat16,
    Tensor.half,
    Tensor.double,
    lambda positions: positions.bfloat16().float(),  # downloaded in 16 bits, saved again in 32
]


@pytest.mark.parametrize("cast", CASTS, ids=["bf16", "fp16", "fp64", "bf16 in fp32"])
def test_a_cast_of_a_checkpoint_does_not_make_sinusoids_learned(
    write: Callable[[Tensor], Path], release_sinusoids: Sinusoids, cast: Callable[[Tensor], Tensor]
) -> None:
    """Rounding to bf16 moves them by up to 0.002. The model gets the exact ones back."""
    table = release_sinusoids(4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = import_release(write(cast(table)), patch_size=2)
    assert model.config.position_embedding == "sinusoidal"
    assert model.positions.dtype == torch.float32
    assert torch.equal(model.positions, table[0])
    moved = cast(table)
    moved[0, 9, 3] += 0.01
    assert import_release(write(moved), patch_size=2).config.position_embedding == "learnable"


def test_an_average_of_sinusoids_in_bf16_is_taken_for_them_if_named_so(
    write: Callable[[Tensor], Path], release_sinusoids: Sinusoids
) -> None:
    """Drift and rounding add up. Learned positions that are nearly sinusoids are told of."""
    table = release_sinusoids(16, 64)
    path = write(averaged(table, 6000).bfloat16())
    with pytest.warns(CheckpointNotice, match=r"within 0\.00\d of the sinusoids.*--positions sinusoidal"):
        assert import_release(path, patch_size=2).config.position_embedding == "learnable"
    frozen = import_release(path, patch_size=2, position_embedding="sinusoidal")
    assert torch.equal(frozen.positions, table[0])
    off = table + 0.004
    with pytest.raises(ValueError, match="are not sinusoids"):
        import_release(write(off.bfloat16()), patch_size=2, position_embedding="sinusoidal")


def test_an_average_of_sinusoids_is_taken_for_them_if_named_so(
    write: Callable[[Tensor], Path], release_sinusoids: Sinusoids
) -> None:
    """6,000 steps take the average as far off as it ever gets."""
    table = release_sinusoids(16, 64)
    average = averaged(table, 6000)
    assert 1e-4 < float((average - table).abs().max()) < 2e-4
    path = write(average)

    learned = import_release(path, patch_size=2)
    assert learned.config.position_embedding == "learnable"
    assert torch.equal(learned.positions, average[0])

    frozen = import_release(path, patch_size=2, position_embedding="sinusoidal")
    assert frozen.config.position_embedding == "sinusoidal"
    assert torch.equal(frozen.positions, table[0])
    # A configuration names it too.
    again = import_release(path, config=frozen.config)
    assert again.config == frozen.config
    assert torch.equal(again.positions, table[0])
    # And the argument goes before the configuration.
    config = dataclasses.replace(frozen.config, position_embedding="learnable")
    for found in (
        import_release(path, config=config),
        import_release(path, config=frozen.config, position_embedding="learnable"),
    ):
        assert found.config == config
        assert torch.equal(found.positions, average[0])
    assert import_release(path, config=config, position_embedding="sinusoidal").config == frozen.config


@pytest.mark.parametrize(("off", "said"), [(2e-3, r"0\.002 off"), (-1.0, "1 off"), (float("nan"), "nan off")])
def test_positions_that_are_no_sinusoids_are_refused_as_such(
    write: Callable[[Tensor], Path], release_sinusoids: Sinusoids, off: float, said: str
) -> None:
    table = release_sinusoids(4, 16)
    table[0, 15, 7] += off
    with pytest.raises(ValueError, match=rf"positions are not sinusoids: they are up to {said}$"):
        import_release(write(table), patch_size=2, position_embedding="sinusoidal")
