"""What is encoded into which shard, and whether a folder was begun with that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.autoencoder import open_encoder
from causalfusion_platform.data.encode.plan import (
    EncodeSettings,
    EncodingPlan,
    make_plan,
    recorded_rules,
    take_items,
)
from causalfusion_platform.data.faults import Finding, parse_policies
from causalfusion_platform.data.sources.listing import Listing, make_listing
from causalfusion_platform.data.sources.selection import EARLIER_RULES, RULES, Selection

BLOCK = 128 * 2**20
"""The block that Ray Data hands on in one piece by default."""


def settings(*policies: str, **changes: Any) -> EncodeSettings:
    chosen = {"size": 8, "max_pixels": 10**6, "batch_size": 4, "rows_per_shard": 12, "rows_per_group": 5, **changes}
    return EncodeSettings(policies=parse_policies(policies), **chosen)


def listing_of(
    count: int,
    location: str = "pictures",
    left_out: int = 0,
    sizes: int = 100,
    classes: int = 3,
    kind: Any = "folders",
    rules: int = RULES,
) -> Listing:
    return make_listing(
        kind,
        location,
        [f"class {number}" for number in range(classes)],
        {
            "key": [f"{number:06d}.jpg" for number in range(count)],
            "label": [number % classes for number in range(count)],
            "file": [f"/{location}/{number:06d}.jpg" for number in range(count)],
            "size": [sizes] * count,
        },
        [(f"stray {number}", Finding("unlabelled", "skip", "no class")) for number in range(left_out)],
        Selection(rules),
    )


def plan_of(count: int = 30, *policies: str, listing: Listing | None = None, **changes: Any) -> EncodingPlan:
    return make_plan(listing or listing_of(count), open_encoder("identity"), settings(*policies, **changes))


@pytest.mark.parametrize("order", ["source", "shuffled"])
@pytest.mark.parametrize("count", [1, 11, 12, 13, 36, 1000])
def test_shards_hold_each_item_once(count: int, order: str) -> None:
    plan = plan_of(count, order=order)
    shards = [plan.items(shard).tolist() for shard in range(plan.num_shards)]
    assert {len(items) for items in shards[:-1]} <= {12}
    assert 1 <= len(shards[-1]) <= 12
    items = [item for shard in shards for item in shard]
    assert sorted(items) == list(range(count))
    if order == "source":
        assert items == sorted(items)
    assert [plan.file(shard) for shard in range(plan.num_shards)] == [
        f"shard-{shard:05d}-of-{len(shards):05d}.parquet" for shard in range(len(shards))
    ]


@pytest.mark.parametrize(("size", "batch", "rows"), [(256, 32, 4096), (512, 32, 4096), (64, 32, 4096), (8, 4, 12)])
def test_chunks_are_whole_batches_of_one_shard(size: int, batch: int, rows: int) -> None:
    plan = plan_of(2 * rows + rows // 3 + 1, size=size, batch_size=batch, rows_per_shard=rows)
    wanted = [2, 0]
    chunks = plan.chunks(wanted)
    for shard in wanted:
        parts = [chunk for chunk in chunks if chunk.shard == shard]
        taken = [place for chunk in parts for place in range(chunk.start, chunk.stop)]
        assert taken == list(range(len(plan.items(shard))))
        assert all(chunk.start % batch == 0 for chunk in parts)
        assert all(chunk.stop % batch == 0 for chunk in parts[:-1])
    assert [chunk.shard for chunk in chunks] == sorted((chunk.shard for chunk in chunks), key=wanted.index)
    biggest = max(chunk.stop - chunk.start for chunk in chunks)
    assert biggest * size * size * 3 <= BLOCK / 2
    if size == 64:  # small images are not handed on one batch at a time
        assert biggest == 4096


def test_a_chunk_is_one_batch_where_that_is_large() -> None:
    chunks = plan_of(512, size=512, batch_size=256, rows_per_shard=512).chunks([0])
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 256), (256, 512)]


def test_shuffled_is_one_fixed_permutation() -> None:
    """Of numbers, so of any source with as many items. Folders that were begun need the very one: it is pinned."""
    order = plan_of(1000, order="shuffled").order
    assert np.array_equal(order, plan_of(1000, listing=listing_of(1000, kind="parquet"), order="shuffled").order)
    assert order[:8].tolist() == [528, 930, 672, 571, 375, 327, 267, 346]
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize(("kind", "order"), [("folders", "shuffled"), ("flat", "shuffled"), ("parquet", "source")])
def test_auto_suits_the_source(kind: str, order: str) -> None:
    auto = plan_of(listing=listing_of(50, kind=kind))
    named = plan_of(listing=listing_of(50, kind=kind), order=order)
    assert np.array_equal(auto.order, named.order)
    assert auto.description.order == order
    assert auto.identity == named.identity


def test_description_says_what_was_listed() -> None:
    described = plan_of(listing=listing_of(30, left_out=4), flip=False, size=16).description
    assert described.source.items == 34
    assert described.shape == (3, 16, 16)
    assert described.crop is not None
    assert (described.crop.size, described.flip, described.posterior, described.captions) == (
        16,
        False,
        False,
        False,
    )
    assert described.class_names == ["class 0", "class 1", "class 2"]


def test_taken_items_are_rows_of_the_listing() -> None:
    rows = take_items(listing_of(30).table, np.array([7, 2, 29]))
    assert rows["key"].to_pylist() == ["000007.jpg", "000002.jpg", "000029.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"max_pixels": 0}, "max_pixels must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"rows_per_shard": 0}, "rows_per_shard must be at least 1, got 0"),
        ({"rows_per_group": 0}, "rows_per_group must be at least 1, got 0"),
        ({"rows_per_shard": 10}, r"10 rows per shard are not a multiple of the batch size 4\n.*--rows-per-shard"),
        ({"order": "random"}, "order must be auto, source or shuffled, got 'random'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_size_that_the_autoencoder_does_not_take_is_refused(tmp_path: Path) -> None:
    encoder = open_encoder("identity")
    encoder.downsampling = 16
    with pytest.raises(UserError, match=r"40×40 pixels.*\n.*multiple of 16"):
        make_plan(listing_of(3), encoder, settings(size=40))


# --- begin ------------------------------------------------------------------------------------------------


def test_the_same_is_continued_wherever_the_source_lies(tmp_path: Path) -> None:
    plan_of().begin(tmp_path / "encoding")
    before = (tmp_path / "encoding/plan.json").read_bytes()
    plan_of(listing=listing_of(30, location="another/disk")).begin(tmp_path / "encoding")
    assert (tmp_path / "encoding/plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (plan_of(size=9), ["crop.size: was 8, now 9", "shape", "size: was 8, now 9"]),
        (plan_of(30, "cmyk=skip"), ["policies.cmyk: was 'convert', now 'skip'"]),
        (plan_of(30, "zero_bytes=stop"), ["policies.zero_bytes: was 'skip', now 'stop'"]),
        (plan_of(max_pixels=5), ["max_pixels: was 1000000, now 5"]),
        (plan_of(flip=False), ["flip: was True, now False"]),
        (plan_of(bf16=True), ["bf16: was False, now True"]),
        (plan_of(batch_size=6), ["batch_size: was 4, now 6"]),
        (plan_of(rows_per_shard=16), ["rows_per_shard: was 12, now 16"]),
        (plan_of(rows_per_group=6), ["rows_per_group: was 5, now 6"]),
        (plan_of(order="source"), ["order: was 'shuffled', now 'source'"]),
        (plan_of(listing=listing_of(30, sizes=101)), ["source.digest"]),
        (plan_of(listing=listing_of(30, left_out=1)), ["source.items: was 30, now 31"]),
        (plan_of(listing=listing_of(30, classes=4)), ["classes", "source.digest"]),
        (plan_of(listing=listing_of(30, kind="flat")), ["source.kind: was 'folders', now 'flat'"]),
    ],
)
def test_anything_else_is_refused_with_each_difference(
    tmp_path: Path, changed: EncodingPlan, says: list[str]
) -> None:
    plan_of().begin(tmp_path / "encoding")
    before = (tmp_path / "encoding/plan.json").read_bytes()
    with pytest.raises(UserError) as refused:
        changed.begin(tmp_path / "encoding")
    head, *differences, advice = str(refused.value).splitlines()
    assert head == f"{tmp_path} was begun with other images or settings:"
    assert "encode into another folder" in advice
    assert len(differences) == len(says)
    for line, start in zip(sorted(differences), sorted(says), strict=True):
        assert line.strip().startswith(start)
    assert (tmp_path / "encoding/plan.json").read_bytes() == before


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    plan = plan_of()
    plan.begin(tmp_path / "encoding")
    other = plan.description.autoencoder.model_copy(update={"weights_sha256": "f" * 64})
    with pytest.raises(UserError, match=r"autoencoder\.weights_sha256: was None, now 'f"):
        replace(plan, description=plan.description.model_copy(update={"autoencoder": other})).begin(
            tmp_path / "encoding"
        )


def test_a_policy_that_stopped_may_change_once(tmp_path: Path) -> None:
    """No shard finished under `stop` holds such a fault; one finished under what follows may."""
    plan_of(30, "truncated=stop", "cmyk=stop").begin(tmp_path / "encoding")
    changed = plan_of(30, "truncated=skip", "cmyk=stop")
    changed.begin(tmp_path / "encoding")
    assert json.loads((tmp_path / "encoding/plan.json").read_bytes()) == changed.identity
    with pytest.raises(UserError, match=r"policies\.truncated: was 'skip', now 'stop'"):
        plan_of(30, "truncated=stop", "cmyk=stop").begin(tmp_path / "encoding")
    plan_of(30).begin(tmp_path / "encoding")
    with pytest.raises(UserError, match=r"policies\.cmyk: was 'convert', now 'skip'"):
        plan_of(30, "cmyk=skip").begin(tmp_path / "encoding")


def test_a_plan_of_a_version_with_fewer_kinds_of_faults_is_continued(tmp_path: Path) -> None:
    earlier = plan_of().identity
    del earlier["policies"]["uncaptioned"]
    (tmp_path / "encoding").mkdir()
    (tmp_path / "encoding/plan.json").write_text(json.dumps(earlier))
    plan_of().begin(tmp_path / "encoding")
    plan_of(30, "uncaptioned=skip").begin(tmp_path / "encoding")
    with pytest.raises(UserError, match=r"policies\.uncaptioned: was 'skip', now 'stop'"):
        plan_of().begin(tmp_path / "encoding")


def test_a_plan_of_version_2_takes_the_split_of_the_same_command(tmp_path: Path) -> None:
    """Once. The images are the same, and so are the shards."""
    earlier = {**plan_of().identity, "version": 2}
    del earlier["split"]
    (tmp_path / "plan.json").write_text(json.dumps(earlier))
    plan = plan_of(listing=listing_of(30, location="data/val"))
    assert plan.description.split == "val"
    assert not plan.is_begun(tmp_path)
    plan.begin(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_bytes()) == plan.identity
    with pytest.raises(UserError, match="split: was 'val', now 'train'"):
        plan_of().begin(tmp_path)


@pytest.mark.parametrize("text", ['{"version": 2,', "[]", "3", "[" * 200_000])
def test_damaged_plan_is_refused(tmp_path: Path, text: str) -> None:
    plan_of().begin(tmp_path / "encoding")
    (tmp_path / "encoding/plan.json").write_text(text)
    for look in (plan_of().begin, recorded_rules):
        with pytest.raises(UserError, match=r"plan\.json is damaged: .*\n  encode into another folder"):
            look(tmp_path / "encoding")


def test_a_folder_keeps_the_rules_that_it_was_begun_under(tmp_path: Path) -> None:
    """Plans of before record none. A version that is not known is refused."""
    assert recorded_rules(tmp_path) == RULES
    earlier = plan_of(listing=listing_of(30, rules=EARLIER_RULES))
    assert "rules" not in earlier.identity
    earlier.begin(tmp_path)
    assert recorded_rules(tmp_path) == EARLIER_RULES
    assert earlier.is_begun(tmp_path)
    with pytest.raises(UserError, match=f"rules: was None, now {RULES}"):
        plan_of().begin(tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**plan_of().identity}))
    assert recorded_rules(tmp_path) == RULES
    path.write_text(json.dumps({**plan_of().identity, "rules": 99}))
    with pytest.raises(UserError, match="has the rules 99; allowed: 1, 2"):
        recorded_rules(tmp_path)


def test_a_comparison_writes_nothing(tmp_path: Path) -> None:
    assert not plan_of().is_begun(tmp_path / "encoding")
    assert not (tmp_path / "encoding").exists()
