"""A command that has to load slow libraries says so first, on stderr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import run_environment

from causalfusion_platform.cli.first_line import first_line


def test_it_is_said_before_the_first_slow_import(own_folder: Path) -> None:
    """Once, and only if there is one. A library that cannot be loaded shows that nothing comes before it."""
    (own_folder / "torch.py").write_text("import os; os.write(2, b'the import begins\\n'); os._exit(9)")
    for arguments, said in (
        (["config", "schema"], ["config schema: loading libraries", "the import begins"]),
        (["config", "list"], []),
        (["models"], ["models: loading libraries", "the import begins"]),
        (["train", "--help"], []),
        (["train"], None),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "causalfusion_platform", *arguments],
            capture_output=True,
            text=True,
            cwd=own_folder,
            env=run_environment(),
        )
        assert "loading" in done.stderr if said else "loading" not in done.stderr
        assert said is None or done.stderr.splitlines() == said, done.stderr


def test_where_the_libraries_are_loaded_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    finders = [*sys.meta_path]
    with first_line(["train", "quickstart"]):
        import torch  # noqa: F401
    assert sys.meta_path == finders
    assert capsys.readouterr() == ("", "")


def test_only_the_verb_is_repeated(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values may be secret."""
    for arguments in (["train", "password=secret"], ["train", "--token=secret", "x"]):
        monkeypatch.delitem(sys.modules, "mlflow", raising=False)
        monkeypatch.setattr(sys, "path", [])
        with first_line(arguments), pytest.raises(ModuleNotFoundError):
            import mlflow  # noqa: F401
        assert capsys.readouterr().err == "train: loading libraries\n"
