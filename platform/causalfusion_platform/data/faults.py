"""Kinds of faults of images, and the actions for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..config.errors import UserError

Action = Literal["convert", "keep", "skip", "stop"]
Policies = Mapping[str, Action]

_HELP = "\n  causalfusion data encode --help"


class FaultKind(NamedTuple):
    """One kind of fault of an image."""

    name: str
    """Name in settings (`cmyk=skip`) and reports."""
    allowed: tuple[Action, ...]
    default: Action
    """Action without a setting of the user."""
    meaning: str
    """Description of the fault, and of "convert" and "keep", in one line."""


@dataclass(frozen=True)
class Finding:
    """One fault of one image, and the action taken."""

    kind: str
    """Name in FAULT_KINDS."""
    action: Action
    """Action of the policy for this kind."""
    detail: str
    """Details without memory addresses and paths, so that they are the same on every machine."""


class FaultStop(Exception):
    """A fault whose policy is to stop.

    Attributes:
        key: key of the image.
        finding: its fault.
    """

    def __init__(self, key: str, finding: Finding) -> None:
        super().__init__(key, finding)
        self.key = key
        self.finding = finding

    def __str__(self) -> str:
        return f"{self.key}: {self.finding.kind}: {self.finding.detail}"


_LOST: tuple[Action, ...] = ("skip", "stop")
_CONVERTED: tuple[Action, ...] = ("convert", "skip", "stop")
_KEPT: tuple[Action, ...] = ("convert", "keep", "skip", "stop")

_KINDS = (
    # Undecodable.
    FaultKind("unreadable", _LOST, "stop", "the storage failed to give the file"),
    FaultKind("missing", _LOST, "stop", "there is a label for an image that is not there"),
    FaultKind("unlabelled", _LOST, "stop", "there is no label for the image"),
    FaultKind("uncaptioned", _LOST, "stop", "the file of captions has none for the image"),
    FaultKind("zero_bytes", _LOST, "skip", "the file is empty"),
    FaultKind("not_image", _LOST, "skip", "no image of a format that is decoded here"),
    FaultKind("truncated", _LOST, "skip", "the file ends before its image does"),
    FaultKind("corrupt", _LOST, "skip", "an image by its header, but it cannot be decoded"),
    FaultKind("huge", _LOST, "skip", "more pixels than --max-pixels, as stored or once enlarged to the crop"),
    FaultKind("deep", _LOST, "skip", "32-bit pixels, whose range is not known"),
    # Decodable.
    FaultKind(
        "wrong_extension", _CONVERTED, "convert", "the extension names another format (convert: decode by content)"
    ),
    FaultKind("animated", _CONVERTED, "convert", "more than one frame or page (convert: the first)"),
    FaultKind("cmyk", _CONVERTED, "convert", "printing colours (convert: to RGB without a colour profile)"),
    FaultKind("gray8", _CONVERTED, "convert", "gray or bilevel (convert: three equal channels)"),
    FaultKind("gray16", _CONVERTED, "convert", "gray of more than 8 bits (convert: scaled to 8 bits)"),
    FaultKind("rgb16", _CONVERTED, "convert", "more than 8 bits a channel (convert: scaled to 8 bits)"),
    FaultKind("palette", _CONVERTED, "convert", "colours from a palette (convert: looked up)"),
    FaultKind(
        "transparency",
        _KEPT,
        "convert",
        "not opaque throughout (convert: laid on white, keep: colours only, as ADM)",
    ),
    FaultKind(
        "exif_rotation",
        _KEPT,
        "convert",
        "to be shown turned or mirrored (convert: upright, keep: as stored, as ADM)",
    ),
    FaultKind(
        "tiny", _CONVERTED, "convert", "a side is shorter than the crop (convert: enlarged bicubically, as ADM)"
    ),
)

FAULT_KINDS = {kind.name: kind for kind in _KINDS}
"""Every kind of fault by its name."""


def parse_policies(settings: Sequence[str]) -> dict[str, Action]:
    """Return the action of every kind: the defaults, changed by settings such as `cmyk=skip`.

    Raises:
        UserError: a setting is not `KIND=ACTION`, names an unknown kind or an action that its kind does not allow,
            or repeats a kind.
    """
    policies = {kind.name: kind.default for kind in FAULT_KINDS.values()}
    given: set[str] = set()
    for setting in settings:
        name, equals, action = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} does not say what to do about a fault; write KIND=ACTION{_HELP}")
        if name not in FAULT_KINDS:
            raise UserError(f"no fault {name!r} in {setting!r}; allowed: {', '.join(sorted(FAULT_KINDS))}{_HELP}")
        if name in given:
            raise UserError(f"{name} is given twice, the second time as {setting!r}; give it once{_HELP}")
        allowed = FAULT_KINDS[name].allowed
        if action not in allowed:
            raise UserError(f"no action {action!r} in {setting!r}; allowed for {name}: {', '.join(allowed)}{_HELP}")
        policies[name] = action
        given.add(name)
    return policies
