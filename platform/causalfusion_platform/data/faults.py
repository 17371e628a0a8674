"""Kinds of faults of images, and the actions for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..config.errors import UserError

Action = Literal["convert", "keep", "skip", "stop"]
Policies = Mapping[str, Action]

_HELP = "\n  causalfusion data encode --help"


@dataclass(frozen=True, kw_only=True)
class FaultKind:
    """One kind of fault of an image."""

    name: str
    """Name in settings (`cmyk=skip`) and reports."""
    meaning: str
    """Description of the fault, and of "convert" and "keep", in one line."""
    allowed: tuple[Action, ...]
    """Allowed actions."""
    default: Action
    """Action without a setting of the user."""

    def __post_init__(self) -> None:
        if self.default not in self.allowed:
            raise ValueError(f"{self.name}: the default {self.default!r} is not one of {self.allowed}")


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

_TABLE: tuple[tuple[str, tuple[Action, ...], Action, str], ...] = (
    # Undecodable.
    ("unreadable", _LOST, "stop", "the storage failed to give the file"),
    ("missing", _LOST, "stop", "there is a label for an image that is not there"),
    ("unlabelled", _LOST, "stop", "there is no label for the image"),
    ("zero_bytes", _LOST, "skip", "the file is empty"),
    ("not_image", _LOST, "skip", "no image of a format that is decoded here"),
    ("truncated", _LOST, "skip", "the file ends before its image does"),
    ("corrupt", _LOST, "skip", "an image by its header, but it cannot be decoded"),
    ("huge", _LOST, "skip", "more pixels than --max-pixels, as stored or once enlarged to the crop"),
    ("deep", _LOST, "skip", "32-bit pixels, whose range is not known"),
    # Decodable.
    ("wrong_extension", _CONVERTED, "convert", "the extension names another format (convert: decode by content)"),
    ("animated", _CONVERTED, "convert", "more than one frame or page (convert: the first)"),
    ("cmyk", _CONVERTED, "convert", "printing colours (convert: to RGB without a colour profile)"),
    ("gray8", _CONVERTED, "convert", "gray or bilevel (convert: three equal channels)"),
    ("gray16", _CONVERTED, "convert", "gray of more than 8 bits (convert: scaled to 8 bits)"),
    ("rgb16", _CONVERTED, "convert", "more than 8 bits a channel (convert: scaled to 8 bits)"),
    ("palette", _CONVERTED, "convert", "colours from a palette (convert: looked up)"),
    (
        "transparency",
        _KEPT,
        "convert",
        "not opaque throughout (convert: laid on white, keep: colours only, as ADM)",
    ),
    (
        "exif_rotation",
        _KEPT,
        "convert",
        "to be shown turned or mirrored (convert: upright, keep: as stored, as ADM)",
    ),
    ("tiny", _CONVERTED, "convert", "a side is shorter than the crop (convert: enlarged bicubically, as ADM)"),
)

FAULT_KINDS: dict[str, FaultKind] = {
    name: FaultKind(name=name, meaning=meaning, allowed=allowed, default=default)
    for name, allowed, default, meaning in _TABLE
}
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
