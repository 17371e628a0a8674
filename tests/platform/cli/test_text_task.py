"""Commands on the task of text and images: the plan, and refusals with status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.cli.conftest import Run, check_refusal


def test_the_plan_of_text(run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run("train", "text", "--dry-run")
    assert result.status == 0
    text = " ".join(result.out.replace("│", " ").split())
    for part in (
        "shards/digits-captions: 1,497 latents of 1×8×8",
        "520,164 parameters: width 96, 4 blocks, 3 heads; vocabulary of 384 tokens, tied",
        "16 image tokens, up to 16 text tokens; training sequences of 32 to 48 tokens",
        "1,000 steps, 64,000 images",
    ):
        assert part in text
    assert list(own_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["task=class_to_image"], "task=class_to_image trains on classes"),
        (["model=digits", "objective.text=null"], "task=text_image trains a model of text"),
        (["model=digits"], "objective.text trains on text, but the model has none"),
        (["data.validation=gone"], "data.validation: "),
        (["data.tokenizer=gone.json"], "there is no tokenizer at "),
    ],
    ids=["text for classes", "classes for text", "text without a table", "validation rows", "tokenizer"],
)
def test_wrong_input_ends_in_one_message(run: Run, arguments: list[str], part: str) -> None:
    for mode in ("--dry-run", "--local"):
        result = run("train", "text", "train.num_workers=1", *arguments, mode)
        printed, result.out = result.out, ""
        check_refusal(result, part)
        assert "Traceback" not in printed
    assert not Path("runs/text/run.json").exists()
    assert not Path("runs/text/checkpoints").exists()
