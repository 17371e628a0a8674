"""The plan of a sample set: its parts, its name, and what may not change between launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.platform.sampling.plans import make_plan

from causalfusion import DiffusionConfig, SamplingConfig, preset
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import AutoencoderId
from causalfusion_platform.sampling.prompts_file import PromptsId
from causalfusion_platform.sampling.sample_set import (
    Finished,
    SamplePlan,
    SetRecord,
    begin,
    check_begun,
    read_record,
)

CHANGES: dict[str, Any] = {
    "num": 12,
    "seed": 12,
    "labels": "random",
    "classes": (3, 1),
    "uint8": "truncate",
    "precision": "bf16",
    "batch_size": 4,
    "sampling": SamplingConfig(
        num_inference_steps=3, num_ar_steps=2, guidance_scale=1.5, guidance_interval=(0, 50)
    ),
    "diffusion": DiffusionConfig(num_train_steps=100, variance="fixed_small"),
    "model": preset("tiny", num_heads=4),
    "weights_sha256": "1" * 64,
    "autoencoder": AutoencoderId(name="identity", scale=0.5),
    "image_size": 16,
    "prompts": PromptsId(file=Path("/p.jsonl"), sha256="2" * 64),
}
ELSEWHERE: dict[str, Any] = {"weights": Path("/other"), "vae": "identity", "versions": {"torch": "3"}}


# Parts


@given(num=st.integers(1, 60_000), batch_size=st.integers(1, 700))
def test_parts_are_whole_batches_of_all_samples(num: int, batch_size: int) -> None:
    plan = make_plan(num=num, batch_size=batch_size)
    parts = [plan.part(index) for index in range(plan.num_parts)]
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == num
    assert all(parts)
    assert {len(part) for part in parts[:-1]} <= {plan.part_size}
    assert plan.part_size % batch_size == 0
    assert plan.part_size <= max(256, batch_size)


def test_a_small_set_has_parts_for_many_workers() -> None:
    assert make_plan(num=1000, batch_size=16).num_parts == 63
    assert make_plan(num=50_000, batch_size=64).num_parts == 196  # of 256
    assert make_plan(num=3, batch_size=64).num_parts == 1


def test_labels_are_those_of_the_rule() -> None:
    assert make_plan(num=12).label_tensor().tolist() == [*range(10), 0, 1]
    assert make_plan(num=5, classes=(3, 1)).label_tensor().tolist() == [3, 1, 3, 1, 3]
    drawn = make_plan(num=200, labels="random", classes=(3, 1)).label_tensor()
    assert set(drawn.tolist()) == {1, 3}
    assert not torch.equal(drawn[:-2], drawn[2:])


# Identity


def test_every_change_is_another_set() -> None:
    """All fields but the version are in either list."""
    plans = [make_plan(), *(make_plan(**{key: value}) for key, value in CHANGES.items())]
    assert len({plan.name for plan in plans}) == len(plans)
    assert {make_plan(**{key: value}).name for key, value in ELSEWHERE.items()} == {make_plan().name}
    assert {*CHANGES, *ELSEWHERE, "version"} == set(make_plan().model_dump())


def test_a_file_of_prompts_may_lie_anywhere() -> None:
    prompts = PromptsId(file=Path("/p.jsonl"), sha256="2" * 64)
    names = [
        make_plan(prompts=prompts.model_copy(update=changes)).name
        for changes in ({}, {"file": Path("/q.jsonl")}, {"sha256": "3" * 64}, {"cut": 0}, {"cut": 1})
    ]
    assert names[0] == names[1]
    assert len({*names}) == 4


def test_the_name_tells_the_settings() -> None:
    assert make_plan().name.startswith("10-S2-T3-ddpm-cfg1.5-seed11-")
    sampling = SamplingConfig(step_sizes=(5, 11), num_inference_steps=(4, 8), sampler="unipc")
    assert make_plan(sampling=sampling).name.startswith("10-S2-T4+8-unipc-cfg1-seed11-")
    falling = SamplingConfig(num_ar_steps=4, num_inference_steps=50, step_schedule="linear", last_inference_steps=5)
    assert make_plan(sampling=falling).name.startswith("10-S4-T50-5-linear-ddpm-cfg1-seed11-")


def test_sets_without_a_schedule_of_steps_keep_their_names() -> None:
    """A name is a digest of the identity, and sets made before sampling had schedules must go on."""
    falling = SamplingConfig(num_ar_steps=4, num_inference_steps=50, step_schedule="linear", last_inference_steps=5)
    more = {"sampling.step_schedule", "sampling.last_inference_steps"}
    assert make_plan(sampling=falling).identity.keys() - make_plan().identity.keys() == more


# The folder


def test_a_plan_is_written_first_and_taken_up_again(tmp_path: Path) -> None:
    plan = make_plan(sampling=SamplingConfig(step_sizes=(5, 11), num_inference_steps=(4, 8)), classes=(2, 0))
    assert read_record(tmp_path) is None
    assert begin(tmp_path, plan) == SetRecord(plan=plan) == read_record(tmp_path)
    written = json.loads((tmp_path / "samples.json").read_text())["plan"]
    assert (written["seed"], written["labels"], written["uint8"]) == (11, "balanced", "round")
    assert written["sampling"]["num_inference_steps"] == [4, 8]
    record = SetRecord(plan=plan, finished=Finished(digest="ab", npz_bytes=3))
    record.write(tmp_path)
    assert begin(tmp_path, plan) == record


def test_the_same_samples_from_elsewhere_go_on(tmp_path: Path) -> None:
    first = begin(tmp_path, make_plan())
    assert begin(tmp_path, make_plan(**ELSEWHERE)) == first


@pytest.mark.parametrize(
    ("key", "was", "now"),
    [
        ("num", "10", "12"),
        ("labels", "'balanced'", "'random'"),
        ("classes", "None", "[3, 1]"),
        ("uint8", "'round'", "'truncate'"),
        ("sampling.guidance_interval", "None", "[0, 50]"),
        ("diffusion.variance", "'fixed_large'", "'fixed_small'"),
        ("model.num_heads", "2", "4"),
        ("weights_sha256", f"'{'0' * 64}'", f"'{'1' * 64}'"),
        ("autoencoder.scale", "1.0", "0.5"),
    ],
)
def test_another_plan_is_refused_with_what_differs(tmp_path: Path, key: str, was: str, now: str) -> None:
    begin(tmp_path, make_plan())
    before = (tmp_path / "samples.json").read_bytes()
    section = key.partition(".")[0]
    with pytest.raises(UserError) as caught:
        begin(tmp_path, make_plan(**{section: CHANGES[section]}))
    assert f"{tmp_path} was begun with other settings:\n  {key}: was {was}, now {now}\n" in str(caught.value)
    assert str(caught.value).count(": was ") == 1
    assert (tmp_path / "samples.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", '{"plan": {}}', '{"plan": {"version": 2}}', "[]"])
def test_a_damaged_plan(tmp_path: Path, content: str) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(UserError, match=r"samples\.json is damaged, or of another version"):
        begin(tmp_path, make_plan())


# In another process


def test_a_worker_sees_the_folder_in_which_the_set_was_begun(tmp_path: Path) -> None:
    plan = make_plan()
    begin(tmp_path, plan)
    check_begun(tmp_path, make_plan(**ELSEWHERE))


@pytest.mark.parametrize("other", [None, make_plan(seed=12)])
def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path, other: SamplePlan | None) -> None:
    """Another machine has no such folder, or one with other samples."""
    if other is not None:
        begin(tmp_path, other)
    with pytest.raises(UserError, match=r"the machine of a worker, is not the folder .*\n.*all nodes share: --out"):
        check_begun(tmp_path, make_plan())
