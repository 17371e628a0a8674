"""Editing: what is kept stays bit for bit; the rest is what a model would generate after an AR step of the kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.naive_sampling import generate, generator_of, picture, random_order, relative_error
from torch import Tensor

from causalfusion import (
    CausalFusion,
    DiffusionConfig,
    DiT,
    DiTConfig,
    SamplingConfig,
    edit,
    keep_region,
    sample,
)
from causalfusion.sampling.edit import Region, keep_from_image

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]

DIFFUSION = DiffusionConfig()
CONFIG = SamplingConfig(num_ar_steps=2, num_inference_steps=3)
LABELS = torch.tensor([2, 0])


def random_latents(count: int = 2, rows: int = 8, columns: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, 1, rows, columns, generator=generator, dtype=torch.float64)


def patch_mask(kept: set[int], columns: int = 4, rows: int = 4) -> Tensor:
    """Return the mask that keeps whole patches, of 2×2 pixels, at these raster positions."""
    patches = torch.tensor([position in kept for position in range(rows * columns)]).view(rows, columns)
    return patches.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)


def test_regions_by_hand() -> None:
    """On 4×4: the middle half of both sides, its complement, the upper and the lower half."""
    drawn = {"center": "....\n.##.\n.##.\n....", "outside": "####\n#..#\n#..#\n####"}
    drawn |= {"top": "####\n####\n....\n....", "bottom": "....\n....\n####\n####"}
    regions: list[Region] = ["center", "outside", "top", "bottom"]
    for region in regions:
        found = "\n".join("".join(".#"[int(pixel)] for pixel in row) for row in keep_region(region, 4))
        assert found == drawn[region]
        assert keep_region(region, 32).dtype == torch.bool
    assert keep_region("center", 32).sum() == 16 * 16
    assert keep_region("top", 32).sum() == 16 * 32
    with pytest.raises(ValueError, match="unknown region 'left'; regions to keep: center, outside, top, bottom"):
        keep_region("left", 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("region", ["center", "outside", "top", "bottom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kept_pixels_stay_bit_for_bit(make_model: ModelMaker, region: Region, dtype: torch.dtype) -> None:
    """In the type of the latents; all others are new, and the input stays as it was."""
    latents = random_latents().to(dtype)
    before = latents.clone()
    keep = keep_region(region, 8)
    found = edit(make_model(), latents, keep, LABELS, CONFIG, DIFFUSION, seed=0)
    assert found.dtype == dtype
    assert torch.equal(found[:, :, keep], latents[:, :, keep])
    assert bool((found[:, :, ~keep] != latents[:, :, ~keep]).all())
    assert torch.equal(latents, before)


@pytest.mark.parametrize("kept_rows", [2, 4])
def test_the_input_is_not_modified(make_model: ModelMaker, kept_rows: int) -> None:
    """Not even where a patch is one number, so that patches are a view of the latents; nor is it the result."""
    model, latents = make_model(input_size=4, patch_size=1), random_latents(2, 4, 4)
    before, keep = latents.clone(), torch.arange(4)[:, None].expand(4, 4) < kept_rows
    found = edit(model, latents, keep, LABELS, CONFIG, DIFFUSION, seed=0)
    assert torch.equal(latents, before)
    assert found.data_ptr() != latents.data_ptr()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_equals_recomputing_everything(
    make_model: ModelMaker, naive: type[NaiveTransformer], steps: int, guidance: float
) -> None:
    """The kept tokens as a first AR step, the others in the sample's own order after them: to 1e-10 in float64."""
    model, kept = make_model(), {0, 3, 5, 6, 9, 15}
    sizes = {1: [10], 3: [4, 3, 3], 10: [1] * 10}[steps]
    latents = random_latents()
    config = SamplingConfig(num_ar_steps=steps, num_inference_steps=3, guidance_scale=guidance)
    found = edit(model, latents, patch_mask(kept), LABELS, config, DIFFUSION, seed=3, indices=[5, 11])
    for i, index in enumerate([5, 11]):
        generator = generator_of(index, seed=3)
        order = random_order(generator)
        patches = generate(
            naive(model),
            int(LABELS[i]),
            [position for position in order if position not in kept],
            sizes,
            generator,
            steps=3,
            scales=guidance,
            known=[(model.patchify(latents)[i, sorted(kept)].numpy(), sorted(kept))],
        )
        assert relative_error(found[i], picture(patches, model.config)) < 1e-10


