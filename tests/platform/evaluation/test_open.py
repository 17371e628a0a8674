"""Extractors by name: the Inception file, or a function of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.platform.evaluation.tiny_extractor import TinyExtractor

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.evaluation.extractors.inception_extractor import (
    FID_DIGEST,
    FID_SPACE,
    InceptionExtractor,
)
from causalfusion_platform.evaluation.open import open_extractor

PLUG_IN = """
from tests.platform.evaluation.tiny_extractor import TinyExtractor

def make(text, device):
    return TinyExtractor(space=text or "mine", device=device)

def named(text, device):
    space, digest = text.split(",")
    return TinyExtractor(space=space, digest=digest)

def half(text, device):
    return object()
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with extractors, which can be imported."""
    (tmp_path / "my_spaces.py").write_text(PLUG_IN)
    (tmp_path / "broken_spaces.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "my_spaces"


def test_a_file_of_weights(inception_file: Path) -> None:
    extractor = open_extractor(f"inception:{inception_file}")
    assert isinstance(extractor, InceptionExtractor)
    assert extractor.device == torch.device("cpu")


def test_a_function_of_ones_own(plug_in: str) -> None:
    plain, named = open_extractor(f"{plug_in}:make"), open_extractor(f"{plug_in}:make?dino_v2", "meta")
    assert isinstance(plain, TinyExtractor)
    assert (plain.space, plain.device.type) == ("mine", "cpu")
    assert (named.space, named.device.type) == ("dino_v2", "meta")


@pytest.mark.parametrize("spec", ["", "inception", "inception:", ":make", "digits"])
def test_no_extractor(spec: str) -> None:
    with pytest.raises(UserError, match="no feature extractor") as caught:
        open_extractor(spec)
    assert repr(spec) in str(caught.value)
    assert "allowed: inception:PATH" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("no_such_package.spaces:make", "No module named 'no_such_package'"),
        ("my_spaces:nothing", "has no attribute 'nothing'"),
        ("broken_spaces:make", "no_such_module_at_all"),
    ],
)
def test_what_cannot_be_found(plug_in: str, spec: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        open_extractor(spec)
    assert f"python -c 'import {spec.partition(':')[0]}'" in str(caught.value)


@pytest.mark.parametrize("space", ["DINO", "my space", "1st", "", "a-b", "a/b"])
def test_spaces_become_parts_of_metric_names(plug_in: str, space: str) -> None:
    with pytest.raises(UserError, match="names its space"):
        open_extractor(f"{plug_in}:named?{space},{'0' * 64}")


@pytest.mark.parametrize("digest", ["", "unknown", "0" * 63, "G" * 64])
def test_weights_are_recorded(plug_in: str, digest: str) -> None:
    with pytest.raises(UserError, match="for the SHA-256 of its weights; allowed: 64 hexadecimal digits"):
        open_extractor(f"{plug_in}:named?mine,{digest or ' '}")


def test_the_space_of_fid_is_taken(plug_in: str) -> None:
    with pytest.raises(UserError, match="the space of FID, but the SHA-256 of its weights is 000000"):
        open_extractor(f"{plug_in}:named?{FID_SPACE},{'0' * 64}")
    assert open_extractor(f"{plug_in}:named?{FID_SPACE},{FID_DIGEST}").space == FID_SPACE


def test_what_is_no_extractor(plug_in: str) -> None:
    with pytest.raises(
        UserError, match="returned a object without space, digest, device, judges_classes, features"
    ):
        open_extractor(f"{plug_in}:half")
