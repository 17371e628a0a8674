"""Ray's private API stays in one module, and all of Ray that the platform names is there and public."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.tune
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR, get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.util.annotations import AnnotationType

from causalfusion_platform import ray_private

ROOT = Path(ray_private.__file__).parents[2]
OTHERS = [path for path in sorted(Path(ray_private.__file__).parent.rglob("*.py")) if path.name != "ray_private.py"]
# Methods and attributes of Ray's objects, which the names of modules do not show.
MEMBERS = {
    "iter_internal_ref_bundles",
    "execution_options",
    "target_max_block_size",
    "controller_failure_limit",
    "health_check_failure",
    "_base_exc",
    "_get_new_config",
    "_hyperparam_bounds",
    "on_trial_result",
    "_temp_dir",
    "_system_config",
    "_actor_id",
}
# Tune's public Callback has a method of the same name as its schedulers.
PUBLIC = {("launch/sweeping/progress.py", "on_trial_result")}


def names_of_ray(tree: ast.Module) -> dict[str, str]:
    """Return what names of a module stand for in Ray: `tune` → ray.tune."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "ray":
                    names[alias.asname or "ray"] = alias.name if alias.asname else "ray"
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "ray":
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return front and f"{front}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def used_of_ray(tree: ast.Module) -> Iterator[str]:
    """Yield every dotted name of Ray that a module imports or uses."""
    names = names_of_ray(tree)
    yield from names.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "ray")
        text = dotted(node) if isinstance(node, ast.Attribute) else None
        if text and text.partition(".")[0] in names:
            first, _, rest = text.partition(".")
            yield f"{names[first]}.{rest}"


def resolve(name: str) -> Any:
    """Return the object of a dotted name; parts may be modules that nobody has imported yet."""
    found: Any = ray
    for index, part in enumerate(parts := name.split("."), start=1):
        if index == 1:
            continue
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part)
    return found


def members_used(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"ray\._\w+|ray\.nodes\b|ray\.cluster_resources\b", node.value)
            yield node.value


def faults_of(text: str, path: str = "x.py") -> list[str]:
    """Return what a module's source uses of Ray's private and developer API."""
    tree = ast.parse(text)
    faults = []
    for name in sorted(set(used_of_ray(tree))):
        if any(part.startswith("_") for part in name.split(".")):
            faults.append(f"{name} is private")
            continue
        try:
            found = resolve(name)
        except (AttributeError, ImportError):
            faults.append(f"{name} is not in Ray {ray.__version__}")
            continue
        # A class inherits the mark of its base: it counts where it stands on the class itself.
        mark = getattr(found, "_annotated_type", None)
        own = getattr(found, "_annotated", None) == getattr(found, "__name__", "")
        if own and mark is AnnotationType.DEVELOPER_API:
            faults.append(f"{name} is a DeveloperAPI")
    for name in sorted(set(members_used(tree))):
        if (name in MEMBERS and (path, name) not in PUBLIC) or name.startswith("ray."):
            faults.append(f"{name} is private")
    return faults


def test_nothing_else_uses_private_parts_of_ray() -> None:
    package = Path(ray_private.__file__).parent
    found = [
        f"{path.relative_to(package)}: {fault}"
        for path in OTHERS
        for fault in faults_of(path.read_text(), str(path.relative_to(package)))
    ]
    assert not found, "move it to ray_private.py:\n" + "\n".join(found)
    assert len(OTHERS) > 100


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nray._private.state.state.get_draining_nodes()",
        "from ray._private import state",
        "import ray._private.worker",
        "from ray.train.v2 import _internal as parts",
        "import ray as r\nr.nodes()",
        "def f():\n    import ray\n    return ray.cluster_resources()",
        "import ray.data\nray.data.DataContext.get_current()",
        "from ray.data import DataContext",
        "from ray import tune\ntune.no_such_function()",
        "import ray\nray.init(_temp_dir='x')",
        "script = 'import ray; ray.nodes()'",
        "for bundle in rows.iter_internal_ref_bundles(): pass",
        "getattr(error, '_base_exc')",
    ],
)
def test_each_way_to_touch_it_is_found(source: str) -> None:
    assert faults_of(source)


def test_public_use_is_no_fault() -> None:
    text = "import ray\nfrom ray import tune\nray.get(ray.put(1))\ntune.report({})\nray.exceptions.RayError"
    assert faults_of(text) == []


def test_it_was_checked_on_the_tested_version() -> None:
    """Upgrade Ray only after reading ray_private.py against the new version."""
    assert f"ray=={ray_private.CHECKED_ON}\n" in (ROOT / "constraints.txt").read_text()


# --- each part, as it is used -----------------------------------------------------------------------------


def test_the_state_of_nodes() -> None:
    assert callable(ray._private.state.state.get_draining_nodes)
    assert callable(ray.nodes)


def test_options_of_a_local_ray(tmp_path: Path) -> None:
    """`ray.init` takes private options by any name that begins with a dash; these are the ones that it knows."""
    source = inspect.getsource(ray.init)
    options = ray_private.local_options(tmp_path, 1)
    assert all(f'"{name}"' in source or name in inspect.signature(ray.init).parameters for name in options)


def test_inner_errors() -> None:
    fault = ValueError("x")
    assert ray_private.inner_errors(UserExceptionWithTraceback(fault, "Traceback …")) == [fault]
    assert ray_private.inner_errors(WorkerHealthCheckFailedError("y", failure=fault)) == [fault]
    assert ray_private.inner_errors(ray.train.WorkerGroupError("z", {1: fault})) == [fault]
    assert ray_private.inner_errors(ray.train.ControllerError(fault)) == [fault]
    assert ray_private.inner_errors(fault) == []


def test_a_single_attempt() -> None:
    config = ray_private.single_attempt()
    assert (config.max_failures, config.controller_failure_limit, config.max_preemption_failures) == (0, 0, 0)


def test_a_trainer_starts_two_actors_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENABLE_PREEMPTION_WATCHER_ENV_VAR, raising=False)
    trainer = ray_private.small_trainer()
    assert get_env_vars_to_propagate()[ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "0"
    usual, ours = (
        [type(callback) for callback in made(lambda: None)._create_default_callbacks()]
        for made in (TorchTrainer, trainer)
    )
    assert [kind for kind in usual if kind not in ours] == [DatasetsCallback]
    assert [kind for kind in usual if kind is not DatasetsCallback] == ours


def test_schedulers_have_the_methods_that_ours_override() -> None:
    """What the overrides do is tested in launch/sweeping/test_schedulers.py."""
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.schedulers.pb2 import PB2

    assert list(inspect.signature(PB2._get_new_config).parameters) == ["self", "trial", "trial_to_clone"]
    made = PB2(metric="score", mode="min", hyperparam_bounds={"rate": [0.0, 1.0]})
    assert made._hyperparam_bounds == {"rate": [0.0, 1.0]}
    assert {"CONTINUE", "PAUSE", "on_trial_result"} <= {*dir(PopulationBasedTraining)}


def test_the_loggers_of_the_client_that_submits_jobs() -> None:
    for name in ray_private.JOB_CLIENT_LOGGERS:
        assert "logging.getLogger(__name__)" in Path(importlib.import_module(name).__file__ or "").read_text()
