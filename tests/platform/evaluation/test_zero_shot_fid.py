"""Prompts of zero-shot FID, chosen from a generated file of captions."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.coco_captions import CaptionedImage, parse_coco
from causalfusion_platform.evaluation import zero_shot_fid
from causalfusion_platform.evaluation.zero_shot_fid import choose_prompts, write_prompts


def coco(images: int = 40, *, order: int | None = None) -> dict[str, list[dict[str, object]]]:
    """Five captions an image, the last of every image blank. `order`: shuffle by this seed."""
    files: list[dict[str, object]] = [{"id": 1000 + image, "file_name": f"{image}.jpg"} for image in range(images)]
    annotations: list[dict[str, object]] = [
        {
            "id": 7 * place,
            "image_id": 1000 + place // 5,
            "caption": " " if place % 5 == 4 else f" caption {place}\n",
        }
        for place in range(5 * images)
    ]
    if order is not None:
        random.Random(order).shuffle(files)
        random.Random(order + 1).shuffle(annotations)
    return {"images": files, "annotations": annotations}


def parse(images: int = 40, *, order: int | None = None) -> list[CaptionedImage]:
    return parse_coco(json.dumps(coco(images, order=order)).encode(), "captions.json")


def test_prompts_are_captions_with_their_ids() -> None:
    prompts = choose_prompts(parse(), 100, seed=3)
    assert len({prompt.annotation_id for prompt in prompts}) == 100
    for prompt in prompts:
        place = prompt.annotation_id // 7
        assert (prompt.caption, prompt.image_id) == (f"caption {place}", 1000 + place // 5)
        assert place % 5 != 4
    assert max(Counter(prompt.image_id for prompt in prompts).values()) > 1


def test_the_choice_depends_on_the_seed_and_the_ids_alone() -> None:
    prompts = choose_prompts(parse(), 60, seed=0)
    assert choose_prompts(parse(order=5), 60, seed=0) == prompts
    assert choose_prompts(parse(), 20, seed=0) == prompts[:20]
    assert set(choose_prompts(parse(), 60, seed=1)) != set(prompts)
    assert set(choose_prompts(parse(), 160, seed=1)) == set(choose_prompts(parse(), 160, seed=0))


def test_every_caption_is_chosen_as_often() -> None:
    """Chi-squared over 16 captions and 800 seeds that choose 4: below the 0.1% limit of 15 degrees, 37.7."""
    images = parse(4)
    times = Counter(prompt.annotation_id for seed in range(800) for prompt in choose_prompts(images, 4, seed))
    assert len(times) == 16
    assert sum((count - 200) ** 2 / 200 for count in times.values()) < 37.7


def test_files_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions, out = tmp_path / "captions_val2014.json", tmp_path / "new" / "prompts.jsonl"
    captions.write_text(json.dumps(coco()))
    write_prompts(captions, out, 30, seed=4)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    chosen = choose_prompts(parse(), 30, seed=4)
    assert [(line["annotation_id"], line["image_id"], line["caption"]) for line in lines] == [
        (prompt.annotation_id, prompt.image_id, prompt.caption) for prompt in chosen
    ]
    assert json.loads((tmp_path / "new" / "prompts.protocol.json").read_text()) == {
        "protocol": "coco_zero_shot_fid_30_prompts_40_images",
        "prompts": 30,
        "seed": 4,
        "samples_per_prompt": 1,
        "reference_images": 40,
        "reference_crop": "center_crop of ADM",
        "captions": "captions_val2014.json",
        "captions_sha256": hashlib.sha256(captions.read_bytes()).hexdigest(),
        "annotations": 160,
        "prompts_sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }
    before = out.read_bytes()
    assert write_prompts(captions, out, 30, seed=4).prompts_sha256 == hashlib.sha256(before).hexdigest()
    assert out.read_bytes() == before

    # The name of FID-30k needs both of its numbers.
    monkeypatch.setattr(zero_shot_fid, "FID30K_PROMPTS", 30)
    assert write_prompts(captions, out, 30, seed=4).protocol == "coco_zero_shot_fid_30_prompts_40_images"
    monkeypatch.setattr(zero_shot_fid, "FID30K_IMAGES", 40)
    assert write_prompts(captions, out, 30, seed=4).protocol == "coco_zero_shot_fid30k"
    assert write_prompts(captions, out, 29, seed=4).protocol == "coco_zero_shot_fid_29_prompts_40_images"


def test_the_numbers_of_fid_30k() -> None:
    assert (zero_shot_fid.FID30K_PROMPTS, zero_shot_fid.FID30K_IMAGES) == (30_000, 40_504)


def test_wrong_input(tmp_path: Path) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps(coco()))
    with pytest.raises(UserError, match=r"161 prompts of 160 captions; allowed: 1 to 160\n  add --num N"):
        write_prompts(captions, tmp_path / "x.jsonl", 161, seed=0)
    with pytest.raises(UserError, match=r"x\.txt does not end in \.jsonl\n  name a file such as .*x\.jsonl"):
        write_prompts(captions, tmp_path / "x.txt", 10, seed=0)
    with pytest.raises(UserError, match=r"none\.json: there is no such file"):
        write_prompts(tmp_path / "none.json", tmp_path / "x.jsonl", 10, seed=0)
    image = {"cocoid": 1, "filename": "1.jpg", "split": "test", "sentences": [{"raw": "a", "sentid": 1}]}
    captions.write_text(json.dumps({"images": [image]}))
    with pytest.raises(UserError, match=r"has splits\n  name COCO's own file, captions_val2014\.json"):
        write_prompts(captions, tmp_path / "x.jsonl", 1, seed=0)
    assert not list(tmp_path.glob("x.*"))
