"""Checks, before a table is trained, that its rows can be measured. Weeks of GPU time come between."""

from __future__ import annotations

from pathlib import Path

from ...config.errors import UserError
from ...config.paper_table import Row
from ...data.autoencoder.open import open_autoencoder
from ...data.npz import read_arrays
from ...evaluation.open import open_extractor
from ..evaluating.measuring import DIGITS
from .rows import Reproduction, trial_name


def check_measurable(reproduction: Reproduction) -> None:
    """Open the autoencoders, extractor and references that measure the rows asked for.

    Raises:
        UserError: one of them is missing, does not fit, or rows of two image sizes would share a reference.
    """
    sizes: dict[str | None, dict[int, Row]] = {}
    for row in reproduction.rows:
        model = reproduction.experiments[trial_name(row, reproduction.plan.seeds[0])].model
        path = reproduction.vaes.of(row)
        try:
            coder = open_autoencoder(path, model.in_channels)
        except UserError as error:
            raise UserError(f"row {row.file}: {error}\n  for this row alone: --vae {row.file}=PATH") from error
        size, reference = model.input_size * coder.downsampling, reproduction.references.of(row)
        if coder.name != "identity" and (reference is None or reproduction.extractor == DIGITS):
            raise UserError(
                f"row {row.file} trains on latents of {coder.name}, which do not say what real images are like\n"
                f"  add --extractor inception:PATH --reference VIRTUAL_imagenet{size}_labeled.npz"
            )
        known = sizes.setdefault(reference, {})
        known.setdefault(size, row)
        if len(known) > 1:
            (first, one), (second, other) = known.items()
            raise UserError(
                f"row {one.file} has images of {first}×{first}, {other.file} of {second}×{second}: each is to be "
                f"measured against real images of its own size\n  add --reference {other.file}=FILE"
            )
    if reproduction.extractor != DIGITS:
        open_extractor(reproduction.extractor, "cpu")
    for reference in sizes:
        if reference is not None:
            read_arrays(Path(reference))
