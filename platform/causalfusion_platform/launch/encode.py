"""Encode a source of images into latent shards: the whole of `causalfusion data encode`."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from ray.exceptions import RayError, RayTaskError

from ..config.errors import UserError
from ..data.autoencoder import open_encoder
from ..data.encode.pipeline import run_pipeline
from ..data.encode.plan import EncodeSettings, EncodingPlan, make_plan
from ..data.encode.progress import EncodingProgress
from ..data.encode.records import Fault, ShardRecord, count_faults, finished_shards, write_faults
from ..data.encode.resources import PipelineResources
from ..data.encode.stages import stopped
from ..data.faults import FaultStop
from ..data.layout import CARD_FILE, EARLIER_NAMES, NAMES, names_in
from ..data.manifest import Manifest
from ..data.shards import CLASSIFIER, TOKENIZER, write_manifest
from ..data.sources import Listing, Source
from ..storage.atomic import UNFINISHED_END
from .cluster.failures import user_error_in
from .cluster.growth import wait_for_room
from .cluster.resources import Resources, cluster_resources, encoding_resources
from .cluster.session import ray_session

logger = logging.getLogger(__name__)

# Losses of processes in a row, without a shard finished in between, that end an encoding.
_LOSSES = 3
_ROOM_SECONDS = 300.0
"""Longest wait for nodes of a cluster that can grow, as `supervision.resource_seconds` of a training."""

_NAMES = "|".join(map(re.escape, (*NAMES, *EARLIER_NAMES, CARD_FILE)))
_HALF_WRITTEN = re.compile(rf"\.(shard-\d+.*|plan\.json|{_NAMES}){UNFINISHED_END}")
_OURS = re.compile(
    rf"shard-\d+-of-\d+\.parquet|{_NAMES}|{CLASSIFIER.pattern}|{TOKENIZER.pattern}|{_HALF_WRITTEN.pattern}"
)


@dataclass(frozen=True)
class Encoded:
    """Result of an encoding."""

    listing: Listing
    manifest: Manifest
    faults: list[Fault]
    empty_classes: list[str]
    """Classes without rows."""
    made: int
    """Shards made by this launch. The others were there."""
    seconds: float


def encode_source(
    source: Source,
    vae: str,
    settings: EncodeSettings,
    out: Path,
    *,
    encoders: int | None = None,
    announce: Callable[[Listing, EncodingPlan], None] = lambda *_: None,
    show: Callable[[EncodingProgress], None] = lambda _: None,
) -> Encoded:
    """Encode every image of a source, or those that an earlier call left. The manifest comes last.

    Args:
        vae: autoencoder, as `open_encoder` takes it.
        settings: size, faults, and the layout of shards.
        out: folder of shards, on storage that all nodes share.
        encoders: actors with an autoencoder each. Default: one per GPU, or one for all CPUs.
        announce: called with the list of images and the plan, before anything is written.
        show: called with progress, about twice a second.

    Raises:
        UserError: an argument is wrong, or an image has a fault that stops. Finished shards stay.
    """
    started = time.perf_counter()
    listing, plan = plan_encoding(source, vae, settings, out)
    announce(listing, plan)
    records = records_folder(out)
    with _only_one(out, records):
        plan.begin(records)
        finished = finished_shards(records, out, plan.num_shards)
        missing = [shard for shard in range(plan.num_shards) if shard not in finished]
        if missing:
            _check_space(plan, missing, out)
            (out / names_in(out).manifest).unlink(missing_ok=True)  # shards count only once all of them are there
            if finished:
                logger.info(
                    f"{len(finished)} of {plan.num_shards} shards are finished and whole; {len(missing)} to do"
                )
            with ray_session():
                resources = room_for_encoders(encoders)

                def make(shards: list[int]) -> None:
                    run_pipeline(plan, listing, source.reader(), vae, shards, out, records, resources, show)

                finished = _make_shards(make, plan, missing, out)
        manifest, faults = _finish(plan, listing, finished, out)
    made = sum(finished[shard].shard is not None for shard in missing)
    empty = listing.empty_classes([fault.key for fault in faults if fault.action == "skip"])
    return Encoded(listing, manifest, faults, empty, made, time.perf_counter() - started)


def plan_encoding(source: Source, vae: str, settings: EncodeSettings, out: Path) -> tuple[Listing, EncodingPlan]:
    """List a source, and plan its shards. Nothing is written.

    Raises:
        UserError: an argument is wrong, an image has a fault that stops, or `out` holds something else.
    """
    encoder = open_encoder(vae)
    try:
        listing = source.listing()
    except FaultStop as stop:
        raise stopped(stop) from stop
    plan = make_plan(listing, encoder, settings)
    _check_folder(out)
    plan.is_begun(records_folder(out))
    return listing, plan


def room_for_encoders(encoders: int | None) -> PipelineResources:
    """Divide a cluster between reading and encoding. One that can grow is asked for the nodes that are missing.

    Args:
        encoders: number of encoders. None: as many as the cluster has room for.

    Raises:
        UserError: this number of encoders does not fit.
    """
    one = Resources.of(1, 1 if cluster_resources().gpus else 0)
    return wait_for_room(lambda _: encoding_resources(encoders), [one] * (encoders or 1), _ROOM_SECONDS)


def records_folder(out: Path) -> Path:
    """Return the folder with the plan of an encoding and the records of its shards."""
    return out / names_in(out).records


def _make_shards(
    make: Callable[[list[int]], None], plan: EncodingPlan, missing: list[int], out: Path
) -> dict[int, ShardRecord]:
    """Make the missing shards and return all records.

    The loss of a Ray process is survived, until `_LOSSES` of them came in a row.
    """
    losses = 0
    while True:
        lost: Exception | None = None
        try:
            make(missing)
        except Exception as error:
            fault = user_error_in(error)
            if fault is not None or isinstance(error, RayTaskError) or not isinstance(error, RayError):
                raise (fault or error) from error
            lost = error
        finished = finished_shards(records_folder(out), out, plan.num_shards)
        if lost is None:
            return finished
        left = [shard for shard in missing if shard not in finished]
        losses = 0 if len(left) < len(missing) else losses + 1
        if losses == _LOSSES:
            raise UserError(
                f"processes of the pipeline died {_LOSSES} times without a shard being finished: "
                f"{str(lost).splitlines()[0]}\n"
                f"  often the memory is too small: lower --batch-size or --encoders, in a new folder"
            ) from lost
        missing = left
        logger.warning(
            f"a process of the pipeline was lost ({type(lost).__name__}); going on with {len(missing)} shards"
        )


def _finish(
    plan: EncodingPlan, listing: Listing, finished: dict[int, ShardRecord], out: Path
) -> tuple[Manifest, list[Fault]]:
    records = [finished[shard] for shard in range(plan.num_shards)]
    faults = [
        Fault(key=key, kind=finding.kind, action=finding.action, detail=finding.detail)
        for key, finding in listing.findings
    ]
    faults += [fault for record in records for fault in record.faults]
    path = write_faults(out, faults)
    shards = [record.shard for record in records if record.shard is not None]
    if not shards:
        raise UserError(f"every image of {listing.location} was left out; {path} says why")
    described = plan.description.model_copy(update={"faults": count_faults(faults)})
    manifest = Manifest(
        **described.model_dump(), rows=sum(shard.rows for shard in shards), shards=[dict(shard) for shard in shards]
    )
    write_manifest(manifest, out)
    return manifest, faults


def _check_folder(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file\n  name a new or empty folder")
    strange = [path.name for path in sorted(out.iterdir()) if not _OURS.fullmatch(path.name)]
    if strange or (any(out.iterdir()) and not records_folder(out).is_dir()):
        what = strange[0] if strange else "shards of another kind"
        raise UserError(f"{out} holds {what}: it was not made by this command\n  name a new or empty folder")


def _check_space(plan: EncodingPlan, missing: list[int], out: Path) -> None:
    described = plan.description
    columns = (2 if described.posterior else 1) * (2 if described.flip else 1)
    need = sum(len(plan.items(shard)) for shard in missing) * columns * 2 * math.prod(described.shape)
    free = shutil.disk_usage(out).free
    if need > free:
        raise UserError(
            f"the shards to make take about {need / 2**30:.1f} GiB, but {out} has {free / 2**30:.1f} GiB left\n"
            f"  name a folder on another disk; --no-flip halves them"
        )


@contextmanager
def _only_one(out: Path, records: Path) -> Iterator[None]:
    """Hold the folder for this process, and clear the files that a killed one left half written."""
    records.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            # A file that marks the folder as taken would outlive a killed process. This lock ends with its process.
            stack.enter_context(FileLock(records / "lock", timeout=0, fallback_to_soft=False))
        except Timeout as error:
            raise UserError(
                f"another process is encoding into {out}\n  wait for it, or name another folder"
            ) from error
        for folder in (out, records):
            for path in folder.glob(".*"):
                if _HALF_WRITTEN.fullmatch(path.name):
                    path.unlink()
        yield
