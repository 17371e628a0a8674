"""Larger canvases: window by window against recomputing everything, and in one go on a larger grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.models.naive_sampling import generate, generator_of, picture, random_order, relative_error
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, DiT, DiTConfig, SamplingConfig, outpaint, sample
from causalfusion.embed import sinusoids_2d
from causalfusion.factorization.steps import equal_step_sizes
from causalfusion.noise import samplers

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]
Array = npt.NDArray[np.float64]
Positions = Literal["canvas", "window"]

DIFFUSION = DiffusionConfig()
CONFIG = SamplingConfig(num_ar_steps=3, num_inference_steps=3)
LABELS = torch.tensor([2, 0])


def random_latents(count: int = 2, rows: int = 8, columns: int = 8, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, channels, rows, columns, generator=generator, dtype=torch.float64)


def small_dit() -> DiT:
    return DiT(
        DiTConfig(input_size=8, in_channels=1, patch_size=2, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    )


def naive_outpaint(
    model: CausalFusion,
    naive: type[NaiveTransformer],
    label: int,
    generator: torch.Generator,
    windows: list[tuple[int, int]],
    shape: tuple[int, int],
    *,
    canvas: dict[int, Array],
    config: SamplingConfig,
    positions: str,
) -> Array:
    """Generate window after window; `windows` are the rows and columns of their upper left corners."""
    rows, columns = shape
    transformer = naive(model.on_grid(rows, columns) if positions == "canvas" else model)
    steps = config.num_inference_steps
    assert isinstance(steps, int)
    for top, left in windows:
        order = random_order(generator)
        on_canvas = {place: (top + place // 4) * columns + left + place % 4 for place in range(16)}
        in_model = on_canvas if positions == "canvas" else {place: place for place in range(16)}
        known = [place for place in range(16) if on_canvas[place] in canvas]
        new = [place for place in order if place not in known]
        patches = generate(
            transformer,
            label,
            [in_model[place] for place in new],
            equal_step_sizes(len(new), min(config.num_ar_steps, len(new))),
            generator,
            steps=steps,
            scales=config.guidance_scale,
            known=[(np.stack([canvas[on_canvas[p]] for p in known]), [in_model[p] for p in known])]
            if known
            else [],
        )
        canvas = canvas | {on_canvas[place]: patches[in_model[place]] for place in new}
    return picture(canvas, model.config, rows, columns)


@pytest.mark.parametrize("positions", ["canvas", "window"])
@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("order", ["random", "dilated"])
def test_a_canvas_of_the_training_size_is_a_sample(
    make_model: ModelMaker,
    overlap: int,
    positions: Positions,
    order: Literal["random", "dilated"],
) -> None:
    """Bit for bit, of the same seed and indices."""
    model = make_model()
    config = SamplingConfig(
        num_ar_steps=3, num_inference_steps=3, guidance_scale=1.5, patch_order=order, order_block=2
    )
    found = outpaint(
        model,
        LABELS,
        config,
        DIFFUSION,
        rows=4,
        columns=4,
        overlap=overlap,
        positions=positions,
        seed=7,
        indices=[3, 1],
    )
    assert torch.equal(found, sample(model, LABELS, config, DIFFUSION, seed=7, indices=[3, 1]))


@pytest.mark.parametrize(
    ("shape", "overlap", "windows"),
    [
        ((4, 6), 2, [(0, 0), (0, 2)]),
        ((4, 7), 1, [(0, 0), (0, 3)]),
        ((4, 6), 0, [(0, 0), (0, 2)]),  # the last window ends with the canvas
        ((6, 5), 2, [(0, 0), (0, 1), (2, 0), (2, 1)]),
        ((4, 8), 0, [(0, 0), (0, 4)]),  # nothing shared, nothing known
        ((4, 6), 3, [(0, 0), (0, 1), (0, 2)]),
    ],
)
@pytest.mark.parametrize("positions", ["canvas", "window"])
def test_equals_recomputing_every_window(
    make_model: ModelMaker,
    naive: type[NaiveTransformer],
    shape: tuple[int, int],
    overlap: int,
    windows: list[tuple[int, int]],
    positions: Positions,
) -> None:
    """Windows by hand; each sees what earlier ones made of it as a first AR step: to 1e-10 in float64."""
    model = make_model(depth=1)
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=2, guidance_scale=1.5)
    found = outpaint(
        model,
        LABELS,
        config,
        DIFFUSION,
        rows=shape[0],
        columns=shape[1],
        overlap=overlap,
        positions=positions,
        seed=3,
        indices=[5, 11],
    )
    for i, index in enumerate([5, 11]):
        expected = naive_outpaint(
            model,
            naive,
            int(LABELS[i]),
            generator_of(index, seed=3),
            windows,
            shape,
            canvas={},
            config=config,
            positions=positions,
        )
        assert relative_error(found[i], expected) < 1e-10


@pytest.mark.parametrize("positions", ["canvas", "window"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_given_latents_are_extended(
    make_model: ModelMaker,
    naive: type[NaiveTransformer],
    positions: Positions,
    dtype: torch.dtype,
) -> None:
    """They are in the result bit for bit, and context of every window that they reach into."""
    model = make_model().to(dtype)
    latents = random_latents(rows=4, columns=6).to(dtype)
    found = outpaint(
        model,
        LABELS,
        CONFIG,
        DIFFUSION,
        rows=5,
        columns=6,
        overlap=2,
        positions=positions,
        latents=latents,
        at=(1, 2),
        seed=0,
    )
    assert (found.shape, found.dtype) == ((2, 1, 10, 12), dtype)
    assert torch.equal(found[:, :, 2:6, 4:10], latents)
    if dtype == torch.float32:
        return
    for i in range(2):
        given = [(1 + y) * 6 + 2 + x for y in range(2) for x in range(3)]
        blocks = latents[i, 0].reshape(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(6, 4).numpy()
        expected = naive_outpaint(
            model,
            naive,
            int(LABELS[i]),
            generator_of(i, seed=0),
            [(0, 0), (0, 2), (1, 0), (1, 2)],
            (5, 6),
            canvas=dict(zip(given, blocks, strict=True)),
            config=CONFIG,
            positions=positions,
        )
        assert relative_error(found[i], expected) < 1e-10


def test_latents_that_cover_the_canvas_are_returned(make_model: ModelMaker) -> None:
    latents = random_latents(rows=8, columns=12)
    before = latents.clone()
    found = outpaint(make_model(), LABELS, CONFIG, DIFFUSION, rows=4, columns=6, overlap=1, latents=latents, seed=0)
    assert torch.equal(found, before)
    assert found.data_ptr() != latents.data_ptr()


@pytest.mark.parametrize(
    ("rows", "columns", "overlap"), [(4, 5, 0), (7, 4, 1), (9, 10, 2), (5, 13, 3), (11, 4, 0), (6, 6, 3)]
)
def test_every_patch_is_generated_once(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, overlap: int
) -> None:
    """No patch is left at zero; the tokens generated are as many as the canvas has."""
    generated = []

    class Counting(samplers.LinearSampler):
        def step(self, index: int, prediction: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
            if index == len(self.times) - 1:
                generated.append(x.shape[1])
            return super().step(index, prediction, x, noise)

    monkeypatch.setattr(samplers, "LinearSampler", Counting)
    config = SamplingConfig(num_ar_steps=16, num_inference_steps=1, step_sizes="random")
    model = make_model(depth=1)
    found = outpaint(model, LABELS[:1], config, DIFFUSION, rows=rows, columns=columns, overlap=overlap, seed=0)
    assert found.shape == (1, 1, 2 * rows, 2 * columns)
    assert bool(found.isfinite().all())
    assert bool((found != 0).all())
    # Sixteen AR steps, or one a token where a window has fewer left.
    assert generated == [1] * (rows * columns)


def test_canvas_positions_are_those_of_the_whole_canvas(make_model: ModelMaker) -> None:
    """Beyond the grid of training, the sinusoids go on; windows share theirs."""
    model = make_model()
    larger = model.on_grid(4, 6)
    torch.testing.assert_close(larger.positions, sinusoids_2d(16, 4, 6).double(), rtol=0, atol=0)
    assert (model.grid, model.positions.shape) == ((4, 4), (16, 16))
    assert larger.patch_embed.weight is model.patch_embed.weight
    given = random_latents(1)
    canvas, window = (
        outpaint(
            model,
            LABELS[:1],
            CONFIG,
            DIFFUSION,
            rows=4,
            columns=6,
            overlap=2,
            positions=positions,
            latents=given,
            seed=0,
        )
        for positions in ("canvas", "window")
    )
    assert float((canvas - window)[..., 8:].abs().max()) > 1e-3 * float(canvas.abs().max())


def test_a_larger_grid_in_one_go(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    """`sample` on a grid that is not the training one, to 1e-10; on that of training, the plain model's samples."""
    model = make_model()
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=3, guidance_scale=1.5)
    plain = sample(model, LABELS, config, DIFFUSION, seed=0)
    assert torch.equal(sample(model.on_grid(4, 4), LABELS, config, DIFFUSION, seed=0), plain)
    larger = model.on_grid(3, 6)
    found = sample(larger, LABELS, config, DIFFUSION, seed=0)
    assert found.shape == (2, 1, 6, 12)
    for i in range(2):
        generator = generator_of(i, seed=0)
        order = random_order(generator, 18)
        patches = generate(naive(larger), int(LABELS[i]), order, [6, 6, 6], generator, steps=3, scales=1.5)
        assert relative_error(found[i], picture(patches, model.config, 3, 6)) < 1e-10
    assert torch.equal(sample(model, LABELS, config, DIFFUSION, seed=0), plain)  # the plain model is unchanged


