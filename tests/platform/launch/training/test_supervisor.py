"""Another attempt or not: a supervisor over attempts that end as they are told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from causalfusion_platform.assemble import Job, TrainingTimes
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster.failures import Hang, Lost
from causalfusion_platform.launch.runs.exit_status import GaveUp, NotFinished, StoppedRun
from causalfusion_platform.launch.runs.signals import StopRequest
from causalfusion_platform.launch.training.supervisor import Supervisor
from causalfusion_platform.storage.fence import LaunchFence, LaunchToken, Superseded
from causalfusion_platform.tracking.journal import AttemptStarted, Incident, Journal

MakeExperiment = Callable[..., Experiment]
TIMES = TrainingTimes(train_seconds=3.0, hook_seconds=2.0, sample_seconds=1.0, images=100)
DONE = {"how": "done", "detail": "", "images": 100, "times": dataclasses.asdict(TIMES)}


def lost(images: int, message: str = "a bug") -> Lost:
    return Lost(ValueError(message), None, images)


def diverged(images: int) -> dict[str, Any]:
    return {"how": "diverged", "detail": f"4 of the last {images} updates were skipped", "images": images}


class Case:
    """A supervisor, and all that it did."""

    def __init__(self, experiment: Experiment, attempts: Sequence[Any], **job: Any) -> None:
        """Attempts are: what to return, what to raise, or a function of this case that says one of them."""
        self.attempts = list(attempts)
        self.jobs: list[Job] = []
        self.orders: list[int] = []
        self.stop = StopRequest()
        experiment.run_dir.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(experiment.run_dir)
        self.job = Job(experiment=experiment, **job)
        self.supervisor = Supervisor(
            job=self.job,
            journal=self.journal,
            attempt=self.attempt,
            fit_workers=lambda job: job,
            rolled_back=self.orders.append,
            stop=self.stop,
            launch=3,
            first_attempt=5,
        )

    def attempt(self, job: Job) -> dict[str, Any]:
        self.jobs.append(job)
        ending = self.attempts.pop(0)
        ending = ending(self) if callable(ending) else ending
        if isinstance(ending, BaseException):
            raise ending
        assert isinstance(ending, dict)
        return ending

    def saves(self, images: int, ending: Any) -> Callable[[Case], Any]:
        """An attempt that saves a checkpoint, then ends."""

        def act(_: Case) -> Any:
            put(self.job.checkpoints, images)
            return ending

        return act

    def run(self) -> TrainingTimes:
        times = self.supervisor.run()
        assert self.attempts == []
        return times

    def fails(self, kind: type[NotFinished]) -> str:
        with pytest.raises(NotFinished) as caught:
            self.supervisor.run()
        assert type(caught.value) is kind
        return str(caught.value)

    def incidents(self) -> list[Incident]:
        return [event for event in self.journal.events() if isinstance(event, Incident)]

    def begun(self) -> list[AttemptStarted]:
        return [event for event in self.journal.events() if isinstance(event, AttemptStarted)]


def put(root: Path, images: int) -> None:
    """A checkpoint as far as its name says: nothing in it is looked at here."""
    (root / f"images-{images:012d}").mkdir(parents=True)


@pytest.fixture
def case(make_experiment: MakeExperiment) -> Callable[..., Case]:
    """Return a function that makes a case: (attempts…, job={…}, supervision keys…)."""

    def make(*attempts: Any, job: dict[str, Any] | None = None, **supervision: Any) -> Case:
        train = {"num_workers": 2, "zero_stage": 2}
        return Case(make_experiment(supervision=supervision, train=train), attempts, **(job or {}))

    return make


def test_a_run_without_faults(case: Callable[..., Case], log_lines: list[str]) -> None:
    made = case(DONE, job={"order": 1, "bad_shards": ("a",), "mlflow_run_id": "x"})
    assert made.run() == TIMES
    assert made.jobs == [made.job.model_copy(update={"attempt": 5})]
    [event] = made.journal.events()
    assert isinstance(event, AttemptStarted)
    assert event.model_dump(exclude={"time"}) == {
        "kind": "attempt",
        "launch": 3,
        "attempt": 5,
        "workers": 2,
        "zero_stage": 2,
        "images": 0,
    }
    assert (log_lines, made.orders) == ([], [])


def test_faults_are_tried_again_from_the_newest_checkpoint(case: Callable[..., Case], log_lines: list[str]) -> None:
    made = case()
    made.attempts = [made.saves(64, lost(70)), lost(90, "another\nand more"), made.saves(128, lost(129)), DONE]
    assert made.run() == TIMES
    assert [job.attempt for job in made.jobs] == [5, 6, 7, 8]
    assert {job.order for job in made.jobs} == {0}
    kinds = [event.kind for event in made.journal.events()]
    assert kinds == ["attempt", "incident"] * 3 + ["attempt"]
    assert [(event.attempt, event.images) for event in made.begun()] == [(5, 0), (6, 64), (7, 64), (8, 128)]
    found = [(event.attempt, event.images, event.cause, event.detail) for event in made.incidents()]
    assert found == [
        (5, 70, "error", "ValueError: a bug"),
        (6, 90, "error", "ValueError: another"),
        (7, 129, "error", "ValueError: a bug"),
    ]
    assert log_lines[:2] == ["error: ValueError: a bug", "going on from the last good checkpoint (64 images)"]


@pytest.mark.parametrize("allowed", [0, 1, 4])
def test_the_budget(case: Callable[..., Case], allowed: int) -> None:
    """So many times are workers started again; with one fault more the launch gives up, progress or not."""
    made = case(max_failures=allowed)
    made.attempts = [made.saves(64 * (number + 1), lost(64 * number)) for number in range(allowed + 1)]
    message = made.fails(GaveUp)
    assert (len(made.jobs), made.attempts) == (allowed + 1, [])
    first, *faults, advice = message.splitlines()
    assert first == f"run 'test' gives up: {allowed + 1} faults in one launch"
    expected = [f"  attempt {5 + n}, {64 * n} images: error: ValueError: a bug" for n in range(allowed + 1)]
    assert faults == expected
    assert f"has {64 * (allowed + 1)} images; the same command tries again" in advice
    assert len(made.incidents()) == allowed + 1


@pytest.mark.parametrize(
    ("saves", "attempts"),
    [
        ([0, 0, 0], 3),
        ([64, 64, 64, 64], 3),  # a checkpoint from the first attempt, and no other
        ([0, 0, 64, 64, 128, 128, 128, 128], 7),
        ([0, 64, 128, 192, 256], None),
    ],
)
def test_faults_without_progress(case: Callable[..., Case], saves: list[int], attempts: int | None) -> None:
    """Three faults with the same newest checkpoint; `saves` says which one is there after each attempt."""
    made = case(max_failures=50, max_failures_without_progress=3)

    def after(images: int) -> Callable[[Case], Any]:
        def act(_: Case) -> Any:
            if images and not (made.job.checkpoints / f"images-{images:012d}").is_dir():
                put(made.job.checkpoints, images)
            return lost(images)

        return act

    made.attempts = [*map(after, saves), DONE]
    if attempts is None:
        made.run()
        return
    message = made.fails(GaveUp)
    assert len(made.jobs) == attempts
    assert "3 faults in a row without a new checkpoint" in message


def slow_start() -> Lost:
    return Lost(ControllerError(WorkerGroupStartupTimeoutError(2)), None, 0)


def test_slow_starts_are_no_faults_of_the_training(case: Callable[..., Case]) -> None:
    """However many come in a row, and between the faults that are counted."""
    made = case(max_failures=50, max_failures_without_progress=3)
    made.attempts = [slow_start() for _ in range(7)] + [lost(0), slow_start(), lost(0), slow_start(), DONE]
    made.run()
    assert [event.cause for event in made.incidents()] == ["start"] * 7 + ["error", "start", "error", "start"]
    made = case(max_failures=50, max_failures_without_progress=3)
    made.attempts = [slow_start(), lost(0), slow_start(), lost(0), slow_start(), lost(0), DONE]
    assert "3 faults in a row without a new checkpoint" in made.fails(GaveUp)


def test_slow_starts_are_within_the_budget(case: Callable[..., Case]) -> None:
    made = case(max_failures=2)
    made.attempts = [slow_start() for _ in range(3)]
    message = made.fails(GaveUp)
    assert "3 faults in one launch" in message
    assert message.count("start: WorkerGroupStartupTimeoutError") == 3


def test_the_diagnosis_shows_the_last_eight(case: Callable[..., Case]) -> None:
    made = case(max_failures=11)
    made.attempts = [made.saves(number + 1, lost(number, f"fault {number}")) for number in range(12)]
    lines = made.fails(GaveUp).splitlines()[1:-1]
    assert [line.rpartition(" ")[2] for line in lines] == [str(number) for number in range(4, 12)]


def test_a_hang_and_a_local_error(case: Callable[..., Case], tmp_path: Path) -> None:
    made = case(Lost(None, Hang("no progress for 9 s", tmp_path), 64), RuntimeError("here"), DONE)
    made.run()
    found = [(event.cause, event.detail, event.images) for event in made.incidents()]
    assert found == [("hang", "no progress for 9 s", 64), ("error", "RuntimeError: here", 0)]


def test_what_the_user_can_mend_is_said_at_once(case: Callable[..., Case]) -> None:
    for error in (UserError("mend it"), RuntimeError("wrapped"), Lost(RuntimeError("wrapped"), None, 0)):
        inner = error.error if isinstance(error, Lost) else error
        if inner is not None and not isinstance(inner, UserError):
            inner.__cause__ = UserError("mend it")
        made = case(error, DONE)
        with pytest.raises(UserError, match=r"^mend it$"):
            made.supervisor.run()
        assert len(made.jobs) == 1
        assert made.incidents() == []


def test_a_stop_before_the_workers_have_started(case: Callable[..., Case]) -> None:
    """It is not a fault."""
    made = case(StoppedRun("stopped before"), DONE)
    with pytest.raises(StoppedRun, match="stopped before"):
        made.supervisor.run()
    assert (made.incidents(), len(made.jobs)) == ([], 1)


def test_an_interrupt_ends_it(case: Callable[..., Case]) -> None:
    made = case(KeyboardInterrupt(), DONE)
    with pytest.raises(KeyboardInterrupt):
        made.supervisor.run()
    assert made.incidents() == []


# Divergence


def test_a_roll_back_changes_the_order_of_the_data(case: Callable[..., Case]) -> None:
    made = case(job={"order": 1}, max_rollbacks=3)
    made.attempts = [made.saves(64, diverged(100)), lost(70), made.saves(128, diverged(140)), DONE]
    assert made.run() == TIMES
    assert [(job.attempt, job.order) for job in made.jobs] == [(5, 1), (6, 2), (7, 2), (8, 3)]
    assert made.orders == [2, 3]
    causes = [(event.cause, event.images) for event in made.incidents()]
    assert causes == [("diverged", 100), ("error", 70), ("diverged", 140)]


def test_the_order_is_kept_before_the_next_attempt_begins(case: Callable[..., Case]) -> None:
    """A driver that is killed there goes on with the new order."""
    made = case(diverged(100))

    def look(_: Case) -> Any:
        assert made.orders == [1]
        return DONE

    made.attempts.append(look)
    made.run()


@pytest.mark.parametrize("allowed", [0, 2])
def test_roll_backs_end(case: Callable[..., Case], allowed: int) -> None:
    made = case(max_rollbacks=allowed)
    made.attempts = [made.saves(64 * (number + 1), diverged(100)) for number in range(allowed + 1)]
    message = made.fails(GaveUp)
    assert (len(made.jobs), made.attempts) == (allowed + 1, [])
    assert made.orders == list(range(1, allowed + 1))
    assert f"training diverged {allowed + 1} times" in message
    assert "optim.base_lr" in message
    assert "--allow-config-change KEY" in message
    assert message.count("diverged: 4 of the last 100 updates were skipped") == allowed + 1
    assert len(made.incidents()) == allowed + 1


def test_roll_backs_count_as_faults(case: Callable[..., Case]) -> None:
    made = case(lost(10), diverged(100), diverged(100), DONE, max_rollbacks=9, max_failures_without_progress=3)
    assert "3 faults in a row without a new checkpoint" in made.fails(GaveUp)
    assert made.orders == [1]


# Ends that are no faults


def asked(reason: Any, ending: Any) -> Callable[[Case], Any]:
    """An attempt that hears a request to stop."""

    def act(case: Case) -> Any:
        case.stop.ask(reason)
        return ending

    return act


def test_stopped(case: Callable[..., Case]) -> None:
    made = case(asked("stopped", {"how": "stopped", "detail": "", "images": 64}), DONE)
    message = made.fails(StoppedRun)
    assert "run 'test' was stopped at 64 images, with a checkpoint" in message
    assert "the same command continues it" in message
    assert made.incidents() == []


def test_a_request_that_came_before_the_workers(case: Callable[..., Case]) -> None:
    made = case(DONE)
    made.stop.ask("stopped")
    assert "the same command continues it" in made.fails(StoppedRun)
    assert (made.jobs, made.journal.events()) == ([], [])


def test_a_fault_while_stopping_stops(case: Callable[..., Case]) -> None:
    made = case(asked("stopped", lost(64)), DONE)
    made.fails(StoppedRun)
    assert len(made.jobs) == 1
    assert [event.cause for event in made.incidents()] == ["error"]


def test_after_a_preemption_the_launch_goes_on_elsewhere(case: Callable[..., Case]) -> None:
    preempted = {"how": "preempted", "detail": "", "images": 64}
    made = case()
    made.attempts = [asked("preempted", preempted), made.saves(64, DONE)]
    assert made.run() == TIMES
    assert made.stop.reason is None
    [incident] = made.incidents()
    assert (incident.attempt, incident.cause, incident.images) == (5, "preempted", 64)
    assert [job.attempt for job in made.jobs] == [5, 6]


def test_preemptions_do_not_use_up_the_budget(case: Callable[..., Case]) -> None:
    """A spot cluster takes nodes back for weeks; each time there is a new checkpoint."""
    made = case(max_failures=1)

    def taken_back(images: int) -> Callable[[Case], Any]:
        return made.saves(images, asked("preempted", {"how": "preempted", "detail": "", "images": images})(made))

    made.attempts = [lambda _, images=images: taken_back(images)(made) for images in (64, 128, 192)] + [DONE]
    assert made.supervisor.run() == TIMES
    assert [one.cause for one in made.supervisor.incidents] == ["preempted"] * 3


def test_preempted_and_then_told_to_stop(case: Callable[..., Case]) -> None:
    """The workers heard of the preemption first; the launch's own process got a SIGTERM meanwhile."""
    made = case(asked("stopped", {"how": "preempted", "detail": "", "images": 64}), DONE)
    assert "was preempted at 64 images, with a checkpoint" in made.fails(StoppedRun)


