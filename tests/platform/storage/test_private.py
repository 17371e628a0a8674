"""A folder for one user alone, and what others may have put in its place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from causalfusion_platform.storage.private import make_private


def test_only_its_user_can_enter_it(tmp_path: Path) -> None:
    folder = make_private(tmp_path / "new/private")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "file").touch()
    assert make_private(folder) == folder
    assert (folder / "file").is_file()


def test_a_folder_that_others_could_enter_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    make_private(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_what_another_user_has_put_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="it is a link"):
        make_private(tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PermissionError, match="it is a link"):
        make_private(tmp_path / "dangling")
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="it is a file"):
        make_private(tmp_path / "file")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(PermissionError, match=f"it belongs to user {user}"):
        make_private(tmp_path / "elsewhere")
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) != 0o700
    assert not (tmp_path / "nowhere").exists()
