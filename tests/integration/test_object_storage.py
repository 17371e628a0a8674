"""A training whose shards are objects of an S3 store."""

from __future__ import annotations

from pathlib import Path

from tests.integration.conftest import SMOKE
from tests.object_store import THROTTLED, FaultyServer

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.data.upload import upload_shards
from causalfusion_platform.launch.doctor.storage import check_shards
from causalfusion_platform.launch.training.train import Outcome, run_training
from causalfusion_platform.storage.object_path import ObjectPath
from causalfusion_platform.tracking.journal import Journal, StepReport


def reports(run: Path) -> list[tuple[int, float]]:
    """Return images and loss of each report of a run."""
    events = Journal(run).events()
    return [(event.images, event.loss) for event in events if isinstance(event, StepReport)]


def test_a_training_reads_the_same_from_object_storage(
    in_process: Outcome,
    home: Path,
    digits_folder: Path,
    s3_bucket: str,
    s3_server: FaultyServer,
) -> None:
    """Losses and scores are those of the run from disk, to the last bit, with requests that fail meanwhile."""
    address = ObjectPath(f"{s3_bucket}/shards/digits")
    manifest = upload_shards(digits_folder, address)
    composed = compose_experiment("smoke", [*SMOKE, "name=s3", f"data.path={address}", "data.prepare=false"])
    check = check_shards(composed.experiment)
    assert (check.verdict, f"{address}: {manifest.rows:,} rows" in check.line) == ("ok", True)

    s3_server.fail("GET", 2, THROTTLED)
    outcome = run_training(composed, local=True)
    assert s3_server.faults_left == 0
    from_disk = Path(in_process.summary["run_dir"])
    assert reports(home / "runs" / "s3") == reports(from_disk) != []
    assert not (home / "s3:").exists()
    assert not (Path.cwd() / "s3:").exists()
    for score in ("class_accuracy", "fd_digits_cnn"):
        assert outcome.summary[score] == in_process.summary[score]