def test_learned_positions_end_with_the_grid_of_training(
    make_model: ModelMaker, naive: type[NaiveTransformer]
) -> None:
    """Windows have positions of their own, and so can be moved anywhere."""
    model = make_model(position_embedding="learnable")

    def extended(positions: Positions) -> Tensor:
        return outpaint(model, LABELS, CONFIG, DIFFUSION, rows=4, columns=6, overlap=2, positions=positions, seed=0)

    with pytest.raises(ValueError, match=r"learned positions end at the 4×4 grid of training"):
        extended("canvas")
    with pytest.raises(ValueError, match="reach a 4×6 grid"):
        model.on_grid(4, 6)
    expected = naive_outpaint(
        model,
        naive,
        int(LABELS[0]),
        generator_of(0, seed=0),
        [(0, 0), (0, 2)],
        (4, 6),
        canvas={},
        config=CONFIG,
        positions="window",
    )
    assert relative_error(extended("window")[0], expected) < 1e-10


def test_a_dit_cannot_extend_an_image() -> None:
    """It has no AR steps, and so no clean context."""
    config = SamplingConfig(num_inference_steps=2)
    for positions, message in (("canvas", "it cannot extend an image"), ("window", "takes no clean tokens, got 8")):
        with pytest.raises(ValueError, match=f"DiT has no AR steps.* {message}"):
            outpaint(
                small_dit(),
                LABELS,
                config,
                DIFFUSION,
                rows=4,
                columns=6,
                overlap=2,
                positions=positions,  # type: ignore[arg-type]
                seed=0,
            )


