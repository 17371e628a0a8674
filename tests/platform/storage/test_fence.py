"""The token of a run's newest launch, and what it forbids."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from causalfusion_platform.storage.atomic import remove_unpublished, replacing, write_atomically
from causalfusion_platform.storage.fence import LaunchFence, LaunchToken, NoFence, Superseded


def begin(run_dir: Path, launch: int) -> LaunchFence:
    token = LaunchToken.new(launch)
    token.write(run_dir)
    return LaunchFence(run_dir, token.id)


def test_only_the_newest_launch_passes(own_folder: Path) -> None:
    assert LaunchToken.read(own_folder) is None
    fences: list[LaunchFence] = []
    for number in (1, 2, 2, 1):  # without a lock two launches may count alike, or one is late
        fences.append(begin(own_folder, number))
        fences[-1].check()
        for old in fences[:-1]:
            with pytest.raises(Superseded) as caught:
                old.check()
            message = str(caught.value)
            assert f"launch {number} has taken run '{own_folder.name}' over" in message
            assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in message
    NoFence().check()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"launch": 1}'])
def test_not_known_is_neither_yes_nor_no(own_folder: Path, content: bytes | None) -> None:
    fence = begin(own_folder, 1)
    file = own_folder / "launch.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OSError, match=r"launch\.json"):
        fence.check()


def test_the_file_is_opened_anew_at_each_check(own_folder: Path) -> None:
    """NFS shows another host's content to those who open the file after it was closed there."""
    fence = begin(own_folder, 1)
    fence.check()
    other = LaunchToken.new(2)
    (own_folder / "launch.json").write_text(other.model_dump_json())  # in place: neither a new inode nor a rename
    with pytest.raises(Superseded):
        fence.check()


def test_a_refused_replacement_leaves_the_old_file(own_folder: Path) -> None:
    write_atomically(own_folder / "run.json", b"old")
    fence = begin(own_folder, 1)
    begin(own_folder, 2)
    with pytest.raises(Superseded):
        write_atomically(own_folder / "run.json", b"new", check=fence.check)
    assert (own_folder / "run.json").read_bytes() == b"old"
    assert sorted(path.name for path in own_folder.iterdir()) == ["launch.json", "run.json"]


def test_a_replacement_that_was_removed_before_it_was_made(own_folder: Path) -> None:
    """The newer launch removes the new file between the check and the rename."""
    path = own_folder / "run.json"
    write_atomically(path, b"old")
    others = [own_folder / name for name in (".other.json.ab.1", ".run.json", "run.json.1")]
    for other in others:
        other.touch()
    with pytest.raises(FileNotFoundError), replacing(path, check=lambda: remove_unpublished(path)) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert all(other.exists() for other in others)
