"""Score of one probe, as files and tables have it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Place = tuple[str, int, int, bool]
"""Kind, diffusion time, layer, and whether the weights are those of random initialization."""


class ProbeScore(BaseModel):
    """Accuracy of one probe on validation rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str
    """`linear` or `knn`"""
    t: int
    """Diffusion time of the latents. 0: clean."""
    layer: int
    """0 for the embedding, i for the output of block i."""
    random: bool
    """True for the model before its first training step."""
    correct: int
    total: int
    accuracy: float
    low: float
    """Lower end of the 95% interval of the accuracy by Wilson's score. `high` is the upper one."""
    high: float
    recorded: bool = False
    """True if the run's records for MLflow have it."""

    @property
    def place(self) -> Place:
        """The probe that was measured."""
        return self.kind, self.t, self.layer, self.random
