"""Find the extractor that a configuration or a command names."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch

from ..config.errors import UserError
from .extractors.extractor import Extractor
from .extractors.inception_extractor import FID_DIGEST, FID_SPACE, open_inception

_INCEPTION = "inception"
_ALLOWED = (
    "  allowed: inception:PATH, a file of the released Inception weights, or package.module:factory?TEXT, a "
    "function of yours that is called with TEXT (empty without the ?) and the device, and returns an extractor"
)


def open_extractor(spec: str, device: torch.device | str = "cpu") -> Extractor:
    """Return the extractor that `spec` names.

    Args:
        spec: `inception:PATH`, or `package.module:factory?TEXT`, where `?TEXT` may be left out. The latter calls
            `factory(TEXT, device)`, for a DINOv2 or a classifier of the data set.

    Raises:
        UserError: `spec` is neither, the file, module or function is missing, or the result is not an `Extractor`.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or not kind or not rest:
        raise UserError(f"no feature extractor {spec!r}\n{_ALLOWED}")
    if kind == _INCEPTION:
        return open_inception(Path(rest), device)
    name, _, text = rest.partition("?")
    try:
        factory = getattr(importlib.import_module(kind), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"no feature extractor {spec!r}: {error}\n{_ALLOWED}\n  is the module installed, or in the folder that "
            f"you run from? python -c 'import {kind}'"
        ) from error
    extractor = factory(text, torch.device(device))
    _check(extractor, spec)
    found: Extractor = extractor
    return found


def _check(extractor: Any, spec: str) -> None:
    missing = [
        name for name in ("space", "digest", "device", "judges_classes", "features") if not hasattr(extractor, name)
    ]
    if missing:
        raise UserError(
            f"{spec!r} returned a {type(extractor).__name__} without {', '.join(missing)}; "
            f"causalfusion_platform.evaluation.extractors.extractor.Extractor says what an extractor has"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", extractor.space):
        raise UserError(
            f"{spec!r} names its space {extractor.space!r}; allowed: a lower-case letter, then those, digits and "
            f"underscores, since it becomes part of the metrics' names"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", extractor.digest):
        raise UserError(
            f"{spec!r} gives {extractor.digest!r} for the SHA-256 of its weights; allowed: 64 hexadecimal digits, "
            f"as hashlib.sha256(…).hexdigest() returns them"
        )
    if extractor.space == FID_SPACE and extractor.digest != FID_DIGEST:
        raise UserError(
            f"{spec!r} names its space {FID_SPACE}, the space of FID, but the SHA-256 of its weights is "
            f"{extractor.digest}, not {FID_DIGEST}; give the space another name"
        )
