"""The name of the user who submits a job, given and of the system."""

from __future__ import annotations

import getpass

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.owner import current_user, user_name


def test_the_environment_wins() -> None:
    assert user_name({"CAUSALFUSION_USER": "anna--b"}) == "anna--b"
    with pytest.raises(UserError, match="not a DNS label"):
        user_name({"CAUSALFUSION_USER": "Anna Smith"})


@pytest.mark.parametrize(
    ("system", "name"),
    [("anna", "anna"), ("Anna.Smith", "anna-smith"), ("EXAMPLE\\ben_2", "example-ben-2"), ("7up", "user-7up")],
)
def test_the_owner_of_a_job_is_one_that_runs_accept(
    monkeypatch: pytest.MonkeyPatch, system: str, name: str
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: system)
    assert user_name({}) == name
    assert current_user({"CAUSALFUSION_USER": user_name({})}) == name


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert user_name({}) == "uid-1000"
