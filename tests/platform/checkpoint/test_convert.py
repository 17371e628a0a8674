"""Checkpoints of other code: told apart by their tensors' names, in and out bit for bit."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.malicious import MakesFolder
from torch import Tensor

from causalfusion import CausalFusionConfig, DiT, Model, build_model, load_weights, preset
from causalfusion.weights import save_weights
from causalfusion.weights.vae import ldm_name, new_autoencoder
from causalfusion_platform.checkpoint.convert import export_checkpoint, import_checkpoint
from causalfusion_platform.config.errors import UserError

PLAIN: dict[str, Any] = {
    "preset": None,
    "heads": None,
    "patch_size": None,
    "use_ema": True,
    "positions": "auto",
}


def take(checkpoint: Path, out: Path, **options: object) -> str:
    return import_checkpoint(checkpoint, out, **(PLAIN | options))


def refusal(checkpoint: Path, out: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        take(checkpoint, out, **options)
    assert not (out / "config.json").exists()
    return str(caught.value)


def random_model(name: str, **changes: object) -> Model:
    """Return a model of a preset with every parameter random: new ones have many zeros and ones."""
    model = build_model(preset(name, **changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(model: Model, folder: Path) -> Path:
    save_weights(folder, model.config, model.state_dict())
    return folder


def assert_same(folder: Path, model: Model) -> None:
    found = load_weights(folder)
    assert found.config == model.config
    wanted = model.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def release_file(folder: Path, name: str = "tiny", **changes: object) -> tuple[Path, Model]:
    """Write a checkpoint of the authors' code, or of DiT's."""
    model, path = random_model(name, **changes), folder / "theirs.pt"
    export_checkpoint(saved(model, folder / "ours"), path)
    return path, model


def kl16_file(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write a small autoencoder with LDM's names; return diffusers' state too."""
    vae = new_autoencoder("kl16", widths=(32, 64), latent_channels=4)
    theirs: dict[str, Tensor] = {}
    for name, tensor in vae.state_dict().items():
        is_projection = tensor.ndim == 2
        theirs[ldm_name(name, levels=2)] = tensor[:, :, None, None] if is_projection else tensor
    torch.save({"model": theirs}, folder / "kl16.ckpt")
    return folder / "kl16.ckpt", vae.state_dict()


# What is recognised


@pytest.mark.parametrize("position_embedding", ["sinusoidal", "learnable"])
def test_out_and_in_again_keeps_every_bit(own_folder: Path, position_embedding: str) -> None:
    path, model = release_file(own_folder, position_embedding=position_embedding)
    message = take(path, own_folder / "again", patch_size=2)
    assert_same(own_folder / "again", model)
    names = sorted(file.name for file in (own_folder / "again").iterdir())
    assert names == ["config.json", "diffusion.json", "model.safetensors"]
    count = "35,748" if position_embedding == "sinusoidal" else "36,260"  # 16 learned positions of width 32
    assert message.startswith(f"a CausalFusion of the paper's authors: {count} parameters")
    assert "width 32, depth 2, 2 heads, latents 1×8×8, patch 2, 10 classes" in message
    assert ("(preset tiny)" in message) == (position_embedding == "sinusoidal")
    assert f"{own_folder / 'again'}: model.safetensors and config.json" in message


def test_an_exported_dit_is_recognised(own_folder: Path) -> None:
    path, model = release_file(own_folder, "digits-dit", depth=1)
    assert {"x_embedder.proj.weight", "pos_embed"} <= set(torch.load(path, weights_only=True))
    message = take(path, own_folder / "again", heads=3)
    assert_same(own_folder / "again", model)
    assert message.startswith("a DiT: ")
    assert isinstance(load_weights(own_folder / "again"), DiT)


