"""Text is UTF-8 whatever the locale says, and a user needs neither a name nor a home."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from causalfusion_platform.cli.main import main
from causalfusion_platform.storage.home import expanded, ray_token_file

VERBS = (
    ["--help"],
    ["--version"],
    ["config", "list"],
    ["config", "show", "quickstart", "description=γ sweep", "data.path=müller/x"],
    ["config", "explain", "objective.ar_decay"],
    ["models"],
    ["data", "digits", "müller/digits"],
    ["data", "verify", "müller/digits"],
    ["runs", "list", "--runs", "müller"],
    ["train", "sweeps/gamma", "--dry-run"],
)
WRONG = ["config", "show", "γ"]
_PROCESSES = ("run", "Popen", "call", "check_call", "check_output")
"""Functions of `subprocess`, whose `text=True` reads output in the locale's encoding."""


def nobody(_: int) -> None:
    """Stand for `pwd.getpwuid` of a user id without a name, as in many containers."""
    raise KeyError("getpwuid(): uid not found")


@pytest.fixture
def without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)


def run_with(monkeypatch: pytest.MonkeyPatch, encoding: str, arguments: list[str]) -> tuple[int, str, str]:
    """Run a command whose output has an encoding. Return its status and what it wrote."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["causalfusion", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    status: object = 0
    try:
        main()
    except SystemExit as end:
        status = end.code or 0
    assert isinstance(status, int)
    for stream in streams.values():
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams.values())
    return status, out, err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_that_cannot_be_encoded(
    monkeypatch: pytest.MonkeyPatch, without_a_name: None, own_folder: Path, encoding: str
) -> None:
    """A character is shown as its number, as Python does in errors."""
    shown = ""
    for arguments in VERBS:
        status, out, err = run_with(monkeypatch, encoding, arguments)
        assert (status, err) == (0, ""), arguments
        shown += out
    assert "description: \\u03b3 sweep" in shown
    assert ("data:\n  path: " in shown) and ("müller/x" if encoding == "cp1252" else "m\\xfcller/x") in shown
    assert (own_folder / "müller/digits/_manifest.json").is_file()
    status, out, err = run_with(monkeypatch, encoding, WRONG)
    assert (status, out) == (2, "")
    assert err.startswith("error: no experiment '\\u03b3'")
    assert Path(os.environ["HOME"]).stat().st_mode & 0o777 == 0o700


def test_a_locale_without_utf_8(tmp_path: Path) -> None:
    """Names of files would be ASCII. Python starts again with UTF-8, and warns of text files without it."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "TMPDIR", "HOME") if name in os.environ}
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    options = ["-X", "warn_default_encoding", "-W", "default::EncodingWarning"]
    done = subprocess.run(
        [sys.executable, *options, "-m", "causalfusion_platform", "data", "digits", "müller/digits"],
        capture_output=True,
        cwd=tmp_path,
        env={**kept, **locale},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1797 latents" in done.stdout.decode()
    assert "müller/digits/_manifest.json" in done.stdout.decode()
    assert (tmp_path / "müller/digits/_manifest.json").is_file()
    assert not re.findall(rb"causalfusion.*EncodingWarning", done.stderr)


def text_files_without_encoding(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of calls that would read or write text in the locale's encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if given.keys() & {"encoding", "force_zip64"}:  # files inside archives are bytes
            continue
        modes = [
            argument.value
            for argument in (*call.args, *given.values())
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
        is_text = name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
        is_text |= name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile") and any(
            set(mode) <= set("rwax+t") for mode in modes
        )
        is_text |= name in _PROCESSES and bool(given.keys() & {"text", "universal_newlines"})
        if is_text:
            yield call.lineno


def test_every_text_file_has_an_encoding(repository: Path) -> None:
    found = [
        f"{file.relative_to(repository)}:{line}"
        for root in ("platform", "models")
        for file in sorted((repository / root).rglob("*.py"))
        for line in text_files_without_encoding(ast.parse(file.read_bytes()))
    ]
    assert found == []


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, without_a_name: None) -> None:
    """Python's own Path.home and expanduser raise there."""
    assert expanded("~/x") == Path("~/x")
    assert expanded("~no-such-user/x") == Path("~no-such-user/x")
    monkeypatch.setenv("HOME", "/home/me")
    assert ray_token_file() == Path("/home/me/.ray/auth_token")
