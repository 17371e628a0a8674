"""Training runs on a folder with a damaged shard, through every real layer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.conftest import logged

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.launch.training.train import run_training
from causalfusion_platform.tracking.journal import Journal

BAD = "shard-00002-of-00004.parquet"
SHORT = ["data.prepare=false", "train.images=512", "train.checkpoint_every_images=256"]


@pytest.fixture
def shards(home: Path) -> Path:
    """The digits, where the experiment looks for them."""
    folder = compose_experiment("smoke", []).experiment.data.path
    assert folder.is_relative_to(home)
    write_digits(folder)
    return folder


def flip_a_bit(shard: Path) -> None:
    """Damage the latents of every row group, which only hashes and page checksums tell."""
    content = bytearray(shard.read_bytes())
    metadata = pq.read_metadata(shard)
    for group in range(metadata.num_row_groups):
        means = metadata.row_group(group).column(3)
        content[means.data_page_offset + means.total_compressed_size - 1] ^= 1
    shard.write_bytes(content)


def test_a_run_does_not_start_on_a_damaged_shard(home: Path, shards: Path) -> None:
    flip_a_bit(shards / BAD)
    with pytest.raises(UserError) as caught:
        run_training(compose_experiment("smoke", SHORT), local=True)
    message = str(caught.value)
    assert message.startswith(f"shard {shards / BAD} does not match its manifest: its SHA-256 is ")
    assert "data.max_bad_rows=0.251 (now 0)" in message  # 450 of 1,797 rows
    assert not (home / "runs" / "smoke").exists()


def test_a_run_goes_on_without_it_where_that_is_allowed(shards: Path) -> None:
    flip_a_bit(shards / BAD)
    composed = compose_experiment("smoke", [*SHORT, "data.max_bad_rows=0.251"])
    with logged() as said:
        summary = run_training(composed, local=True).summary
    assert summary["images_seen"] == 512
    assert list(summary["bad_shards"]) == [BAD]
    assert summary["bad_shards"][BAD].startswith("its SHA-256 is ")
    assert json.loads((Path(summary["run_dir"]) / "summary.json").read_text()) == summary
    (notice,) = (line for line in said if "left out" in line)
    assert notice.startswith(f"left out: 1 of 4 shards in {shards}, 450 of 1797 rows\n  {BAD}: its SHA-256 is ")


def check_says_which(message: str, shards: Path) -> None:
    """A person sees the shard, the cause and a way out; nothing of Ray and no traceback."""
    assert message.startswith(f"shard {shards / BAD} cannot be read: row group ")
    assert "checksum" in message.lower() or "crc" in message.lower()
    assert f"causalfusion data verify {shards}" in message
    assert len(message.splitlines()) <= 3
    assert "Traceback" not in message
    assert "ray::" not in message


def test_a_shard_damaged_after_the_checks_stops_the_run(shards: Path) -> None:
    flip_a_bit(shards / BAD)
    with pytest.raises(UserError) as caught:
        run_training(compose_experiment("smoke", [*SHORT, "data.verify=quick"]), local=True)
    check_says_which(str(caught.value), shards)


@pytest.mark.ray
def test_a_shard_damaged_after_the_checks_stops_the_workers(shards: Path, ray_cluster: None) -> None:
    flip_a_bit(shards / BAD)
    composed = compose_experiment("smoke", [*SHORT, "data.verify=quick", "train.num_workers=2"])
    with pytest.raises(UserError) as caught:
        run_training(composed)
    check_says_which(str(caught.value), shards)
    attempts = [event for event in Journal(composed.experiment.run_dir).events() if event.kind == "attempt"]
    assert len(attempts) == 1  # to try again would not help
