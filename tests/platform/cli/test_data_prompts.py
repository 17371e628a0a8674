"""`causalfusion data prompts`: two files, and what a refusal says."""

from __future__ import annotations

import json
from pathlib import Path

from tests.platform.cli.conftest import Run, check_refusal


def test_prompts_and_their_record_are_written(run: Run, own_folder: Path) -> None:
    content = {
        "images": [{"id": image, "file_name": f"{image}.jpg"} for image in range(6)],
        "annotations": [{"id": 10 + image, "image_id": image, "caption": f"caption {image}"} for image in range(6)],
    }
    Path("captions_val2014.json").write_text(json.dumps(content))
    check_refusal(
        run("data", "prompts", "captions_val2014.json", "fid30k.jsonl"),
        "captions_val2014.json: 30,000 prompts of 6 captions; allowed: 1 to 6",
        "add --num N",
    )
    assert not (own_folder / "fid30k.jsonl").exists()
    result = run("data", "prompts", "captions_val2014.json", "few.jsonl", "--num", "4", "--seed", "2")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines() == [
        "4 of 6 captions, seed 2: few.jsonl",
        "coco_zero_shot_fid_4_prompts_6_images, reference: all 6 images, center_crop of ADM: few.protocol.json",
    ]
    lines = [json.loads(line) for line in Path("few.jsonl").read_text().splitlines()]
    assert len({line["annotation_id"] for line in lines}) == 4
    assert all(line["caption"] == f"caption {line['image_id']}" for line in lines)
    record = json.loads(Path("few.protocol.json").read_text())
    assert (record["prompts"], record["seed"], record["reference_images"]) == (4, 2, 6)
