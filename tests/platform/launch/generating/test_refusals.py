"""Requests that cannot be met: nothing is made and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.platform.launch.generating.asked import NUM, Nobody, files_of, request_of

from causalfusion import build_model, preset, save_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.generating.actors import LocalGenerator
from causalfusion_platform.launch.generating.generate import GeneratedSet, run_generate
from causalfusion_platform.launch.generating.request import GenerateRequest
from causalfusion_platform.launch.runs.lock import only_launch


def refusal(request: GenerateRequest) -> str:
    with pytest.raises(UserError) as caught:
        run_generate(request, Nobody())
    return str(caught.value)


def test_another_plan_in_the_folder(whole: GeneratedSet, weights: Path) -> None:
    before = files_of(whole.folder)
    message = refusal(request_of(weights, whole.folder, seed=6, settings=["guidance_scale=2"], uint8="truncate"))
    for line in (
        "seed: was 5, now 6",
        "sampling.guidance_scale: was 1.5, now 2.0",
        "uint8: was 'round', now 'truncate'",
    ):
        assert f"\n  {line}\n" in message
    assert message.count(": was ") == 3
    assert files_of(whole.folder) == before


def test_two_launches_at_once(weights: Path, tmp_path: Path) -> None:
    with only_launch(tmp_path / "out"):
        message = refusal(request_of(weights, tmp_path / "out"))
    assert message.startswith(f"another process is generating into {tmp_path / 'out'}")
    assert run_generate(request_of(weights, tmp_path / "out"), LocalGenerator()).made == NUM


def test_folders_of_something_else(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    assert f"{tmp_path / 'out'} holds thesis.tex: it was not made by this command" in refusal(
        request_of(weights, tmp_path / "out")
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert "thesis.tex is a file" in refusal(request_of(weights, tmp_path / "out/thesis.tex"))


def test_too_little_room(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten samples of 192 bytes, as parts and in the .npz."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * 1920 - 1))
    assert "until they are finished, 10 samples of 8×8 pixels take 0.0 GiB" in refusal(
        request_of(weights, tmp_path / "out")
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * 1920))
    assert run_generate(request_of(weights, tmp_path / "out"), LocalGenerator()).made == NUM


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"settings": ["num_ar_steps=17"]}, "17"),
        ({"settings": ["num_inference_steps=101"]}, "[1, 100], got 101"),
        ({"settings": ["step_sizes=[5,12]"]}, "add up to 16, got [5, 12] (the model has 16 image tokens)"),
        ({"settings": ["patch_order=dilated", "order_block=3"]}, "3 does not divide the 4×4 patch grid"),
        ({"settings": ["steps=3"]}, "setting 'steps=3' is not KEY=VALUE"),
        ({"classes": "0-10"}, "labels '0-10': the model's classes are 0…9"),
        ({"vae": "nowhere"}, "no autoencoder in "),
    ],
)
def test_what_does_not_fit(weights: Path, tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    assert part in refusal(request_of(weights, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_weights_of_no_run_need_a_folder(weights: Path) -> None:
    assert "are of no run that samples could lie in\n  add --out FOLDER" in refusal(request_of(weights, None))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"labels": "equal"}, "labels must be balanced or random, got 'equal'"),
        ({"uint8": "floor"}, "uint8 must be round or truncate or adm, got 'floor'"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16, got 'fp16'"),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"npz": False}, "neither samples.npz nor PNGs are asked for"),
    ],
)
def test_requests_that_are_none(weights: Path, tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        request_of(weights, tmp_path / "out", **changes)
    assert part in str(caught.value)


def test_a_dit_has_one_ar_step(tmp_path: Path) -> None:
    model = build_model(preset("digits-dit", hidden_size=8, num_heads=2, depth=1))
    save_weights(tmp_path / "weights", model.config, model.state_dict())
    assert "a DiT has no AR steps: num_ar_steps must be 1, got 2" in refusal(
        request_of(tmp_path / "weights", tmp_path / "out")
    )
    request = request_of(tmp_path / "weights", tmp_path / "out", settings=["num_ar_steps=1"], num=2)
    assert run_generate(request, LocalGenerator()).made == 2


@pytest.mark.parametrize("content", ["", "{}x", '{"architecture": "gan"}', '{"architecture": "dit", "x": 1}', "[]"])
def test_a_damaged_configuration(weights: Path, tmp_path: Path, content: str) -> None:
    copied = Path(shutil.copytree(weights, tmp_path / "weights"))
    (copied / "config.json").write_text(content)
    expected = f"this is not the configuration of a model: {copied / 'config.json'}"
    assert expected in refusal(request_of(copied, tmp_path / "out"))