def test_samples_do_not_depend_on_their_neighbours(make_model: ModelMaker) -> None:
    model, latents = make_model(), random_latents(3)
    labels = torch.tensor([2, 0, 1])

    def extended(indices: list[int], seed: int = 0) -> Tensor:
        return outpaint(
            model,
            labels[indices],
            CONFIG,
            DIFFUSION,
            rows=5,
            columns=6,
            overlap=2,
            latents=latents[indices],
            seed=seed,
            indices=indices,
        )

    batch = extended([0, 1, 2])
    for indices in ([1], [2, 0]):
        torch.testing.assert_close(extended(indices), batch[indices], rtol=0, atol=1e-10 * float(batch.abs().max()))
    assert float((extended([1], seed=1) - batch[1]).abs().max()) > 1e-3 * float(batch.abs().max())
    assert extended([]).shape == (0, 1, 10, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 3}, "a canvas of 3×6 patches is smaller than the 4×4 training grid"),
        ({"columns": 2}, "a canvas of 5×2 patches is smaller than the 4×4 training grid"),
        ({"overlap": 4}, r"overlap must lie in \[0, 3\] patches, got 4"),
        ({"overlap": -1}, r"overlap must lie in \[0, 3\] patches, got -1"),
        ({"config": SamplingConfig(step_sizes=(8, 8))}, "give step_sizes and num_inference_steps no lists"),
        (
            {"config": SamplingConfig(num_ar_steps=2, num_inference_steps=(2, 3))},
            "give step_sizes and num_inference_steps no lists",
        ),
        (
            {"latents": random_latents(), "at": (2, 0)},
            r"latents of 4×4 patches at \(2, 0\) do not fit a canvas of 5×6",
        ),
        ({"latents": random_latents(), "at": (0, 3)}, r"at \(0, 3\) do not fit"),
        ({"latents": random_latents(), "at": (-1, 0)}, r"at \(-1, 0\) do not fit"),
        (
            {"latents": random_latents(), "at": (-5, 0)},
            r"at \(-5, 0\) do not fit",
        ),  # counts from the end
        ({"latents": random_latents(1)}, r"2 labels need latents \(2, 1, height, width\) .* got \(1, 1, 8, 8\)"),
        ({"latents": random_latents(channels=3)}, r"whole 2×2 patches, got \(2, 3, 8, 8\)"),
        ({"latents": random_latents(rows=7)}, r"whole 2×2 patches, got \(2, 1, 7, 8\)"),
        ({"latents": random_latents()[0]}, r"got \(1, 8, 8\)"),
        ({"labels": torch.tensor([0, 4])}, r"labels must be one-dimensional and lie in \[0, 3\]"),
    ],
)
def test_what_does_not_fit_is_named(make_model: ModelMaker, changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"labels": LABELS, "config": CONFIG, "rows": 5, "columns": 6, "overlap": 1}
    with pytest.raises(ValueError, match=message):
        outpaint(make_model(), diffusion=DIFFUSION, seed=0, **(arguments | changes))  # type: ignore[arg-type]
