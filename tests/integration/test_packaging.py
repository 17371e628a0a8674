"""What a user installs: the wheel outside the repository, without torchvision, beside Python's own `platform`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import ray
from tests.conftest import run_environment

TEMPLATES = "platform/causalfusion_platform/report/templates"

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
sys.modules["torchvision"] = None  # any import of it raises ImportError
import causalfusion, causalfusion_platform
names = [
    module.name
    for package in (causalfusion, causalfusion_platform)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith("__main__")
]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_platform_is_pythons_own(repository: Path) -> None:
    """Neither source root is a package; a platform/__init__.py would break all that runs from the root."""
    assert not (repository / "platform" / "__init__.py").exists()
    assert not (repository / "models" / "__init__.py").exists()
    import platform

    assert platform.__file__ is not None
    assert Path(platform.__file__).is_relative_to(sys.base_prefix)
    found = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.python_version())"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == platform.python_version()


@pytest.mark.ray
def test_platform_is_pythons_own_in_a_ray_worker(repository: Path, tmp_path: Path, ray_cluster: None) -> None:
    """Also in a worker whose working_dir holds a platform/ folder, as a submitted checkout does."""
    package = tmp_path / "checkout.zip"
    with zipfile.ZipFile(package, "w") as archive:
        for root in ("platform", "models"):
            for file in (repository / root).rglob("*.py"):
                # Ray drops the top folder of an archive.
                archive.write(file, Path("checkout") / file.relative_to(repository))

    @ray.remote(num_cpus=0, runtime_env={"working_dir": package.as_uri()})
    def where() -> tuple[str, bool, str]:
        import platform

        return str(platform.__file__), Path("platform").is_dir(), platform.python_version()

    file, folder_is_there, version = ray.get(where.remote())
    assert folder_is_there
    assert Path(file).is_relative_to(sys.base_prefix)
    assert version.startswith("3.")


def test_everything_imports_without_torchvision(repository: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING],
        cwd=repository,
        env=run_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert int(found.stdout) > 50


def test_wheel_works_outside_the_repository(repository: Path, tmp_path: Path) -> None:
    """Built from the tree and unpacked elsewhere, the wheel finds its experiments and runs."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path),
            str(repository),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    assert "causalfusion_platform/_experiments/quickstart.yaml" in names
    templates = {path.name for path in (repository / TEMPLATES).iterdir()}
    assert {f"causalfusion_platform/report/templates/{name}" for name in templates} <= set(names)
    assert not any(name.startswith(("platform/", "models/", "tests/")) for name in names)
    # -P and PYTHONPATH: the unpacked wheel comes before the editable install, and the repository is not the cwd.
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "causalfusion_platform", "config", "show", "quickstart"],
        cwd=tmp_path,
        env=run_environment(PYTHONPATH=str(installed)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "name: quickstart" in shown.stdout
    assert f"{tmp_path}/shards/digits" in shown.stdout