@pytest.mark.parametrize(
    ("time", "order", "sizes"), [("token", "raster", (4, 6)), ("embedding", "dilated", "random")]
)
def test_other_models_orders_and_sizes_equal_recomputing_everything(
    make_model: ModelMaker, naive: type[NaiveTransformer], time: str, order: str, sizes: object
) -> None:
    """Own sizes divide the tokens to regenerate."""
    model, kept = make_model(time_conditioning=time), {1, 2, 4, 7, 8, 14}
    config = SamplingConfig(
        step_sizes=sizes,  # type: ignore[arg-type]
        num_ar_steps=2,
        num_inference_steps=(3, 2),
        patch_order=order,  # type: ignore[arg-type]
        order_block=2,
        guidance_scale=1.5,
    )
    latents = random_latents(1)
    found = edit(model, latents, patch_mask(kept), LABELS[:1], config, DIFFUSION, seed=3)
    dilated = [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    patches = generate(
        naive(model),
        int(LABELS[0]),
        [position for position in (range(16) if order == "raster" else dilated) if position not in kept],
        config.sizes(10, seed=3),
        generator_of(0, seed=3),
        steps=[3, 2],
        scales=1.5,
        known=[(model.patchify(latents)[0, sorted(kept)].numpy(), sorted(kept))],
    )
    assert relative_error(found[0], picture(patches, model.config)) < 1e-10


def test_masks_of_different_counts(make_model: ModelMaker) -> None:
    """One mask per sample, all in one call: each sample is as alone, whatever the others keep."""
    model, labels = make_model(), torch.tensor([2, 0, 1, 0, 1])
    latents = random_latents(5)
    masks = [{0, 1}, {4, 5, 6, 7, 12}, set(range(16)), {10, 3}, set()]
    keep = torch.stack([patch_mask(kept) for kept in masks])
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=3, guidance_scale=1.5)
    found = edit(model, latents, keep, labels, config, DIFFUSION, seed=0)
    for i in range(5):
        alone = edit(model, latents[i : i + 1], keep[i], labels[i : i + 1], config, DIFFUSION, seed=0, indices=[i])
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-10 * float(found.abs().max()))
        assert torch.equal(found[i, :, keep[i]], latents[i, :, keep[i]])
        assert bool((found[i, :, ~keep[i]] != latents[i, :, ~keep[i]]).all())


def test_a_partly_kept_patch_is_regenerated(make_model: ModelMaker) -> None:
    """Three of a patch's four pixels are not a patch: as if none of them were kept."""
    model, latents = make_model(), random_latents()
    whole = patch_mask({0, 1, 2, 6})
    partly = whole.clone()
    partly[6, 3] = True
    partly[4:6, 4] = True
    partly[2, 0:2] = True
    partly[3, 0] = True
    found, expected = (edit(model, latents, keep, LABELS, CONFIG, DIFFUSION, seed=0) for keep in (partly, whole))
    assert torch.equal(found, expected)
    assert bool((found[:, :, partly & ~whole] != latents[:, :, partly & ~whole]).all())


def test_keeping_everything_returns_the_input(make_model: ModelMaker) -> None:
    latents = random_latents().float()
    found = edit(make_model(), latents, torch.ones(8, 8, dtype=torch.bool), LABELS, CONFIG, DIFFUSION, seed=0)
    assert torch.equal(found, latents)
    assert found.data_ptr() != latents.data_ptr()


@pytest.mark.parametrize("sizes", ["equal", "random", (3, 13)])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_keeping_nothing_is_sampling(make_model: ModelMaker, sizes: object, guidance: float) -> None:
    """Bit for bit, of the same seed and indices."""
    model = make_model()
    config = SamplingConfig(
        num_ar_steps=2,
        num_inference_steps=3,
        guidance_scale=guidance,
        step_sizes=sizes,  # type: ignore[arg-type]
    )
    keep = torch.zeros(8, 8, dtype=torch.bool)
    found = edit(model, random_latents(), keep, LABELS, config, DIFFUSION, seed=8, indices=[3, 1])
    assert torch.equal(found, sample(model, LABELS, config, DIFFUSION, seed=8, indices=[3, 1]))


def test_the_new_part_depends_on_what_is_kept_on_the_class_and_on_the_seed(make_model: ModelMaker) -> None:
    """And on nothing that is not kept."""
    model, latents, keep = make_model(), random_latents(1), patch_mask({0, 5})

    def new(latents: Tensor, label: int = 1, seed: int = 0) -> Tensor:
        found = edit(model, latents, keep, torch.tensor([label]), CONFIG, DIFFUSION, seed=seed)
        return found[:, :, ~keep]

    before = new(latents)
    least = 1e-6 * float(before.abs().max())
    for y, x in ((0, 0), (1, 1), (2, 3)):  # pixels of both kept patches
        other = latents.clone()
        other[:, :, y, x] += 1.0
        assert float((new(other) - before).abs().max()) > least
    assert float((new(latents, label=2) - before).abs().max()) > least
    assert float((new(latents, seed=1) - before).abs().max()) > least
    dropped = latents.clone()
    dropped[:, :, ~keep] = 7.0
    assert torch.equal(new(dropped), before)