def test_an_autoencoder_is_recognised(own_folder: Path) -> None:
    path, state = kl16_file(own_folder)
    message = take(path, own_folder / "vae")
    assert "MAR's KL VAE, 4 latent channels, scale 0.2325" in message
    assert f"--vae {own_folder / 'vae'}" in message
    config = json.loads((own_folder / "vae/config.json").read_text())
    assert (config["_class_name"], config["scaling_factor"]) == ("AutoencoderKL", 0.2325)
    found = load_file(own_folder / "vae/diffusion_pytorch_model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("use_ema", [True, False])
def test_ema_weights_or_the_others(own_folder: Path, use_ema: bool) -> None:
    path, model = release_file(own_folder)
    content = torch.load(path, weights_only=True)
    content["model"] = {name: tensor + 1 for name, tensor in content["model"].items()}
    content["args"] = argparse.Namespace(lr=1e-4)
    torch.save(content, path)
    take(path, own_folder / "again", patch_size=2, use_ema=use_ema)
    found = load_weights(own_folder / "again").state_dict()["head.weight"]
    assert torch.equal(found, model.state_dict()["head.weight"] + (0 if use_ema else 1))


def test_a_bare_state_in_safetensors(own_folder: Path) -> None:
    path, model = release_file(own_folder)
    save_file(torch.load(path, weights_only=True)["model"], own_folder / "bare.safetensors")
    take(own_folder / "bare.safetensors", own_folder / "again", preset="tiny")
    assert_same(own_folder / "again", model)


def test_a_wrapped_model_in_bf16_is_recognised_and_it_is_said(own_folder: Path) -> None:
    """What a training script saves of a compiled model under DistributedDataParallel, cast for its release."""
    path, model = release_file(own_folder)
    state = torch.load(path, weights_only=True)["ema"]
    wrapped = {f"module._orig_mod.{name}": tensor.bfloat16() for name, tensor in state.items()}
    torch.save({"ema": wrapped, "model": wrapped}, path)
    message = take(path, own_folder / "again", patch_size=2)
    *_, notice = message.splitlines()
    assert notice.endswith("names of wrappers are left out of the names of its tensors: module., _orig_mod.")
    assert message.count("wrappers") == 1
    found = load_weights(own_folder / "again")
    assert found.config == model.config  # frozen positions
    wanted = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())


def test_positions_are_taken_for_what_is_said(own_folder: Path) -> None:
    path, _ = release_file(own_folder)
    take(path, own_folder / "again", patch_size=2, positions="learnable")
    config = load_weights(own_folder / "again").config
    assert isinstance(config, CausalFusionConfig)
    assert config.position_embedding == "learnable"


# What must fit


def test_a_preset_is_insisted_on(own_folder: Path) -> None:
    path, model = release_file(own_folder)
    out = own_folder / "again"
    assert "blocks.2." in refusal(path, out, preset="digits")
    assert "preset digits-dit is a DiT" in refusal(path, out, preset="digits-dit")
    message = refusal(path, out, preset="no-such")
    assert "no model preset 'no-such'\n  presets: tiny, digits" in message
    take(path, out, preset="tiny")
    assert_same(out, model)


def test_a_preset_of_a_dit_is_insisted_on(own_folder: Path) -> None:
    path, _ = release_file(own_folder, "digits-dit", depth=1)
    out = own_folder / "again"
    message = refusal(path, out, preset="digits-dit")
    assert message == f"{path} is not digits-dit: depth is 1, in digits-dit 4"
    assert "architecture is dit, in tiny causalfusion" in refusal(path, out, preset="tiny")
    path, model = release_file(own_folder / "whole", "digits-dit")
    assert "num_heads is 4, in digits-dit 3" in refusal(path, out, preset="digits-dit", heads=4)
    assert "(preset digits-dit)" in take(path, out, preset="digits-dit")
    assert_same(out, model)


def test_the_heads_of_a_dit_are_asked_for(own_folder: Path) -> None:
    path, _ = release_file(own_folder, "digits-dit", depth=1)
    message = refusal(path, own_folder / "again")
    assert "is a DiT, and no tensor tells its heads" in message
    assert "--heads N" in message
    assert "num_heads must be at least 1" in refusal(path, own_folder / "again", heads=0)


def test_an_ambiguous_patch_size_is_asked_for(own_folder: Path) -> None:
    """Four numbers a patch: 2×2×1 or 1×1×4."""
    path, _ = release_file(own_folder)
    assert "patch" in refusal(path, own_folder / "again")
    assert "patch" in refusal(path, own_folder / "again", patch_size=3)


def test_an_autoencoder_is_no_preset(own_folder: Path) -> None:
    path, _ = kl16_file(own_folder)
    assert "autoencoder" in refusal(path, own_folder / "vae", preset="tiny")
    assert not (own_folder / "vae").exists()


# What is refused


