"""Experiment platform: Ray Train with DeepSpeed, Ray Tune, Ray Data and MLflow around CausalFusion models.

`cli/` holds one file per command, and `launch/` starts its Ray jobs. `tasks/` and `assemble` define a run from its
parts: `config/`, `data/`, `train/`, `checkpoint/`, `sampling/`, `evaluation/`, `tracking/` and `report/`.
Open `config/schema` first, then `train/loop`.
"""

__version__ = "0.1.0"
