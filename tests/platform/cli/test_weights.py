"""`causalfusion weights`: checkpoints of other code, in and out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.platform.cli.conftest import Run, check_refusal

from causalfusion import CausalFusion, DiT, build_model, load_weights, preset, save_weights


@pytest.fixture
def weights(own_folder: Path, random_model: CausalFusion) -> Path:
    """A folder with the tiny random model in float32."""
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(own_folder / "weights", random_model.config, state)
    return own_folder / "weights"


def test_out_and_in_again(run: Run, weights: Path, own_folder: Path) -> None:
    out = run("weights", "export", "weights", "model.pt")
    assert (out.status, out.err) == (0, "")
    said = "weights → model.pt: as the code of the paper's authors reads it, under model and ema\n"
    assert out.out == said
    back = run("weights", "import", "model.pt", "again", "--preset", "tiny", "--positions", "sinusoidal")
    assert (back.status, back.err) == (0, "")
    assert "35,748 parameters" in back.out
    assert back.out.endswith("(preset tiny)\nagain: model.safetensors and config.json\n")
    assert (own_folder / "again/model.safetensors").read_bytes() == (weights / "model.safetensors").read_bytes()


def test_options_reach_the_import(run: Run, weights: Path) -> None:
    run("weights", "export", "weights", "model.pt")
    content = torch.load("model.pt", weights_only=True)
    content["model"] = {name: tensor + 1 for name, tensor in content["model"].items()}
    torch.save(content, "model.pt")
    options = ["--patch-size", "2", "--heads", "2", "--no-ema", "--positions", "learnable"]
    assert run("weights", "import", "model.pt", "again", *options).status == 0
    expected = load_weights(weights).state_dict()["head.bias"] + 1
    assert torch.equal(load_weights("again").state_dict()["head.bias"], expected)
    check_refusal(run("weights", "import", "model.pt", "other", "--patch-size", "2", "--heads", "4"), "heads")
    check_refusal(run("weights", "import", "model.pt", "other", "--patch-size", "3"), "patch")


def test_a_dit(run: Run, own_folder: Path) -> None:
    model = build_model(preset("digits-dit", depth=1))
    save_weights(own_folder / "weights", model.config, model.state_dict())
    assert "as facebookresearch/DiT reads it" in run("weights", "export", "weights", "dit.pt").out
    check_refusal(run("weights", "import", "dit.pt", "again"), "dit.pt is a DiT", "--heads N")
    assert run("weights", "import", "dit.pt", "again", "--heads", "3").out.startswith("a DiT: ")
    found = load_weights("again")
    assert isinstance(found, DiT)
    assert found.config == model.config


def test_refusals(run: Run, weights: Path, own_folder: Path) -> None:
    check_refusal(run("weights", "import", "nothing.pt", "out"), "no such checkpoint file: nothing.pt")
    (own_folder / "taken").mkdir()
    (own_folder / "taken/mine.txt").touch()
    check_refusal(run("weights", "import", "nothing.pt", "taken"), "taken exists and is not empty")
    check_refusal(run("weights", "export", "nowhere", "model.pt"), "no weights in nowhere")
    check_refusal(run("weights", "export", "weights", "taken"), "taken exists")
    torch.save({"layer.weight": torch.zeros(1)}, "other.pt")
    check_refusal(run("weights", "import", "other.pt", "out"), "other.pt is of no known code")
    assert not (own_folder / "out").exists()


def test_a_folder_of_the_platform_is_not_a_checkpoint_of_other_code(run: Run, weights: Path) -> None:
    result = run("weights", "import", "weights/model.safetensors", "out")
    check_refusal(result, "model.safetensors is of no known code", "blocks.0.attn.k_norm.bias")
