"""Check at the start that the nodes of a cluster see the folders of a run as the driver sees them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.errors import NotNow
from ...config.schema import Experiment
from ...data.layout import manifest_path
from ...ray_private import ClusterNode, alive_nodes
from ...storage.atomic import naming
from .failures import first_line
from .resources import Resources, training_resources

logger = logging.getLogger(__name__)

MARK = ".seen-"
"""Beginning of the name of the file that nodes look for. Its end differs each time: NFS remembers absent names."""
_APPEAR_SECONDS = 5.0
"""Longest wait of a node for a file. NFS may show a new one late."""
_ANSWER_SECONDS = 60.0
"""Longest wait for the answers. Nodes start a process for it, which takes seconds on a busy one."""
_MOST_NAMED = 8


@dataclass(frozen=True)
class Proof:
    """A file that a node has to see."""

    name: str
    """Its folder, for messages."""
    file: Path
    sha256: str
    remedy: str


def check_shared_folders(experiment: Experiment, run_dir: Path | None) -> None:
    """Check that every other node which may get a worker sees the run's folder, and its shards.

    A file is made in the folder for it, and removed. Nodes that read data see the shards alone. Nothing is done on
    a Ray of one node.

    Args:
        experiment: gives the shards, and the resources of a worker.
        run_dir: the run's folder. None: workers do not need it.

    Raises:
        UserError: some nodes do not. The message names them.
    """
    worker, reader = training_resources(experiment)
    others = _other_nodes()
    at_work = [node for node in others if _offers(node, worker)]
    reading = [node for node in others if node not in at_work and _offers(node, reader)]
    if not at_work and not reading:
        return
    data = _proofs_of_data(experiment)
    with contextlib.nullcontext(None) if run_dir is None else _marked(run_dir) as mark:
        seen = [mark, *data] if mark else data
        asked = [(node, seen) for node in at_work] + [(node, data) for node in reading]
        answers = _ask([(node, proofs) for node, proofs in asked if proofs])
    faults: dict[Proof, list[str]] = defaultdict(list)
    for node, proofs, found in answers:
        for proof, fault in zip(proofs, found, strict=True):
            if fault is not None:
                faults[proof].append(f"{node.host} ({node.address}): {fault}")
    for proof, named in faults.items():
        raise NotNow(_message(proof, named))


def look(files: Sequence[tuple[str, str]], seconds: float = _APPEAR_SECONDS) -> list[str | None]:
    """Return the fault of each (path, SHA-256) on this node, or None where the file is there and the same.

    Args:
        files: those to look for.
        seconds: longest wait for one of them.
    """
    end = time.monotonic() + seconds
    while True:
        faults = [_fault_of(Path(path), sha256) for path, sha256 in files]
        if not any(faults) or time.monotonic() >= end:
            return faults
        time.sleep(0.25)


def _fault_of(path: Path, sha256: str) -> str | None:
    try:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError as error:
        return f"{path.name}: {error.strerror}" if path.parent.is_dir() else "the folder is not there"
    return None if same else f"{path.name} is another file there"


def _other_nodes() -> list[ClusterNode]:
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node for node in alive_nodes() if node.id != here]


def _offers(node: ClusterNode, wanted: Resources) -> bool:
    have = Resources.of(node.resources.get("CPU", 0.0), node.resources.get("GPU", 0.0))
    return have.fits(wanted) > 0


def _proofs_of_data(experiment: Experiment) -> list[Proof]:
    data, proofs = experiment.data, []
    for key, folder in (("data.path", data.path), ("data.validation", data.validation)):
        if folder is None or not isinstance(folder, Path):  # object storage is the same everywhere
            continue
        manifest = manifest_path(folder.absolute())
        with contextlib.suppress(OSError):  # the check of the data says so
            remedy = f"copy the shards to the same path on every node, or name a folder that all mount with {key}=…"
            digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
            proofs.append(Proof(f"shards of {key}: {manifest.parent}", manifest, digest, remedy))
    return proofs


@contextlib.contextmanager
def _marked(run_dir: Path) -> Iterator[Proof]:
    content = secrets.token_hex(16).encode()
    file = run_dir.absolute() / f"{MARK}{secrets.token_hex(8)}"
    try:
        with naming(file):
            file.write_bytes(content)
        remedy = (
            "set CAUSALFUSION_HOME or runs=… to a folder that every node mounts, or use runs=s3://BUCKET/PREFIX"
        )
        yield Proof(f"folder of the run: {file.parent}", file, hashlib.sha256(content).hexdigest(), remedy)
    finally:
        file.unlink(missing_ok=True)


Asked = tuple[ClusterNode, list[Proof]]
Answer = tuple[ClusterNode, list[Proof], list[str | None]]


def _ask(asked: Sequence[Asked]) -> list[Answer]:
    """Return the answers of the nodes. One that is lost or too busy to answer is passed over, with a warning."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    calls: dict[Any, Asked] = {}
    for node, proofs in asked:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
        calls[task.remote([(str(proof.file), proof.sha256) for proof in proofs])] = node, proofs
    ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=_ANSWER_SECONDS)
    answers = []
    for call in ready:
        node, proofs = calls[call]
        try:
            answers.append((node, proofs, ray.get(call)))
        except ray.exceptions.RayTaskError as error:
            raise NotNow(
                f"node {node.host} ({node.address}) cannot run this program: {first_line(error.cause)}\n"
                f"  install the same version in the same Python on every node, then give the same command"
            ) from error
        except ray.exceptions.RayError as error:
            logger.warning(f"node {node.host} ({node.address}) was not asked for its folders: {first_line(error)}")
    for call in late:
        node, _ = calls[call]
        ray.cancel(call, force=True)
        logger.warning(
            f"node {node.host} ({node.address}) does not answer within {_ANSWER_SECONDS:.0f} s: it is not known if "
            f"it sees the run's folder"
        )
    return answers


def _message(proof: Proof, named: Sequence[str]) -> str:
    more = f"\n  and {len(named) - _MOST_NAMED} more nodes" if len(named) > _MOST_NAMED else ""
    listed = "".join(f"\n  {line}" for line in named[:_MOST_NAMED]) + more
    nodes = "1 node does" if len(named) == 1 else f"{len(named)} nodes do"
    return f"{nodes} not see the {proof.name}{listed}\n  {proof.remedy}; then give the same command"
