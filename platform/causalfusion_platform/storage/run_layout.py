"""Name the paths inside the folder of a run."""

from __future__ import annotations

from pathlib import Path

STATE_FILE = "run.json"
JOURNAL_FILE = "journal.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
SAMPLES_FOLDER = "samples"
EVALUATION_FOLDER = "evaluation"
PROBES_FOLDER = "probes"
ARTIFACTS_FOLDER = "mlartifacts"
"""Folder of artifacts beside the folders of runs, of MLflow's local store."""


class RunPaths:
    """Paths of the files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.name
        """Name of the run."""
        self.state_file = root / STATE_FILE
        """State of the run between launches. A folder without it holds no begun run."""
        self.launch_file = root / "launch.json"
        """Token of the newest launch. Older launches that are still alive publish nothing any more."""
        self.config_file = root / "config.yaml"
        """The configuration as readable YAML."""
        self.summary_file = root / "summary.json"
        """The results of a finished run."""
        self.journal_file = root / JOURNAL_FILE
        """The events of all launches."""
        self.outbox_folder = root / "outbox"
        """Folder of files that MLflow has not taken yet, of the delivery's cursor, and of refused records."""
        self.old_records = root / "spool"
        """Folder in which an earlier version left records that MLflow had not taken."""
        self.checkpoints = root / CHECKPOINTS_FOLDER
        """Folder of the checkpoints."""
        self.samples = root / SAMPLES_FOLDER
        """Folder of sample grids, of the final samples, and of sets that were generated later."""
        self.final_samples = self.samples / "final.safetensors"
        """Tensors of the task's end, such as latents and labels of the final samples."""
        self.evaluation = root / EVALUATION_FOLDER
        """Folder of later measurements."""
        self.probes = root / PROBES_FOLDER
        """Folder of the results of probes, by their settings."""
        self.hangs = root / "hangs"
        """Folder of the stacks of workers that hung, by attempt."""
        self.ray = root / "ray"
        """Folder of Ray Train's own state, which is never read again."""
        self.tune = root / "tune"
        """Folder of Ray Tune's own state, of a sweep."""
        self.members = root / "members"
        """Folder of the members of a population, of a sweep."""
