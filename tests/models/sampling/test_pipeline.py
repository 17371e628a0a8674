"""The diffusers pipeline: saved and loaded, called, and swapped about."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils import logging
from safetensors.torch import load_file
from torch import Tensor

from causalfusion import (
    CausalFusionPipeline,
    CausalFusionTransformer2DModel,
    DiffusionConfig,
    DiTConfig,
    Model,
    ModelConfig,
    SamplingConfig,
    build_model,
    preset,
    sample,
    save_weights,
)
from causalfusion.draws import stream
from causalfusion.noise.samplers import SamplerName

X0 = DiffusionConfig(prediction="x0", variance="fixed_small")
NAMES = {0: "zero, nought", 1: "one", 2: "two", 3: "crane", 4: "crane, digger"}
DIT = DiTConfig(input_size=8, in_channels=1, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=10)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Diffusers shows a bar for each folder that it loads."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def random_model(config: ModelConfig, *, double: bool = False) -> Model:
    """Return a model every parameter of which is random: a new one predicts zero."""
    torch.manual_seed(1)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return (model.double() if double else model).eval()


def make(diffusion: DiffusionConfig = X0, *, vae: Any = None, **changes: object) -> CausalFusionPipeline:
    return CausalFusionPipeline.from_model(random_model(preset("tiny", **changes)), diffusion, vae, NAMES)


def make_vae() -> Any:
    """Return a tiny autoencoder that doubles the sides: 4 latent channels, RGB."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.4,
    )
    return vae.eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(pipe: Any, labels: Any = (1, 2), **arguments: Any) -> Tensor:
    """Return what the pipeline generates before it is made an image; a few steps unless said otherwise."""
    arguments = {"num_inference_steps": 3, "generator": seeded(), "output_type": "latent"} | arguments
    found: Tensor = pipe(labels, **arguments).images
    return found


def drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**32, (1,), generator=generator))


# Saving and loading.


@pytest.mark.parametrize("config", [preset("tiny"), preset("tiny", position_embedding="learnable"), DIT])
def test_a_saved_pipeline_does_the_same_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    process = DiffusionConfig(num_train_steps=600, beta_end=0.03, prediction="v", variance="fixed_small")
    pipe = CausalFusionPipeline.from_model(random_model(config), process, id2label=NAMES)
    pipe.save_pretrained(tmp_path)
    loaded = CausalFusionPipeline.from_pretrained(tmp_path)
    assert loaded.diffusion == process
    assert type(loaded.transformer.model) is type(pipe.transformer.model)
    assert loaded.transformer.model.config == config
    assert not any(module.training for module in loaded.transformer.modules())
    assert torch.equal(latents(loaded), latents(pipe))
    one, other = (p(["two"], num_inference_steps=2, generator=seeded()).images[0] for p in (pipe, loaded))
    assert one.tobytes() == other.tobytes()


