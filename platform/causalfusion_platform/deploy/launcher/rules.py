"""Check files of Ray's cluster launcher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..text_rules import ray_command, written_secrets


def check_launcher(name: str, text: str) -> Iterator[str]:
    """Check a file of Ray's cluster launcher by Ray's own schema and by the rules of this project."""
    import jsonschema
    import ray

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield f"{name}: not YAML: {' '.join(str(error).split())}"
        return
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    wrong = False
    for fault in jsonschema.Draft7Validator(schema).iter_errors(tree):
        wrong = True
        yield f"{name}: {'.'.join(map(str, fault.absolute_path)) or 'file'}: {fault.message:.200}"
    yield from written_secrets(name, text)
    if not wrong:
        yield from _faults(name, tree)


def _faults(name: str, tree: dict[str, Any]) -> Iterator[str]:
    docker = tree.get("docker") or {}
    if "@sha256:" not in str(docker.get("image", "")):
        given = repr(docker.get("image"))
        yield f"{name}: docker.image: {given} is not an image by digest; Ray needs a container of its own"
    options = " ".join(docker.get("run_options") or [])
    if "--privileged" in options or "--cap-add" in options:
        yield f"{name}: docker.run_options: containers have no privileges"
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = tree.get(kind) or []
        if not commands:
            yield f"{name}: {kind}: without it Ray's own commands start without a token"
        for line in commands:
            yield from ray_command(f"{name}: {kind}", line)
    nodes = tree.get("available_node_types") or {}
    for node, settings in nodes.items():
        if settings.get("min_workers", 0) > settings.get("max_workers", tree.get("max_workers", 0)):
            yield f"{name}: available_node_types.{node}: min_workers exceeds max_workers"
    if nodes and tree.get("head_node_type") not in nodes:
        yield f"{name}: head_node_type: {tree.get('head_node_type')!r} is not one of {', '.join(nodes)}"
