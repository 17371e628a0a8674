"""The one recipe that the classifiers of all data sets are trained by, and the name of a data set's classifier."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion import draws

from ...data.manifest import Manifest

CODE_VERSION = 1
"""Version of the code of network and training. It changes whenever the same recipe gives another classifier."""

_HASHES = 2**32


@dataclass(frozen=True)
class ClassifierRecipe:
    """Settings of the training. They do not depend on a run."""

    epochs: int = 12
    """Passes over the data set, if they are not more than `most_images`."""
    most_images: int = 262_144
    """Images after which training ends in any case. Of a larger data set the reference has no more rows either."""
    batch_size: int = 64
    """Rows of an optimizer step, from which those held out are left out."""
    learning_rate: float = 2e-3
    """Highest rate of AdamW. It falls to zero along a cosine."""
    label_smoothing: float = 0.05
    dropout: float = 0.25
    channels: tuple[int, int] = (32, 64)
    """Outputs of the two convolutions."""
    width: int = 64
    """Number of features."""
    held_out: float = 0.2
    """Share of the rows that are held out of training and of the reference."""
    seed: int = 0
    """Seed of the split, of the initial weights, of the order and of dropout."""

    def images(self, rows: int) -> int:
        """Return the rows that training reads of a data set of so many rows."""
        return min(self.epochs * rows, self.most_images)

    def places(self, row_ids: Sequence[int]) -> Tensor:
        """Return the place of rows in a random order, (B,) in [0, 1): a function of the row id alone."""
        hashes = draws.sample_seeds(self.seed, "classifier split", row_ids)
        return torch.tensor(hashes, dtype=torch.float64) / _HASHES

    def is_held_out(self, row_ids: Sequence[int]) -> Tensor:
        """Return which rows are held out: (B,) bool."""
        return self.places(row_ids) < self.held_out

    def identity(self, manifest: Manifest) -> str:
        """Return the SHA-256 over the data's digest, this recipe, and the version of the code."""
        tree = {"data": manifest.digest, "recipe": dataclasses.asdict(self), "code": CODE_VERSION}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


RECIPE = ClassifierRecipe()