def test_preemptions_are_within_the_budget(case: Callable[..., Case]) -> None:
    preempted = {"how": "preempted", "detail": "", "images": 64}
    made = case(*[asked("preempted", preempted)] * 3, DONE, max_failures_without_progress=3)
    assert "attempt 7, 64 images: preempted: a node was taken back" in made.fails(GaveUp)


def test_storage_that_does_not_take_checkpoints(case: Callable[..., Case]) -> None:
    made = case({"how": "storage", "detail": "no space left", "images": 64}, DONE)
    message = made.fails(GaveUp)
    assert "run 'test' stopped: no space left" in message
    assert f"free space below {made.job.experiment.run_dir}, then give the same command" in message
    assert len(made.jobs) == 1


# Room


def test_room_is_asked_for_before_each_attempt(case: Callable[..., Case], make_experiment: MakeExperiment) -> None:
    made = case(lost(10), diverged(20), DONE)
    seen: list[tuple[int, int]] = []
    sizes = iter([2, 1, 2])

    def fit_workers(job: Job) -> Job:
        seen.append((len(made.jobs), job.order))
        train = job.experiment.train.model_copy(update={"num_workers": next(sizes)})
        return job.model_copy(update={"experiment": job.experiment.model_copy(update={"train": train})})

    made.supervisor.fit_workers = fit_workers
    made.run()
    assert seen == [(0, 0), (1, 0), (2, 1)]
    assert [job.experiment.train.num_workers for job in made.jobs] == [2, 1, 2]
    assert [event.workers for event in made.begun()] == [2, 1, 2]


