"""The name of the user, given and of the system."""

from __future__ import annotations

import getpass

import pytest

from causalfusion_platform.config.user import user_name


def test_the_environment_wins() -> None:
    assert user_name({"CAUSALFUSION_USER": " anna "}) == "anna"
    assert user_name({"CAUSALFUSION_USER": ""}) == getpass.getuser()


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert user_name({}) == "uid-1000"
