"""The folder of one run: one object that knows its paths, its state, its journal and its lock."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from ...config.commands import command
from ...config.compose import Composed, flatten, recorded_tree, validate
from ...config.errors import UserError
from ...config.owner import current_user
from ...config.schema import Experiment, TrackingConfig
from ...config.secrets import with_variables
from ...data.manifest import AutoencoderId, Manifest
from ...data.validate import CheckedShards
from ...storage.atomic import remove_unfinished, remove_unpublished, write_atomically
from ...storage.fence import Fence, Fences, LaunchFence, LaunchToken, NoFence
from ...storage.json_file import first_fault, read_object
from ...storage.objects import ObjectUrl
from ...storage.run_layout import ARTIFACTS_FOLDER, RunPaths
from ...tracking.delivery import Delivery
from ...tracking.journal import Journal
from ...tracking.lineage import job_tags, lineage_tags
from ...tracking.mlflow import parentage
from ...tracking.outbox import Outbox
from ...tracking.pages import NOTE
from ...tracking.pending import Pending
from ...tracking.records import Create
from .lock import Turn, UnderWay
from .moved import is_another_run, is_elsewhere, state_here, summary_here, written_in
from .public_config import public_config, write_config
from .state import RunState, check_same_config
from .storage import storage_of

logger = logging.getLogger(__name__)

_FOLDER_TAG = "run.dir"


class _Summary(BaseModel):
    """Types of the keys of summary.json that every task writes. Versions differ in which ones are there."""

    name: str = ""
    run_dir: str = ""
    images_seen: int = 0
    images_per_second: float = 0.0
    total_seconds: float = 0.0
    stage_seconds: dict[str, float] = {}
    mlflow_run_id: str | None = None


class RunFolder(RunPaths):
    """The folder of a run, opened once by whoever works with it.

    The state is read when it is first asked for, and kept. Another process may change it meanwhile: `lock` reads it
    again once the lock is held.

    Args:
        root: the folder on this machine.
        url: address of a run on object storage, of which the folder is a copy. None: the folder is all there is.
    """

    def __init__(self, root: Path, url: ObjectUrl | None = None) -> None:
        super().__init__(root)
        self.url, self.storage = url, storage_of(root, url)
        self._keeping = threading.Lock()
        self._was_read = False
        self._state: RunState | None = None
        self._experiment: Experiment | None = None
        self._elsewhere: RunState | None = None
        self.launch_id = ""
        """Tells the launch that this object has begun from all others. Empty: it has begun none."""

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """Return the folder of an experiment's run."""
        return cls(experiment.run_dir, experiment.run_url)

    @property
    def state(self) -> RunState | None:
        """State of the run in its run.json, or None if it was never started.

        Raises:
            UserError: the state file is damaged.
        """
        if self._was_read:
            return self._state
        self.storage.look()
        return self.refresh()

    @property
    def started(self) -> RunState:
        """State of a run that was started.

        Raises:
            UserError: it was not started, or the state file is damaged.
        """
        if self.state is None:
            raise UserError(f"{self.root} is no folder of a run\n  list them: causalfusion runs list")
        return self.state

    @property
    def finished(self) -> bool:
        """True if the run has trained to its end."""
        return self.state is not None and self.state.finished

    @property
    def experiment(self) -> Experiment | None:
        """The experiment that the run was started with, or None if it was never started.

        Raises:
            UserError: another version wrote it, with other keys.
        """
        if self._experiment is None and self.state is not None:
            self._experiment = validate(self.state.config, self.name)
        return self._experiment

    @property
    def autoencoder(self) -> AutoencoderId | None:
        """The autoencoder that made the latents of training. None: not known, or the run was never started."""
        if self.state is None or self.experiment is None:
            return None
        if self.state.autoencoder is not None:
            return self.state.autoencoder
        with suppress(UserError):  # an earlier version began the run: its shards say so if they are still there
            return Manifest.read(self.experiment.data.path).autoencoder
        return None

    @property
    def journal(self) -> Journal:
        """The events of all launches."""
        return Journal(self.root, self.fence)

    @property
    def outbox(self) -> Outbox:
        """Takes records for MLflow."""
        return Outbox(self.root, self.fence)

    @property
    def fence(self) -> Fence:
        """Fence of the launch that this object has begun, if it has. Nobody else's writes are fenced."""
        if not self.launch_id:
            return NoFence()
        return Fences(LaunchFence(self.root, self.launch_id), self.storage.fence)

    def delivery(self) -> Delivery:
        """Return the delivery of the run's records to MLflow. The run's lock must be held."""
        state = self.started
        tracking = state.config.get("tracking")
        known = tracking.get("experiment") if isinstance(tracking, dict) else None
        return Delivery(
            self.root,
            state.address,
            run_id=state.mlflow_run_id,
            on_run_id=lambda run_id: self.keep(mlflow_run_id=run_id),
            identity=state.identity,
            fence=self.fence,
            lost=Create(
                key="",
                experiment=known if isinstance(known, str) else TrackingConfig().experiment,
                name=self.name,
                parent=None,
                artifacts=self.root.absolute().parent / ARTIFACTS_FOLDER,
            ),
        )

    def refresh(self) -> RunState | None:
        """Read the state again and return it."""
        written = RunState.read(self.root)
        self._state = None if written is None else state_here(written, self.root)
        self._elsewhere = written if written is not None and is_elsewhere(written, self.root) else None
        self._experiment, self._was_read = None, True
        return self._state

    def keep(self, **changes: Any) -> None:
        """Change the state, here and on disk.

        Raises:
            Superseded: another launch has taken the run over.
        """
        with self._keeping:  # threads that deliver records keep what MLflow answers
            self._write(self.started.model_copy(update=changes))

    def _write(self, state: RunState) -> RunState:
        state = state.model_copy(update={"folder": str(self.root.absolute())})
        state.write(self.root, self.fence)
        self._state, self._was_read = state, True
        self.storage.changed()
        return state

    def is_under_way(self) -> bool:
        """Say whether a process holds the run's lock."""
        return self.storage.is_under_way()

    def refuse_if_under_way(self) -> None:
        """Check that no launch of the run is under way.

        Raises:
            UnderWay: one is.
        """
        self.storage.refuse_if_under_way()

    @contextmanager
    def lock(self, wait_seconds: float | None = None, turn: Turn | None = None) -> Iterator[None]:
        """Hold the run's lock. The state is read again once the lock is taken.

        Args:
            wait_seconds: longest silent wait for another process that holds it. Default: for one that only asks.
            turn: wait for another launch beyond that.

        Raises:
            UnderWay: another process holds it.
        """
        with ExitStack() as stack:
            self._take(stack, wait_seconds, turn)
            for folder in (self.root, self.outbox_folder, self.members, self.evaluation):
                remove_unfinished(folder)
            self.refresh()
            self._settle()
            yield

    def _take(self, stack: ExitStack, wait_seconds: float | None, turn: Turn | None) -> None:
        while True:
            try:
                return stack.enter_context(self.storage.held(wait_seconds))
            except UnderWay as error:
                if turn is None:
                    raise
                turn.hold_back(error)

    def settle(self) -> None:
        """Keep the addresses of a run that was moved or copied, unless a process holds its lock and has done it.

        A copy gets a run of its own at MLflow. Its journal is delivered from the beginning.
        """
        if self.state is not None and self._elsewhere is not None:
            with suppress(UnderWay), self.lock():
                pass
            self.refresh()

    def _settle(self) -> None:
        written, state = self._elsewhere, self.state
        if written is None or state is None:
            return
        news: dict[str, Any] = {}
        if is_another_run(written, state, self.root):
            Pending(self.root).rewind()
            news = {"mlflow_run_id": None, "identity": uuid.uuid4().hex}
            what = f"{self.root} was copied or moved from" if self.url is None else f"{self.url} was worked with in"
            logger.warning(
                f"{what} {written_in(written)}: MLflow gets another run for it, with what {self.journal_file.name} "
                f"holds"
            )
        self.outbox.tags({_FOLDER_TAG: self.storage.place})
        self.keep(**news)
        self._elsewhere = None

    def check_config(self, experiment: Experiment, allow: Sequence[str] = (), anew: str | None = None) -> None:
        """Check that a run that was started is continued with the same configuration: see `check_same_config`."""
        if self.state is not None:
            check_same_config(self.state, experiment, allow, anew)

    def _begin(self) -> int:
        """Make this the run's newest launch, and return its number. Whatever older ones still write is refused.

        The order matters: after the token is written, files that older launches were about to publish are removed.
        Only then is the run read. `storage.fence` says why.
        """
        try:
            before = LaunchToken.read(self.root)
        except OSError as error:
            logger.warning(f"{self.launch_file} is written anew: {error}")
            before = None
        launches = self.state.launches if self.state is not None else 0
        token = LaunchToken.new(1 + max(launches, before.launch if before is not None else 0))
        token.write(self.root)
        self.storage.begin(token)
        self.launch_id = token.id
        for path in (self.state_file, self.summary_file):
            remove_unpublished(path)
        self.storage.checkpoints.clear_partial()
        self.refresh()
        return token.launch

    def open(self, composed: Composed, shards: CheckedShards, parent: str | None = None) -> RunState:
        """Begin a launch and return the state, which is written last. From then on older launches write nothing.

        The first launch makes the folder and records the run for MLflow. Later ones open both again.

        Args:
            composed: the experiment.
            shards: its data.
            parent: MLflow run that a new run is a child of.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        launch = self._begin()
        experiment, state, outbox = composed.experiment, self.state, self.outbox
        tree = recorded_tree(experiment)
        if state is not None:
            news = {
                "launches": launch,
                "bad_shards": sorted(shards.bad),
                "config": tree,
                "tracking_uri": with_variables(experiment.tracking_uri),
                "user": state.user or self._user(parent),
            }
            if state.identity:  # the sweep that a copied trial belongs to is another one
                outbox.tags(parentage(parent))
            outbox.reopen()
            if tags := job_tags():
                outbox.tags(tags)
            if tree != state.config:
                outbox.artifact(write_config(composed, self.config_file))
            self._experiment = None
            self.keep(**news)
            self.storage.publish()
            return self.started
        user = self._user(parent)
        for left in (self.outbox_folder, self.old_records):  # of a launch that ended before it wrote its state
            shutil.rmtree(left, ignore_errors=True)
        outbox.create(
            experiment.tracking.experiment,
            experiment.name if parent is None else f"{experiment.runs_folder.name}/{experiment.name}",
            artifacts=experiment.runs_folder / ARTIFACTS_FOLDER,
            parameters=dict(flatten(public_config(composed))),
            tags={
                _FOLDER_TAG: self.storage.place,
                NOTE: experiment.description,
                **experiment.tracking.tags,
                **lineage_tags(shards.manifest, user),
                **job_tags(),
            },
            parent=parent,
        )
        outbox.data(shards.manifest, experiment.data.path)
        outbox.artifact(write_config(composed, self.config_file))
        begun = self._write(
            RunState(
                tracking_uri=with_variables(experiment.tracking_uri),
                config=tree,
                bad_shards=sorted(shards.bad),
                autoencoder=shards.manifest.autoencoder,
                launches=launch,
                user=user,
            )
        )
        self.storage.publish()
        return begun

    def _user(self, parent: str | None) -> str | None:
        """Return the owner of a new run. That of a trial is its sweep's: workers may be of another user."""
        above = RunState.read(self.root.parent) if parent is not None else None
        return above.user if above is not None else current_user()

    def read_summary(self) -> dict[str, Any]:
        """Return the results of a finished run, with the paths of the folder that it lies in now.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            tree = read_object(self.summary_file)
            _Summary.model_validate(tree)
        except (FileNotFoundError, ValueError) as error:
            fault = f"{self.summary_file} is missing"
            if not isinstance(error, FileNotFoundError):
                reason = (
                    first_fault(error) if isinstance(error, ValidationError) else getattr(error, "reason", error)
                )
                fault = f"{self.summary_file} is damaged: {reason}"
            raise UserError(
                f"run {self.name!r} has finished, but its results cannot be read: {fault}\n"
                f"  put a copy of the file back, or measure the weights again: {command('evaluate', self.root)}\n"
                f"  to train again: name=ANOTHER"
            ) from error
        return summary_here(tree, self.root)

    def write_summary(self, summary: dict[str, Any]) -> Path:
        """Write the results of a run atomically, and return their file.

        Raises:
            Superseded: another launch has taken the run over.
        """
        content = (json.dumps(summary, indent=2) + "\n").encode()
        write_atomically(self.summary_file, content, check=self.fence.check)
        self.storage.changed()
        return self.summary_file
