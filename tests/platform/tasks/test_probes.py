"""Probes while a run trains: recorded once, the same as by hand, and without a trace in the weights."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from causalfusion import build_model, draws, load_weights
from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.chosen_rows import choose_rows
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.validate import open_shards
from causalfusion_platform.evaluation.probe.probe import ProbeData, probe_layers
from causalfusion_platform.launch.runs.find import look_at
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.training.train import run_training
from causalfusion_platform.report.runs.list import run_panel
from causalfusion_platform.report.runs.show import run_json
from causalfusion_platform.tasks import TaskContext
from causalfusion_platform.tasks.class_to_image import ClassToImageObjective
from causalfusion_platform.tasks.probes import ProbeHook, check_probes
from causalfusion_platform.tracking.journal import Journal, Probed, recorded_images
from causalfusion_platform.tracking.mlflow import client
from causalfusion_platform.tracking.tracker import NoTracker
from causalfusion_platform.train.control import LocalControl
from causalfusion_platform.train.loop import TrainState
from causalfusion_platform.train.metrics import Spent

BATCH, STEPS, STOP = 16, 6, 5
PROBED = "evaluation.probe_every_images=32"


def composed(home: Path, name: str, *overrides: str) -> Composed:
    """Six steps of a tiny model, with checkpoints after 3 and 6."""
    return compose_experiment(
        "quickstart",
        [
            f"name={name}",
            f"runs={home}/runs",
            f"data.path={home}/shards/digits",
            f"data.validation={home}/shards/digits-validation",
            "data.prepare=split",
            "model.preset=tiny",
            "train.num_workers=1",
            f"train.global_batch_size={BATCH}",
            f"train.images={BATCH * STEPS}",
            f"train.checkpoint_every_images={3 * BATCH}",
            f"train.sample_every_images={1000 * BATCH}",
            f"train.log_every_images={BATCH}",
            "train.precision=fp32",
            "optim.warmup_images=0",
            "sampling.num_inference_steps=2",
            "evaluation.num_samples=10",
            "evaluation.score=false",
            *overrides,
        ],
    )


def interrupted_at(number: int) -> Any:
    step = ClassToImageObjective.step

    def stop(self: ClassToImageObjective, batch: Any, at: int) -> Any:
        if at == number:
            raise KeyboardInterrupt
        return step(self, batch, at)

    return stop


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, empty_mlflow_store: Path) -> Iterator[Path]:
    """A run without probes, one with them, and one that was interrupted after those at 32 and 64 images."""
    home = tmp_path_factory.mktemp("home")
    (home / "runs").mkdir()
    shutil.copy(empty_mlflow_store, home / "runs" / "mlflow.db")
    run_training(composed(home, "plain"), local=True)
    run_training(composed(home, "probed", PROBED), local=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassToImageObjective, "step", interrupted_at(STOP))
        with pytest.raises(KeyboardInterrupt):
            run_training(composed(home, "broken", PROBED), local=True)
    run_training(composed(home, "broken", PROBED), local=True)
    yield home


def probed(home: Path, name: str) -> list[Probed]:
    return [event for event in Journal(home / "runs" / name).events() if isinstance(event, Probed)]


def weights(home: Path, name: str) -> Path:
    return max((home / "runs" / name / "checkpoints").glob("images-*")) / "weights"


def test_training_is_the_same_with_probes_and_without(home: Path) -> None:
    """Bit for bit: weights, samples and losses."""
    for name in ("probed", "broken"):
        ours, theirs = (load_file(weights(home, run) / "model.safetensors") for run in (name, "plain"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        ours, theirs = (load_file(home / "runs" / run / "samples/final.safetensors") for run in (name, "plain"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    losses = [
        [event.loss for event in Journal(home / "runs" / run).events() if event.kind == "progress"]
        for run in ("plain", "probed")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


def test_probes_are_those_of_the_weights_and_begin_with_random_ones(home: Path) -> None:
    events = probed(home, "probed")
    assert [event.images for event in events] == [0, 32, 64, 96]
    assert not probed(home, "plain")
    experiment = composed(home, "probed").experiment
    folders = (home / "shards/digits", home / "shards/digits-validation")
    train, others = (choose_rows(folder, Manifest.read(folder), 2048) for folder in folders)
    torch.manual_seed(draws.stream_seed(experiment.seed, "initial weights"))
    new, trained = build_model(experiment.model).eval(), load_weights(weights(home, "probed"))
    for model, event in ((new, events[0]), (trained, events[-1])):
        found = probe_layers(
            model, ProbeData(train, others, 0), range(3), ["linear"], t=0, diffusion=experiment.diffusion
        )
        assert event.values == {f"linear_layer{layer}": accuracy.value for _, layer, accuracy in found}
        assert (event.rows, event.validation_rows) == (1497, 300)
    assert events[0].values != events[-1].values


def test_probes_before_a_fault_are_not_repeated(home: Path) -> None:
    """The run went on from 48 images, and passed 64 once more."""
    events = probed(home, "broken")
    assert [event.images for event in events] == [0, 32, 64, 96]
    assert [event.attempt for event in events] == [1, 1, 1, 2]
    assert [event.values for event in events] == [event.values for event in probed(home, "probed")]
    assert recorded_images(events, Probed) == 96


def test_probes_are_shown_and_are_curves_in_mlflow(home: Path) -> None:
    events = probed(home, "broken")
    view = look_at(RunFolder(home / "runs" / "broken"))
    assert run_json(view)["probed"]["values"] == events[-1].values
    shown = StringIO()
    Console(width=80, file=shown).print(run_panel(view))
    text = shown.getvalue()
    best = max(events[-1].values, key=lambda name: events[-1].values[name])
    assert f"{best} {events[-1].values[best]:.4g}" in text
    assert "best and last of layers 0 to 2, at 96 images" in text
    assert view.mlflow_run_id is not None
    api = client(f"sqlite:///{home}/runs/mlflow.db")
    for layer in range(3):
        points = api.get_metric_history(view.mlflow_run_id, f"probe/linear_layer{layer}")
        expected = [(event.images, event.values[f"linear_layer{layer}"]) for event in events]
        assert [(point.step, point.value) for point in points] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.validation=null"], "data.validation is not given"),
        (["data.validation={home}/shards/digits"], "are marked train"),
    ],
)
def test_probes_need_validation_rows(home: Path, changes: list[str], message: str) -> None:
    changed = [change.format(home=home) for change in changes]
    with pytest.raises(UserError, match=message):
        run_training(composed(home, "refused", PROBED, *changed), local=True)
    assert not (home / "runs" / "refused").exists()


def test_other_tasks_refuse_probes(home: Path) -> None:
    """None of their hooks would make them."""
    with pytest.raises(UserError, match="is for class_to_image and text_image, not task=tests"):
        run_training(composed(home, "refused", PROBED, "task=tests.platform.tasks.toy:LatentMean"), local=True)


def test_probes_need_labels(home: Path) -> None:
    shards = open_shards(home / "shards/digits")
    without = dataclasses.replace(shards, manifest=shards.manifest.model_copy(update={"class_names": ["image"]}))
    with pytest.raises(UserError, match="needs labels, which the shards in"):
        check_probes(composed(home, "refused", PROBED).experiment, without)


class Marks(LocalControl):
    """Keeps what was marked."""

    def __init__(self) -> None:
        super().__init__()
        self.doing: list[str] = []

    def mark(self, doing: str, images: int) -> None:
        """Keep the activity."""
        super().mark(doing, images)
        self.doing.append(f"{doing} at {images}")


@pytest.mark.parametrize("first", [True, False])
def test_the_first_rank_probes_with_signs_of_life_and_others_only_gather(
    home: Path, tmp_path: Path, first: bool
) -> None:
    experiment, manifest = composed(home, "probed", PROBED).experiment, Manifest.read(home / "shards/digits")
    journal, control = Journal(tmp_path), Marks()
    context = TaskContext(
        torch.device("cpu"), False, manifest, NoTracker(), journal if first else None, 1, control, Spent()
    )
    model = build_model(experiment.model)
    hook = ProbeHook(32, experiment, build_model(experiment.model), context)
    gathered: list[bool] = []

    def full_state() -> dict[str, torch.Tensor]:
        gathered.append(True)
        return model.state_dict()

    loop: Any = SimpleNamespace(averages=SimpleNamespace(full_state=full_state), state=TrainState(images_seen=64))
    hook.run(loop)
    hook.run(loop)  # as after a fault
    assert len(gathered) == 2
    assert [event.images for event in journal.events() if isinstance(event, Probed)] == ([0, 64] if first else [])
    # Of both models: six and two batches of rows, and three layers.
    assert control.doing == ["probe at 64"] * ((1 + 2 * (6 + 2 + 3) + 1) if first else 2)
    assert context.spent.grids > 0


def test_weights_that_diverged_end_no_run(home: Path, tmp_path: Path, log_lines: list[str]) -> None:
    experiment, manifest = composed(home, "probed", PROBED).experiment, Manifest.read(home / "shards/digits")
    journal = Journal(tmp_path)
    context = TaskContext(torch.device("cpu"), False, manifest, NoTracker(), journal, 1, LocalControl(), Spent())
    model = build_model(experiment.model)
    lost = {name: tensor * float("nan") for name, tensor in model.state_dict().items()}
    averages = SimpleNamespace(full_state=lambda: lost)
    loop: Any = SimpleNamespace(averages=averages, state=TrainState(images_seen=64))
    ProbeHook(32, experiment, model, context).run(loop)
    assert [event.images for event in journal.events() if isinstance(event, Probed)] == [0]
    assert log_lines == ["no probe at 64 images: features of layer 0 at t = 0 hold NaN or infinity"]