def test_a_folder_has_json_and_safetensors_only(tmp_path: Path) -> None:
    pipe = make(vae=make_vae(), in_channels=4)
    pipe.save_pretrained(tmp_path)
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    sizes = json.loads((tmp_path / "transformer/config.json").read_text())
    assert (sizes["architecture"], sizes["hidden_size"], sizes["class_tokens"]) == ("causalfusion", 32, 2)
    stored = load_file(tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    assert {name.removeprefix("model.") for name in stored} == set(pipe.transformer.model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_loaded_in_another_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """The sinusoids too, which are float32 whatever the default type is."""
    pipe = make()
    pipe.save_pretrained(tmp_path)
    loaded = CausalFusionPipeline.from_pretrained(tmp_path, dtype=dtype)
    assert {t.dtype for t in (*loaded.transformer.parameters(), *loaded.transformer.buffers())} == {dtype}
    assert torch.equal(latents(loaded), latents(pipe.to(dtype)))


def test_our_own_folder_becomes_a_pipeline(tmp_path: Path) -> None:
    model = random_model(preset("tiny"))
    save_weights(tmp_path, model.config, model.state_dict(), X0)
    pipe = CausalFusionPipeline.from_weights(tmp_path, id2label=NAMES)
    assert pipe.diffusion == X0
    assert torch.equal(latents(pipe, ["one", 2]), latents(make()))


def test_importing_the_package_does_not_import_diffusers() -> None:
    code = (
        "import sys, causalfusion\n"
        "assert not hasattr(causalfusion, 'NoSuchPipeline')\n"
        "print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


# Generating.


@pytest.mark.parametrize(
    ("sampler", "arguments"),
    [
        (None, {"num_inference_steps": 3}),
        ("ddim", {"num_ar_steps": 3, "num_inference_steps": [2, 3, 1], "guidance_scale": 2.0}),
        (
            "dpm-solver++",
            {
                "step_sizes": [4, 12],
                "num_inference_steps": 4,
                "guidance_scale": 3.0,
                "guidance_interval": (400, 800),
                "guidance_schedule": "linear",
                "patch_order": "dilated",
                "order_block": 2,
            },
        ),
        ("unipc", {"num_ar_steps": 4, "step_sizes": "random", "num_inference_steps": 3, "patch_order": "raster"}),
        (
            "ddim",
            {"num_ar_steps": 3, "num_inference_steps": 4, "step_schedule": "linear", "last_inference_steps": 1},
        ),
    ],
)
def test_it_generates_what_sample_does(sampler: SamplerName | None, arguments: dict[str, Any]) -> None:
    """With the seed that is drawn from the generator."""
    pipe = make()
    config = SamplingConfig(sampler=sampler or "ddpm", **arguments)
    labels = torch.tensor([1, 10, 2])  # 10: the null class
    expected = sample(pipe.transformer.model, labels, config, X0, seed=drawn_seed(seeded(5)))
    found = latents(pipe, [1, 10, 2], sampler=sampler, generator=seeded(5), **arguments)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_swapped_scheduler_runs_its_sampler(scheduler: Any, tmp_path: Path) -> None:
    """So does one that was saved. Solvers agree with their own loop over the latents, as diffusers' users write it.

    All tokens are one AR step in raster order, so x_T comes first in the sample's stream.
    """
    pipe = make(DiffusionConfig(prediction="v"))
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    arguments: dict[str, Any] = {"num_inference_steps": 5, "patch_order": "raster"}
    found = latents(pipe, 3, **arguments)
    names = {DDIMScheduler: "ddim", DPMSolverMultistepScheduler: "dpm-solver++", UniPCMultistepScheduler: "unipc"}
    assert torch.equal(found, latents(make(pipe.diffusion), 3, sampler=names[scheduler], **arguments))
    assert not torch.equal(found, latents(make(pipe.diffusion), 3, **arguments))
    pipe.save_pretrained(tmp_path)
    assert torch.equal(found, latents(CausalFusionPipeline.from_pretrained(tmp_path), 3, **arguments))
    if scheduler is DDIMScheduler:  # diffusers' own visits other times
        return
    noise = torch.randn(1, 16, 4, generator=stream(drawn_seed(seeded()), "generated sample", 0))
    x = noise.view(1, 4, 4, 2, 2).transpose(2, 3).reshape(1, 1, 8, 8)
    pipe.scheduler.set_timesteps(5)
    for t in pipe.scheduler.timesteps:
        with torch.no_grad():
            predicted = pipe.transformer(x, t, torch.tensor([3])).sample
        x = pipe.scheduler.step(predicted, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [preset("tiny"), preset("tiny", time_conditioning="token"), DIT])
def test_the_transformer_predicts_alone(config: ModelConfig) -> None:
    """As sampling does, with one time for all or one for each; gradients reach the parameters."""
    model = CausalFusionTransformer2DModel.from_model(random_model(config))
    x, labels = torch.randn(2, 1, 8, 8, generator=seeded()), torch.tensor([1, 2])
    both = model(x, torch.tensor([30, 700]), labels).sample
    patches = x.view(2, 4, 2, 4, 2).transpose(2, 3).reshape(2, 16, 4)
    for i, t in enumerate((30, 700)):
        (one,) = model(x[i : i + 1], t, labels[i : i + 1], return_dict=False)
        torch.testing.assert_close(both[i : i + 1], one)
        with torch.no_grad():
            context = model.model.context(labels[i : i + 1])
            sampled = context.predict(patches[i : i + 1], torch.arange(16)[None], torch.tensor([t]))
        torch.testing.assert_close(one, sampled.view(1, 4, 4, 2, 2).transpose(2, 3).reshape(1, 1, 8, 8))
    both.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_a_generator_of_its_own_makes_a_sample_independent_of_its_neighbours() -> None:
    pipe = CausalFusionPipeline.from_model(random_model(preset("tiny"), double=True), X0)
    arguments: dict[str, Any] = {"num_ar_steps": 3, "step_sizes": "random", "guidance_scale": 2.0}
    labels, seeds = [4, 1, 7, 1], [11, 12, 13, 14]

    def generate(chosen: list[int]) -> Tensor:
        generators = [seeded(seeds[i]) for i in chosen]
        return latents(pipe, [labels[i] for i in chosen], generator=generators, **arguments)

    batch = generate([0, 1, 2, 3])
    for chosen in ([0], [3], [2, 0], [3, 1, 2]):
        torch.testing.assert_close(generate(chosen), batch[chosen], rtol=0, atol=1e-10)
    assert float((batch[1] - batch[3]).abs().max()) > 1e-2  # the same class, another generator


def test_generators_decide_and_advance() -> None:
    pipe = make()
    for fresh in (lambda: seeded(3), lambda: [seeded(3), seeded(4)], lambda: (seeded(3), seeded(4))):
        generator = fresh()
        first, second = latents(pipe, generator=generator), latents(pipe, generator=generator)
        assert torch.equal(first, latents(pipe, generator=fresh()))
        assert float((first - second).abs().max()) > 1e-2
    for _ in range(2):  # by default, torch's own
        torch.manual_seed(3)
        assert torch.equal(latents(pipe, generator=None), latents(pipe, generator=seeded(3)))


def test_classes_by_name() -> None:
    pipe = make()
    assert pipe.get_label_ids(["zero", "nought", "zero, nought", 9, "one", "digger"]) == [0, 0, 0, 9, 1, 4]
    assert torch.equal(latents(pipe, "two"), latents(pipe, [2]))
    assert torch.equal(latents(pipe, ["two", 1]), latents(pipe, (2, 1)))


# Images.


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pixels_become_images(channels: int, mode: str) -> None:
    """127.5 · x + 127.5, rounded to nearest and clipped, in numpy."""
    pipe = make(in_channels=channels)
    arguments: dict[str, Any] = {"num_inference_steps": 3, "sampler": "ddim"}
    x = latents(pipe, **arguments).double().numpy()
    assert (np.abs(x) < 1).mean() > 0.3 and (np.abs(x) > 1).any()  # there is something to round and to clip
    levels = np.clip(127.5 * x + 127.5, 0, 255).transpose(0, 2, 3, 1)
    pictures = pipe([1, 2], **arguments, generator=seeded()).images
    for picture, level in zip(pictures, levels, strict=True):
        assert (picture.mode, picture.size) == (mode, (8, 8))
        array = np.asarray(picture).reshape(8, 8, channels)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, np.floor(level + 0.5))
    array = pipe([1, 2], **arguments, generator=seeded(), output_type="np").images
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, levels / 255, rtol=0, atol=1e-6)
    (tensor,) = pipe([1, 2], **arguments, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(tensor, torch.from_numpy(array.transpose(0, 3, 1, 2)))


def test_latents_are_divided_by_the_autoencoders_scale(tmp_path: Path) -> None:
    """And the scale is saved with it."""
    vae = make_vae()
    pipe = make(vae=vae, in_channels=4)
    with torch.no_grad():
        decoded = vae.decoder(vae.post_quant_conv(latents(pipe) / 0.4))
    found = pipe([1, 2], num_inference_steps=3, generator=seeded(), output_type="pt").images
    assert found.shape == (2, 3, 16, 16)
    torch.testing.assert_close(found, ((decoded + 1) / 2).clamp(0, 1))
    pipe.save_pretrained(tmp_path)
    loaded = CausalFusionPipeline.from_pretrained(tmp_path)
    assert loaded.vae.config.scaling_factor == 0.4
    again = loaded([1, 2], num_inference_steps=3, generator=seeded(), output_type="pt").images
    assert torch.equal(found, again)
    assert loaded(1, num_inference_steps=1).images[0].mode == "RGB"


def test_an_autoencoder_can_be_given_while_loading(tmp_path: Path) -> None:
    """To a pipeline that has none; it is saved with it then. A tiny one does too, and another type of weights."""
    make(in_channels=4).save_pretrained(tmp_path / "without")
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    pipe = CausalFusionPipeline.from_pretrained(tmp_path / "without", vae=vae.to(torch.bfloat16).eval())
    assert pipe(1, num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)
    pipe.save_pretrained(tmp_path / "with")
    assert type(CausalFusionPipeline.from_pretrained(tmp_path / "with").vae) is AutoencoderTiny


def test_an_autoencoder_set_later_is_saved_and_one_taken_away_is_not(tmp_path: Path) -> None:
    pipe = make(in_channels=4)
    pipe.vae = make_vae()
    pipe.save_pretrained(tmp_path / "set")
    loaded = CausalFusionPipeline.from_pretrained(tmp_path / "set")
    assert loaded.vae.config.scaling_factor == 0.4
    loaded.vae = None
    loaded.save_pretrained(tmp_path / "taken")
    assert CausalFusionPipeline.from_pretrained(tmp_path / "taken").vae is None


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": "tow"}, r"unknown class name 'tow'; nearest .*two.*numbers: 0 to 9"),
        ({"class_labels": "crane"}, r"'crane' stands for several classes: \[3, 4\]"),
        ({"class_labels": [1, 11]}, r"class_labels must lie in \[0, 9\], or be 10 for no class, got 11"),
        ({"class_labels": -1}, r"class_labels must lie in \[0, 9\]"),
        ({"class_labels": [1.5]}, r"numbers or names of classes, got 1\.5"),
        ({"class_labels": []}, "at least one class"),
        ({"generator": [seeded()]}, "2 class_labels need as many generators, got 1"),
        ({"output_type": "jpeg"}, "output_type must be one of pil, np, pt, latent, got 'jpeg'"),
        ({"guidance_schedule": "cubic"}, "guidance_schedule must be one of constant, linear, linear_ar"),
        ({"step_schedule": "cubic"}, "step_schedule must be one of constant, linear, cosine, two_stage"),
        ({"sampler": "euler"}, "sampler must be one of .*, got 'euler'"),
        ({"patch_order": "spiral"}, "unknown patch order 'spiral'"),
        ({"num_inference_steps": [2, 2]}, "names 2 AR steps, but there are 1"),
        ({"step_sizes": [4, 4]}, "16"),
        ({"num_ar_steps": 17}, "17"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict[str, Any], message: str) -> None:
    pipe: Any = make()
    with pytest.raises(ValueError, match=message):
        pipe(**{"class_labels": [1, 2], "num_inference_steps": 2} | arguments)


def test_pipelines_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="latents of 4 channels need an autoencoder"):
        make(in_channels=4)(1, num_inference_steps=1)
    with pytest.raises(ValueError, match="the autoencoder has 4 latent channels, the model 1"):
        make(vae=make_vae())(1, num_inference_steps=1)
    with pytest.raises(ValueError, match=r"this pipeline has no names \(id2label\)"):
        CausalFusionPipeline.from_model(random_model(DIT), X0)("one")
    for bad in (10, -1):
        with pytest.raises(ValueError, match=rf"id2label must name classes in \[0, 9\], got class '{bad}'"):
            CausalFusionPipeline.from_model(random_model(DIT), X0, id2label={bad: "ten"})
    with pytest.raises(ValueError, match="4×4 grid of training"):
        CausalFusionTransformer2DModel.from_model(random_model(preset("tiny")).on_grid(4, 6))
    with pytest.raises(ValueError, match="unknown architecture 'unet'; known: causalfusion, transfusion, dit"):
        CausalFusionTransformer2DModel(architecture="unet")