def test_pickled_code_is_refused_and_not_run(own_folder: Path) -> None:
    path, _ = release_file(own_folder)
    torch.save({**torch.load(path, weights_only=True), "optimizer": MakesFolder(own_folder / "ran")}, path)
    message = refusal(path, own_folder / "again", patch_size=2)
    assert "needs pickled code" in message
    assert not (own_folder / "ran").exists()
    assert not (own_folder / "again").exists()


def test_a_file_of_no_known_code(own_folder: Path) -> None:
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(9)}, own_folder / "other.pt")
    message = refusal(own_folder / "other.pt", own_folder / "out")
    assert "other.pt is of no known code; its tensors: layer0.weight, layer1.weight" in message
    for known in ("x_proj", "x_embedder", "encoder.conv_in"):
        assert known in message


def test_files_that_hold_nothing_to_read(own_folder: Path) -> None:
    (own_folder / "noise.pt").write_bytes(b"not a checkpoint")
    (own_folder / "noise.safetensors").write_bytes(b"not a checkpoint")
    torch.save([torch.zeros(1)], own_folder / "list.pt")
    for name, part in (
        ("noise.pt", "noise.pt is "),
        ("noise.safetensors", "damaged"),
        ("list.pt", "holds a list"),
        ("nothing.pt", "no such checkpoint file"),
        (".", "no such checkpoint file"),
    ):
        assert part in refusal(own_folder / name, own_folder / "out")


def test_a_folder_that_is_taken_is_left_alone(own_folder: Path) -> None:
    path, model = release_file(own_folder)
    (own_folder / "out").mkdir()
    (own_folder / "out/notes.txt").write_text("mine")
    assert "exists and is not empty" in refusal(path, own_folder / "out", patch_size=2)
    assert [file.name for file in (own_folder / "out").iterdir()] == ["notes.txt"]
    (own_folder / "file").write_text("mine")
    assert "exists and is not empty" in refusal(path, own_folder / "file", patch_size=2)
    (own_folder / "empty").mkdir()
    take(path, own_folder / "empty", patch_size=2)
    assert_same(own_folder / "empty", model)


def test_unknown_positions(own_folder: Path) -> None:
    message = refusal(own_folder / "x.pt", own_folder / "out", positions="frozen")
    assert "--positions is 'frozen'; allowed: auto, sinusoidal, learnable" in message


# Export


def export_refusal(source: Path, out: Path) -> str:
    before = out.read_bytes() if out.is_file() else None
    with pytest.raises(UserError) as caught:
        export_checkpoint(source, out)
    assert (out.read_bytes() if out.is_file() else None) == before
    return str(caught.value)


def test_the_format_is_said(own_folder: Path) -> None:
    ours = saved(random_model("tiny"), own_folder / "ours")
    message = export_checkpoint(ours, own_folder / "new/folder/model.pt")
    assert message.endswith("as the code of the paper's authors reads it, under model and ema")
    content = torch.load(own_folder / "new/folder/model.pt", weights_only=True)
    assert set(content) == {"model", "ema"}
    message = export_checkpoint(ours, own_folder / "new/model.safetensors")
    assert message.endswith("as the code of the paper's authors reads it")
    assert load_file(own_folder / "new/model.safetensors").keys() == content["ema"].keys()
    dit = saved(random_model("digits-dit", depth=1), own_folder / "dit")
    message = export_checkpoint(dit, own_folder / "new/dit/dit.safetensors")
    assert message.endswith("as facebookresearch/DiT reads it")
    assert "x_embedder.proj.weight" in load_file(own_folder / "new/dit/dit.safetensors")


def test_what_cannot_be_exported(own_folder: Path) -> None:
    ours = saved(random_model("tiny"), own_folder / "ours")
    (own_folder / "taken.pt").write_text("mine")
    assert f"{own_folder / 'taken.pt'} exists" in export_refusal(ours, own_folder / "taken.pt")
    assert "no weights in" in export_refusal(own_folder / "nowhere", own_folder / "model.pt")
    token = saved(random_model("tiny", time_conditioning="token"), own_folder / "token")
    assert "time token" in export_refusal(token, own_folder / "model.pt")


def test_weights_that_are_damaged(own_folder: Path) -> None:
    ours = saved(random_model("tiny"), own_folder / "ours")
    config = json.loads((ours / "config.json").read_text())
    for changed, part in ((config | {"architecture": "unet"}, "unet"), (config | {"depth": 3}, "blocks.2.")):
        (ours / "config.json").write_text(json.dumps(changed))
        assert part in export_refusal(ours, own_folder / "model.pt")
