"""Checkpoints of the authors' code: bit for bit in and out, sizes from shapes, faults told by name."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.malicious import MakesFolder
from torch import Tensor

from causalfusion import CausalFusion, CausalFusionConfig
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out
from causalfusion.weights import export_release, import_release

State = dict[str, Tensor]
StateMaker = Callable[..., State]
ModelMaker = Callable[..., CausalFusion]
Sinusoids = Callable[[int, int], Tensor]

TINY = CausalFusionConfig(
    input_size=8,
    in_channels=2,
    patch_size=2,
    hidden_size=16,
    depth=2,
    num_heads=2,
    num_classes=3,
    class_tokens=2,
    position_embedding="learnable",
)


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("position_embedding", ["learnable", "sinusoidal"])
def test_in_out_and_in_again_keeps_every_bit(
    tmp_path: Path, release_state: StateMaker, release_sinusoids: Sinusoids, position_embedding: str
) -> None:
    state = release_state()
    if position_embedding == "sinusoidal":
        state["pos_embed"] = release_sinusoids(4, 16)
    model = import_release(saved(tmp_path / "theirs.pt", state), patch_size=2)
    assert model.config.position_embedding == position_embedding
    assert not model.training
    export_release(model, tmp_path / "ours.pt")
    exported = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert exported.keys() == {"model", "ema"}
    assert_same(exported["model"], state)
    assert_same(exported["ema"], state)
    again = import_release(tmp_path / "ours.pt", patch_size=2)
    assert again.config == model.config
    assert_same(again.state_dict(), model.state_dict())


def test_every_layout_of_a_file(tmp_path: Path, release_state: StateMaker) -> None:
    """A bare state dict, averaged and plain weights together, and what the training script saves beside them."""
    average, plain = release_state(seed=1), release_state(seed=2)
    wanted = {}
    for name, state in {"average": average, "plain": plain}.items():
        wanted[name] = import_release(saved(tmp_path / f"{name}.pt", state), patch_size=2).state_dict()
    assert not torch.equal(wanted["average"]["head.weight"], wanted["plain"]["head.weight"])

    optimizer = torch.optim.AdamW([torch.nn.Parameter(tensor) for tensor in plain.values()])
    training = {
        "model": plain,
        "ema": average,
        "opt": optimizer.state_dict(),
        "train_steps": 50_000,
        "start_epoch": 41,
        "args": argparse.Namespace(model="CausalFusion-XL", lr=8e-4, ckpt=None),
    }
    save_file(plain, tmp_path / "plain.safetensors")
    files: dict[str, Path] = {
        "both": saved(tmp_path / "both.pt", {"model": plain, "ema": average}),
        "training": saved(tmp_path / "training.pt", training),
        "only": saved(tmp_path / "only.pt", {"model": plain}),
        "safetensors": tmp_path / "plain.safetensors",
    }
    expected = [
        ("both", True, "average"),
        ("both", False, "plain"),
        ("training", True, "average"),
        ("training", False, "plain"),
        ("only", True, "plain"),
        ("safetensors", True, "plain"),
    ]
    for file, use_ema, name in expected:
        assert_same(import_release(files[file], patch_size=2, use_ema=use_ema).state_dict(), wanted[name])


@pytest.mark.parametrize(
    ("sizes", "config"),
    [
        ({}, {}),
        # The released models, small: patch 1, 16 channels.
        (
            {"numbers": 16, "class_tokens": 64},
            {"input_size": 4, "patch_size": 1, "in_channels": 16, "class_tokens": 64},
        ),
        ({"numbers": 16, "tokens": 9}, {"input_size": 12, "patch_size": 4, "in_channels": 1}),
        ({"numbers": 3, "tokens": 1}, {"input_size": 1, "patch_size": 1, "in_channels": 3}),
        (
            {"width": 24, "heads": 3, "depth": 11, "classes": 10},
            {"hidden_size": 24, "num_heads": 3, "depth": 11, "num_classes": 10, "mlp_ratio": 64 / 24},
        ),
        ({"heads": 16, "hidden": 24, "depth": 1}, {"num_heads": 16, "mlp_ratio": 1.5, "depth": 1}),
        ({"heads": 1, "class_tokens": 1, "classes": 1}, {"num_heads": 1, "class_tokens": 1, "num_classes": 1}),
    ],
)
def test_all_sizes_are_read_from_shapes(
    tmp_path: Path, release_state: StateMaker, sizes: dict[str, int], config: dict[str, Any]
) -> None:
    wanted = dataclasses.replace(TINY, **config)
    path = saved(tmp_path / "model.pt", release_state(**sizes))
    # A patch of 3 numbers can only be a pixel of 3 channels; all others are ambiguous.
    patch_size = None if sizes.get("numbers") == 3 else wanted.patch_size
    assert import_release(path, patch_size=patch_size).config == wanted
    assert import_release(path, patch_size=patch_size, heads=wanted.num_heads).config == wanted
    assert import_release(path, config=wanted).config == wanted


def test_an_ambiguous_patch_size_is_asked_for(tmp_path: Path, release_state: StateMaker) -> None:
    path = saved(tmp_path / "model.pt", release_state(numbers=16))
    with pytest.raises(ValueError, match=r"has 16 numbers.*--patch-size") as error:
        import_release(path)
    ways = "1 (latents 16×4×4), 2 (latents 4×8×8), 4 (latents 1×16×16)"
    assert str(error.value).endswith(ways)
    for patch_size in (0, 3, 8):
        with pytest.raises(ValueError, match=rf"16 numbers cannot have side {patch_size}; can: \[1, 2, 4\]"):
            import_release(path, patch_size=patch_size)


def test_other_heads_than_the_norms_have_are_refused(tmp_path: Path, release_state: StateMaker) -> None:
    path = saved(tmp_path / "model.pt", release_state(heads=4))
    for heads in (0, 2, 8):
        with pytest.raises(ValueError, match=rf"{heads} heads do not fit; width 16 with heads of 4 makes 4$"):
            import_release(path, patch_size=2, heads=heads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.attn.proj.bias": None}, r"missing \(1\): blocks\.1\.attn\.proj\.bias$"),
        (
            {"x_proj.weight": None, "pos_embed": None},
            r"is not a CausalFusion checkpoint .*: no x_proj\.weight, pos_embed$",
        ),
        ({"blocks.1.attn.qkv.bias": (48,)}, r"unknown \(1\): blocks\.1\.attn\.qkv\.bias$"),
        ({"norm.weight": (16,)}, r"unknown \(1\): norm\.weight$"),
        ({"final_layer.1.bias": (5,)}, r"wrong shape \(1\): final_layer\.1\.bias is \(5,\), wanted \(8,\)$"),
        ({"cond_pos_embed": (2, 16)}, r"cond_pos_embed must have 3 axes, got shape \(2, 16\)$"),
        ({"cond_pos_embed": (1, 3, 16)}, r"cond_pos_embed is \(1, 3, 16\), wanted \(1, 2, 16\)$"),
        ({"pos_embed": (16, 16)}, r"pos_embed must have 3 axes, got shape \(16, 16\)$"),
        ({"pos_embed": (16,)}, r"pos_embed must have 3 axes, got shape \(16,\)$"),
        ({"pos_embed": (1, 15, 16)}, r"15 positions are not a square grid"),
        ({"x_proj.weight": (16, 2, 2, 2)}, r"x_proj\.weight must have 2 axes, got shape \(16, 2, 2, 2\)$"),
        ({"blocks.0.attn.q_norm.weight": ()}, r"q_norm\.weight must have 1 axes, got shape \(\)$"),
    ],
)
def test_other_keys_and_shapes_are_named(
    tmp_path: Path, release_state: StateMaker, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    state = release_state()
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)
    path = saved(tmp_path / "model.pt", state)
    with pytest.raises(ValueError, match=message) as error:
        import_release(path, patch_size=2)
    assert str(path) in str(error.value)


def test_a_gap_among_the_blocks_is_named(tmp_path: Path, release_state: StateMaker) -> None:
    state = {name: tensor for name, tensor in release_state(depth=3).items() if not name.startswith("blocks.1.")}
    with pytest.raises(ValueError, match=r"(?s)missing \(15\): blocks\.1\..*unknown \(15\): blocks\.2\."):
        import_release(saved(tmp_path / "model.pt", state), patch_size=2)


def test_a_checkpoint_of_our_own_is_refused(tmp_path: Path, make_model: ModelMaker) -> None:
    with pytest.raises(
        ValueError, match=r"is not a CausalFusion checkpoint of the authors' code: no x_proj\.weight"
    ):
        import_release(saved(tmp_path / "model.pt", make_model().state_dict()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, r"missing \(15\): blocks\.2\.attn\.k_norm\.bias, "),
        ({"num_heads": 4}, r"blocks\.0\.attn\.q_norm\.bias is \(8,\), wanted \(4,\)"),
        ({"num_classes": 1000}, r"embedding_table\.weight is \(4, 32\), wanted \(1001, 32\)$"),
        ({"in_channels": 4}, r"x_proj\.weight is \(16, 8\), wanted \(16, 16\)$"),
        ({"input_size": 16}, r"wrong shape \(1\): pos_embed is \(1, 16, 16\), wanted \(1, 64, 16\)$"),
        ({"class_tokens": 4}, r"cond_pos_embed is \(1, 2, 16\), wanted \(1, 4, 16\)"),
        ({"qk_norm": False}, r"without QK norm; got .*qk_norm=False$"),
        ({"time_conditioning": "token"}, r"a time token .*got time_conditioning=token"),
        ({"class_tokens": 1, "class_token_repeat": 2}, r"repeats no class tokens: want class_tokens=2, "),
    ],
)
def test_a_configuration_that_the_checkpoint_does_not_fit(
    tmp_path: Path, release_state: StateMaker, change: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path / "model.pt", release_state())
    assert import_release(path, config=TINY).config == TINY
    with pytest.raises(ValueError, match=message):
        import_release(path, config=dataclasses.replace(TINY, **change))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, release_state: StateMaker) -> None:
    marker = tmp_path / "it ran"
    path = saved(tmp_path / "model.pt", {"ema": release_state(), "args": MakesFolder(marker)})
    with pytest.raises(ValueError, match=r"refused: it needs pickled code"):
        import_release(path, patch_size=2)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # which does run it
    assert marker.exists()


def forward(model: CausalFusion) -> Tensor:
    """Return a training pass of a model of 16 tokens of 4 numbers, 3 classes and 6 class tokens."""
    generator = torch.Generator().manual_seed(5)
    sizes = [4, 7, 5]
    noised, clean = (torch.randn(4, n, 4, generator=generator, dtype=torch.float64) for n in (16, 11))
    order = torch.stack([torch.randperm(16, generator=generator) for _ in range(4)])
    t = torch.tensor([0, 999, 500, 20])
    with torch.no_grad():
        plan = AttentionPlan.of(lay_out(sizes, class_tokens=6))
        out: Tensor = model.double()(noised, clean, order, t, torch.arange(4), plan)
    return out


@pytest.mark.parametrize(("tokens", "repeat"), [(2, 3), (1, 6)])
def test_repeated_class_tokens_are_written_out(
    tmp_path: Path, make_model: ModelMaker, tokens: int, repeat: int
) -> None:
    """The release has no repeats; the model that it gets computes the same."""
    model = make_model(class_tokens=tokens, class_token_repeat=repeat).float()
    export_release(model, tmp_path / "model.pt")
    table = torch.load(tmp_path / "model.pt", weights_only=True)["ema"]["y_embedder.embedding_table.weight"]
    own = model.class_tokens.table.weight
    assert torch.equal(table, torch.cat([own] * repeat, dim=1))
    imported = import_release(tmp_path / "model.pt", patch_size=2)
    assert (imported.config.class_tokens, imported.config.class_token_repeat) == (6, 1)
    torch.testing.assert_close(forward(imported), forward(model), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"time_conditioning": "token"}, "time_conditioning=token, qk_norm=True"),
        ({"qk_norm": False}, "time_conditioning=embedding, qk_norm=False"),
    ],
)
def test_models_that_the_release_lacks_are_not_exported(
    tmp_path: Path, make_model: ModelMaker, change: dict[str, Any], given: str
) -> None:
    with pytest.raises(ValueError, match=f"the release has no model with .*; got {given}$"):
        export_release(make_model(**change), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
