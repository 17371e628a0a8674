"""Checkpoints in the layout of DiT's release."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from causalfusion.baselines import DiT
from causalfusion.weights import export_dit, import_dit

ModelMaker = Callable[..., DiT]
State = dict[str, Tensor]


def release_state(
    *, width: int = 16, hidden: int = 64, depth: int = 2, patch: int = 2, channels: int = 2, sigma: bool = True
) -> State:
    """Return a random checkpoint of the release's layout: 16 tokens, 3 classes and the null class."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return 0.25 * torch.randn(*shape, generator=generator)

    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (4, width),
        "final_layer.linear.weight": (patch * patch * channels * (1 + sigma), width),
        "final_layer.linear.bias": (patch * patch * channels * (1 + sigma),),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }
    for block in (f"blocks.{layer}" for layer in range(depth)):
        for name, outputs, inputs in [
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
            ("adaLN_modulation.1", 6 * width, width),
        ]:
            shapes[f"{block}.{name}.weight"] = (outputs, inputs)
            shapes[f"{block}.{name}.bias"] = (outputs,)
    return {"pos_embed": sinusoids(width), **{name: random(*shape) for name, shape in shapes.items()}}


def sinusoids(width: int) -> Tensor:
    """Return (1, 16, width) positions on a 4×4 grid: column, then row; each sines, then cosines."""
    frequencies = [10000 ** (-i / (width // 4)) for i in range(width // 4)]

    def axis(place: int) -> Tensor:
        angles = torch.tensor([place * frequency for frequency in frequencies], dtype=torch.float64)
        return torch.cat([angles.sin(), angles.cos()])

    rows = [torch.cat([axis(column), axis(row)]) for row in range(4) for column in range(4)]
    return torch.stack(rows).float()[None]


def saved(folder: Path, content: object) -> Path:
    path = folder / "release.pt"
    torch.save(content, path)
    return path


def release_forward(state: State, latents: Tensor, t: Tensor, labels: Tensor, heads: int) -> Tensor:
    """Run a release's checkpoint, by its names, over whole images and in float64 (times in float32, as theirs)."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    kernel = state["x_embedder.proj.weight"]
    width, channels, patch, _ = kernel.shape
    x = functional.conv2d(latents, kernel, state["x_embedder.proj.bias"], stride=patch).flatten(2).transpose(1, 2)
    x = x + state["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    time = linear(torch.cat([angles.cos(), angles.sin()], 1).double(), "t_embedder.mlp.0")
    classes = state["y_embedder.embedding_table.weight"][labels]
    c = functional.silu(linear(functional.silu(time), "t_embedder.mlp.2") + classes)[:, None]
    for layer in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        block = f"blocks.{layer}"
        parts = linear(c, f"{block}.adaLN_modulation.1").chunk(6, -1)
        qkv = linear(modulated(x, *parts[:2]), f"{block}.attn.qkv").chunk(3, -1)
        q, k, v = (rearrange(y, "b n (h e) -> b h n e", h=heads) for y in qkv)
        attended = (q @ k.mT / (width // heads) ** 0.5).softmax(-1) @ v
        x = x + parts[2] * linear(attended.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = functional.gelu(linear(modulated(x, *parts[3:5]), f"{block}.mlp.fc1"), approximate="tanh")
        x = x + parts[5] * linear(hidden, f"{block}.mlp.fc2")
    out = linear(modulated(x, *linear(c, "final_layer.adaLN_modulation.1").chunk(2, -1)), "final_layer.linear")
    image = torch.empty(len(out), out.shape[-1] // patch**2, 4 * patch, 4 * patch, dtype=torch.float64)
    for token in range(16):
        top, left = token // 4 * patch, token % 4 * patch
        square = out[:, token].reshape(len(out), patch, patch, -1)
        image[:, :, top : top + patch, left : left + patch] = square.permute(0, 3, 1, 2)
    return image[:, :channels]


@pytest.mark.parametrize(
    ("changes", "heads"),
    [({}, 2), ({"patch": 1, "channels": 3, "sigma": False}, 4), ({"patch": 3, "depth": 1, "hidden": 41}, 1)],
)
@torch.no_grad()
def test_an_import_computes_what_the_release_does(tmp_path: Path, changes: dict[str, int], heads: int) -> None:
    """Sizes come from the shapes; ε is the same image, patch by patch, channel by channel."""
    state = release_state(**changes)  # type: ignore[arg-type]
    model = import_dit(saved(tmp_path, state), num_heads=heads).double()
    config = model.config
    sizes = (config.patch_size, config.in_channels, config.depth, config.num_classes, config.learn_sigma)
    assert sizes == (
        changes.get("patch", 2),
        changes.get("channels", 2),
        changes.get("depth", 2),
        3,
        changes.get("sigma", True),
    )
    assert not model.training
    latents = torch.randn(2, config.in_channels, config.input_size, config.input_size).double()
    t, labels = torch.tensor([7, 993]), torch.tensor([1, 3])
    patches = model.patchify(latents)
    found = model.unpatchify(model(patches, patches[:, :0], torch.arange(16).expand(2, -1), t, labels))
    torch.testing.assert_close(found, release_forward(state, latents, t, labels, heads), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["out.pt", "new/out.safetensors"])
@pytest.mark.parametrize("hidden", [64, 41])
def test_import_and_export_is_exact(tmp_path: Path, name: str, hidden: int) -> None:
    """Bit for bit, from their layout to ours and back; then the export is read again."""
    state = release_state(hidden=hidden)
    export_dit(import_dit(saved(tmp_path, state), num_heads=2), tmp_path / name)
    again = import_dit(tmp_path / name, num_heads=2)
    export_dit(again, tmp_path / "again.pt")
    written: State = torch.load(tmp_path / "again.pt", weights_only=True)
    assert written.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(written[key], tensor), key


def test_any_mlp_width_is_read_exactly(tmp_path: Path) -> None:
    """61 / 28 · 28 is less than 61 in floating point."""
    assert int(28 * (61 / 28)) == 60
    model = import_dit(saved(tmp_path, release_state(width=28, hidden=61)), num_heads=2)
    assert model.state_dict()["blocks.1.mlp.0.weight"].shape == (61, 28)


def test_export_and_import_is_exact(tmp_path: Path, make_dit: ModelMaker) -> None:
    model = make_dit(learn_sigma=False, mlp_ratio=2.5).float()
    export_dit(model, tmp_path / "model.pt")
    loaded = import_dit(tmp_path / "model.pt", num_heads=2)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_ema_or_model(tmp_path: Path) -> None:
    """What the release's training writes: both, with an optimizer's state and the arguments."""
    ema = release_state()
    raw = {name: tensor if name == "pos_embed" else tensor + 1 for name, tensor in ema.items()}
    path = saved(tmp_path, {"model": raw, "ema": ema, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)})
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(import_dit(path, num_heads=2).class_embed.weight, ema[table])
    assert torch.equal(import_dit(path, num_heads=2, use_ema=False).class_embed.weight, raw[table])


def drop(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


def put(name: str, *shape: int) -> Callable[[State], object]:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("pos_embed"), "not a checkpoint of DiT's release: it has no pos_embed"),
        (drop("x_embedder.proj.weight"), r"it has no x_embedder\.proj\.weight"),
        (drop("blocks.0.mlp.fc1.weight"), r"it has no blocks\.0\.mlp\.fc1\.weight"),
        (put("x_embedder.proj.weight", 16, 8), r"x_embedder\.proj\.weight must have 4 axes, got shape \(16, 8\)"),
        (drop("blocks.1.attn.qkv.bias"), r"missing \(1\): blocks\.1\.attn\.qkv\.bias"),
        (put("blocks.1.attn.q_norm.weight", 8), r"unknown \(1\): blocks\.1\.attn\.q_norm\.weight"),
        (put("blocks.3.mlp.fc2.bias", 16), r"missing \(10\): blocks\.2\..*\n.*unknown.*blocks\.3\.mlp\.fc2\.bias"),
        (put("x_embedder.proj.weight", 16, 2, 2, 3), r"proj\.weight is \(16, 2, 2, 3\), wanted \(16, 2, 2, 2\)"),
        (put("t_embedder.mlp.0.weight", 16, 128), r"t_embedder\.mlp\.0\.weight is \(16, 128\), wanted \(16, 256\)"),
        (put("pos_embed", 1, 15, 16), "pos_embed must have a square number of tokens, got 15"),
        (put("final_layer.linear.weight", 24, 16), "must have 8 outputs, or twice as many, got 24"),
        (put("y_embedder.embedding_table.weight", 1, 16), "num_classes must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Callable[[State], object], message: str) -> None:
    state = release_state()
    change(state)
    with pytest.raises(ValueError, match=message):
        import_dit(saved(tmp_path, state), num_heads=2)


@pytest.mark.parametrize(("offset", "shown"), [(2e-6, "off by 2"), (float("nan"), "off by nan")])
def test_other_positions_are_refused(tmp_path: Path, offset: float, shown: str) -> None:
    """Ours are recomputed, never read; what differs from them would be lost."""
    state = release_state()
    state["pos_embed"][0, 3, 5] += 5e-7
    import_dit(saved(tmp_path, state), num_heads=2)
    state["pos_embed"][0, 3, 5] += offset
    with pytest.raises(ValueError, match=f"pos_embed must be the 2-D sinusoids to within 1e-6, but is {shown}"):
        import_dit(saved(tmp_path, state), num_heads=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_cast_to_16_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in release_state().items()}
    model = import_dit(saved(tmp_path, state), num_heads=2)
    torch.testing.assert_close(model.positions, sinusoids(16)[0], rtol=0, atol=1e-6)
    assert torch.equal(model.head.bias, state["final_layer.linear.bias"].float())
    state["pos_embed"][0, 3, 5] += 0.02
    with pytest.raises(ValueError, match=r"but is off by 0\.02"):
        import_dit(saved(tmp_path, state), num_heads=2)


def test_sizes_that_the_caller_states(tmp_path: Path) -> None:
    path = saved(tmp_path, release_state())
    assert import_dit(path, num_heads=4, patch_size=2).config.num_heads == 4
    with pytest.raises(ValueError, match="wanted patch size 4, but the patch kernel's is 2"):
        import_dit(path, num_heads=2, patch_size=4)
    with pytest.raises(ValueError, match="hidden_size 16 is not a multiple of num_heads 3"):
        import_dit(path, num_heads=3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        import_dit(tmp_path / "nothing.pt", num_heads=2)
