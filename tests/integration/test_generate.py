"""Samples of a trained run on Ray workers, one of which is killed: the bytes are those of one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from tests.conftest import logged

from causalfusion import load_weights, save_weights
from causalfusion_platform.checkpoint.find import find_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.generating import actors as generators
from causalfusion_platform.launch.generating.actors import LocalGenerator, RayGenerators, SamplingActor
from causalfusion_platform.launch.generating.generate import GeneratedSet, run_generate
from causalfusion_platform.launch.generating.request import GenerateRequest
from causalfusion_platform.launch.training.train import Outcome
from causalfusion_platform.sampling.parts import SamplePart
from causalfusion_platform.sampling.progress import Generating
from causalfusion_platform.sampling.sample_set import SamplePlan

pytestmark = pytest.mark.ray

NUM, BATCH = 90, 4


@pytest.fixture(scope="module")
def pool(ray_cluster: None) -> Iterator[RayGenerators]:
    """Two workers for all of these tests."""
    with RayGenerators(2) as workers:
        yield workers


def request_of(run: Outcome, out: Path, seed: int = 0) -> GenerateRequest:
    return GenerateRequest(
        checkpoint=Path(run.summary["run_dir"]),
        num=NUM,
        settings=["num_ar_steps=4", "num_inference_steps=6", "guidance_scale=1.5"],
        batch_size=BATCH,
        labels="random",
        seed=seed,
        png=True,
        out=out,
    )


@pytest.fixture(scope="module")
def whole(in_process: Outcome, tmp_path_factory: pytest.TempPathFactory) -> GeneratedSet:
    """The set as one process makes it."""
    return run_generate(request_of(in_process, tmp_path_factory.mktemp("whole") / "out"), LocalGenerator())


def files_of(done: GeneratedSet) -> dict[str, bytes]:
    """The files handed out."""
    paths = [done.npz, *(path for path in done.png.rglob("*") if path.is_file())]
    return {str(path.relative_to(done.folder)): path.read_bytes() for path in paths}


class KillOne:
    """Kills a worker with SIGKILL when the first part is finished: one that makes a part, or is about to."""

    def __init__(self) -> None:
        self.seen: list[Generating] = []

    def __call__(self, report: Generating) -> None:
        self.seen.append(report)
        if len(self.seen) == 1:
            found = {title: process for process in psutil.process_iter() for title in [_title(process)]}
            (found.get("ray::SamplingActor.make") or found["ray::SamplingActor"]).kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:  # it has just ended
        return ""


def test_a_lost_worker_changes_nothing(
    in_process: Outcome, pool: RayGenerators, whole: GeneratedSet, tmp_path: Path
) -> None:
    show = KillOne()
    with logged() as said:
        done = run_generate(request_of(in_process, tmp_path / "out"), pool, show=show)
    assert any("was lost (ActorUnavailableError)" in line for line in said)
    assert files_of(done) == files_of(whole)
    assert (done.made, done.digest) == (NUM, whole.digest)
    done_at = [0, *(report.done for report in show.seen)]
    sizes = [after - before for before, after in pairwise(done_at)]
    assert sorted(sizes) == [NUM % BATCH, *[BATCH] * (NUM // BATCH)]  # each part came once, in any order


def dying(attempts: Path) -> Callable[[], None]:
    """Return what counts itself in a file and ends its process."""

    def die() -> None:
        with attempts.open("a") as file:
            file.write("x")
        os._exit(1)

    return die


def test_workers_that_die_again_and_again_end_it(
    in_process: Outcome, pool: RayGenerators, whole: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker that gets the same part dies; finished parts stay, and the same request goes on."""
    die = dying(tmp_path / "attempts")

    class DyingActor(SamplingActor):
        @ray.method(max_task_retries=0)
        def make(self, plan: SamplePlan, folder: Path, part: int) -> SamplePart:
            if part == 3:
                die()
            made: SamplePart = SamplingActor.make(self, plan, folder, part)
            return made

    request = request_of(in_process, tmp_path / "out")
    monkeypatch.setattr(generators, "SamplingActor", DyingActor)
    with (
        RayGenerators(1) as one,
        pytest.raises(UserError, match=r"3 workers that were to generate samples 12 to 15 died.*\n.*--batch-size"),
    ):
        run_generate(request, one)
    assert (tmp_path / "attempts").read_text() == "xxx"
    monkeypatch.undo()
    done = run_generate(request, pool)
    assert done.made < NUM
    assert files_of(done) == files_of(whole)


def test_a_model_that_takes_every_worker_with_it(
    in_process: Outcome, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts the actor again and tries again to load, twice."""
    die = dying(tmp_path / "attempts")

    class DyingActor(SamplingActor):
        def open(self, *_: Any) -> None:
            die()

    monkeypatch.setattr(generators, "SamplingActor", DyingActor)
    with (
        RayGenerators(1) as one,
        pytest.raises(UserError, match=r"3 workers that were to load the model died.*\n.*--workers"),
    ):
        run_generate(request_of(in_process, tmp_path / "out"), one)
    assert (tmp_path / "attempts").read_text() == "xxx"


def test_the_same_workers_make_many_sets(in_process: Outcome, pool: RayGenerators, tmp_path: Path) -> None:
    """Their models stay loaded; what they find wrong is said as they say it."""
    one = run_generate(request_of(in_process, tmp_path / "one", seed=1), pool)
    loaded = {actor._actor_id for actor in pool.idle}
    two = run_generate(request_of(in_process, tmp_path / "two", seed=2), pool)
    assert one.digest != two.digest
    # Not all of them need be the same: one that still loads when the others are done is ended.
    assert loaded & {actor._actor_id for actor in pool.idle}

    model = load_weights(find_weights(Path(in_process.summary["run_dir"])).folder)
    state = {name: tensor.fill_(torch.nan) for name, tensor in model.state_dict().items()}
    save_weights(tmp_path / "weights", model.config, state)
    broken = GenerateRequest(
        checkpoint=tmp_path / "weights", num=4, settings=["num_inference_steps=2"], out=tmp_path / "broken"
    )
    with pytest.raises(UserError, match=r"^sample 0 of the weights in .* has NaN or infinite numbers\n"):
        run_generate(broken, pool)