def test_no_room_ends_it(case: Callable[..., Case]) -> None:
    made = case(DONE)

    def no_room(_: Job) -> Job:
        raise GaveUp("no room")

    made.supervisor.fit_workers = no_room
    assert made.fails(GaveUp) == "no room"
    assert made.jobs == []


def test_a_launch_that_was_taken_over_tries_nothing_more(case: Callable[..., Case]) -> None:
    """The other launch may have caused the fault, such as by removing what this one wrote."""
    for ending in (lost(70), UserError("a file is gone"), {"how": "superseded", "detail": "", "images": 70}):
        made = case()
        ours, other = LaunchToken.new(3), LaunchToken.new(4)
        ours.write(made.job.paths.root)
        made.supervisor.fence = LaunchFence(made.job.paths.root, ours.id)

        def taken_over(case: Case, other: LaunchToken = other, ending: Any = ending) -> Any:
            other.write(case.job.paths.root)
            return ending

        def fails(case: Case, taken_over: Callable[[Case], Any] = taken_over) -> Any:
            if isinstance(ending := taken_over(case), BaseException):
                raise ending
            return ending

        made.attempts = [fails, DONE]
        with pytest.raises(Superseded, match="launch 4 has taken run 'test' over"):
            made.supervisor.run()
        assert made.attempts == [DONE]
        assert made.incidents() == []
        with pytest.raises(Superseded):  # no attempt at all
            made.supervisor.run()
        assert made.attempts == [DONE]