def test_a_grid_of_another_shape(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    """4×6 patches, more than trained."""
    model, kept, latents = make_model().on_grid(4, 6), set(range(9)), random_latents(1, 8, 12)
    found = edit(model, latents, patch_mask(kept, columns=6), LABELS[:1], CONFIG, DIFFUSION, seed=0)
    generator = generator_of(0, seed=0)
    order = [position for position in random_order(generator, 24) if position not in kept]
    known = [(model.patchify(latents)[0, sorted(kept)].numpy(), sorted(kept))]
    patches = generate(naive(model), 2, order, [8, 7], generator, steps=3, known=known)
    assert relative_error(found[0], picture(patches, model.config, 4, 6)) < 1e-10


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_a_painted_mask(tmp_path: Path, mode: str) -> None:
    """White = keep, whatever the mode and the size of the image."""
    keep = keep_region("outside", 8)
    keep[3, 4] = True
    pixels = keep.numpy().repeat(5, axis=0).repeat(3, axis=1).astype(np.uint8) * 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / "mask.png")
    found = keep_from_image(tmp_path / "mask.png", 8)
    assert found.dtype == torch.bool
    assert torch.equal(found, keep)


def test_a_mask_painted_finer_than_latent_pixels(tmp_path: Path) -> None:
    """A latent pixel is kept if at least half of its 4×4 pixels are white; gray counts by its brightness."""
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:4, :2] = 255  # half of the first latent pixel
    pixels[:4, 4] = pixels[:3, 5] = 255  # 7 of 16 of the second
    pixels[4:, :4] = 120  # all of the third a dark gray
    pixels[4:, 4:] = 135  # all of the fourth a light gray
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert keep_from_image(tmp_path / "mask.png", 2).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("latents", "keep", "message"),
    [
        (torch.zeros(2, 1, 8, 6), torch.zeros(8, 8).bool(), r"2 labels need latents \(2, \*\(1, 8, 8\)\), got"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(8, 8).bool(), r"got \(2, 3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(8, 8).bool(), r"2 labels need latents .* got \(1, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(8, 4).bool(), r"bool \(8, 8\) .* got torch.bool \(8, 4\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(4, 4).bool(), r"bool \(8, 8\) .* got torch.bool \(4, 4\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(8, 8), r"bool \(8, 8\) .* got torch.float32 \(8, 8\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(1, 2, 8, 8).bool(), r"got torch.bool \(1, 2, 8, 8\)"),
        (
            torch.zeros(2, 1, 8, 8),
            torch.zeros(3, 8, 8).bool(),
            "2 latents need as many masks or one .* got 3",
        ),
    ],
)
def test_wrong_shapes_are_named(make_model: ModelMaker, latents: Tensor, keep: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit(make_model(), latents, keep, LABELS, CONFIG, DIFFUSION, seed=0)


def test_impossible_splits_and_labels_are_refused(make_model: ModelMaker) -> None:
    """Splits are those of the tokens to regenerate."""
    model, latents, keep = make_model(), random_latents(), patch_mask(set(range(12)))
    with pytest.raises(ValueError, match=r"add up to 4, got \[8, 8\]"):
        edit(model, latents, keep, LABELS, SamplingConfig(step_sizes=(8, 8)), DIFFUSION, seed=0)
    with pytest.raises(ValueError, match=r"lie in \[0, 3\], got \[4, 0\]"):
        edit(model, latents, keep, torch.tensor([4, 0]), CONFIG, DIFFUSION, seed=0)


def test_no_more_steps_than_tokens_to_regenerate(make_model: ModelMaker) -> None:
    """Masks of one call leave different numbers of tokens, so that S is at most one step for each of them."""
    model, latents, keep = make_model(), random_latents(), patch_mask(set(range(12)))
    four, five = (
        edit(
            model,
            latents,
            keep,
            LABELS,
            SamplingConfig(num_ar_steps=steps, num_inference_steps=2),
            DIFFUSION,
            seed=0,
        )
        for steps in (4, 5)
    )
    assert torch.equal(four, five)
    four += 1  # results are plain tensors, which can be changed


def test_a_dit_keeps_nothing() -> None:
    model = DiT(
        DiTConfig(input_size=8, in_channels=1, patch_size=2, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    )
    latents, config = random_latents().float(), SamplingConfig(num_inference_steps=2)
    with pytest.raises(ValueError, match="DiT has no AR steps and takes no clean tokens, got 8"):
        edit(model, latents, keep_region("top", 8), LABELS, config, DIFFUSION, seed=0)
