"""Name the paths inside the folder of a run."""

from __future__ import annotations

from pathlib import Path

STATE_FILE = "run.json"
JOURNAL_FILE = "journal.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
SAMPLES_FOLDER = "samples"
EVALUATION_FOLDER = "evaluation"


class RunPaths:
    """Paths of the files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.root.name

    @property
    def state_file(self) -> Path:
        """State of the run between launches. A folder without it holds no begun run."""
        return self.root / STATE_FILE

    @property
    def config_file(self) -> Path:
        """The configuration as readable YAML."""
        return self.root / "config.yaml"

    @property
    def summary_file(self) -> Path:
        """The results of a finished run."""
        return self.root / "summary.json"

    @property
    def journal_file(self) -> Path:
        """The events of all launches."""
        return self.root / JOURNAL_FILE

    @property
    def outbox_folder(self) -> Path:
        """Folder of files that MLflow has not taken yet, of the delivery's cursor, and of refused records."""
        return self.root / "outbox"

    @property
    def old_records(self) -> Path:
        """Folder in which an earlier version left records that MLflow had not taken."""
        return self.root / "spool"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / CHECKPOINTS_FOLDER

    @property
    def samples(self) -> Path:
        """Folder of sample grids, of the final samples, and of sets that were generated later."""
        return self.root / SAMPLES_FOLDER

    @property
    def final_samples(self) -> Path:
        """Latents and labels of the final samples."""
        return self.samples / "final.safetensors"

    @property
    def evaluation(self) -> Path:
        """Folder of later measurements."""
        return self.root / EVALUATION_FOLDER

    @property
    def hangs(self) -> Path:
        """Folder of the stacks of workers that hung, by attempt."""
        return self.root / "hangs"

    @property
    def ray(self) -> Path:
        """Folder of Ray Train's own state, which is never read again."""
        return self.root / "ray"

    @property
    def tune(self) -> Path:
        """Folder of Ray Tune's own state, of a sweep."""
        return self.root / "tune"

    @property
    def members(self) -> Path:
        """Folder of the members of a population, of a sweep."""
        return self.root / "members"
