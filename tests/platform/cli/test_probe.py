"""`causalfusion probe`: from a run to its table, numbers, picture and curves, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.platform.checkpoint.made import facts, hash_files
from tests.platform.cli.conftest import Run, check_refusal
from tests.platform.conftest import description_of

from causalfusion import ModelConfig, TextConfig, build_model, preset, save_weights
from causalfusion.representation import Classifier, ClassifierConfig, save_finetuned
from causalfusion_platform.checkpoint.manifest import write_manifest
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import AutoencoderId, Manifest
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.data.split_digits import write_split_digits
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.tracking.mlflow import client

IMAGES = 128
TINY = {
    "causalfusion": preset("tiny"),
    "dit": preset("digits-dit", hidden_size=32, depth=2, num_heads=2),
    "text": preset("tiny", class_tokens=0, text=TextConfig(vocabulary=300, max_tokens=12)),
    "transfusion": preset(
        "tiny", architecture="transfusion", class_tokens=0, text=TextConfig(vocabulary=300, max_tokens=12)
    ),
}
CHANGES: dict[str, dict[str, Any]] = {
    "causalfusion": {},
    "dit": {"objective": {"num_ar_steps": 1, "ar_weight": 1.0}},
    "text": {"task": "text_image", "objective": {"text": {}}},
    "transfusion": {"task": "text_image", "objective": {"num_ar_steps": 1, "ar_weight": 1.0, "text": {}}},
}


@pytest.fixture(scope="session")
def split_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in two parts, and all of them beside."""
    folder = tmp_path_factory.mktemp("split")
    write_split_digits(folder / "digits")
    write_digits(folder / "all")
    return folder


@pytest.fixture
def shards(split_shards: Path, own_folder: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(split_shards, own_folder / "shards"))


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(shards: Path, own_folder: Path, empty_mlflow_store: Path, make_experiment: Any) -> MakeRun:
    """Return a function that makes a finished run of a tiny model with random weights: (architecture, data)."""
    (own_folder / "runs").mkdir()
    shutil.copy(empty_mlflow_store, own_folder / "runs" / "mlflow.db")

    def make(kind: str = "causalfusion", *, finished: bool = True, **data: Path | None) -> Path:
        config = TINY[kind]
        experiment: Experiment = make_experiment(
            name=kind,
            model=dataclasses.asdict(config),
            data={"path": shards / "digits", "validation": shards / "digits-validation", **data},
            train={"images": IMAGES, "global_batch_size": 64},
            **CHANGES[kind],
        )
        _put_weights(experiment.run_dir, config)
        RunState(
            tracking_uri=experiment.tracking_uri,
            config=experiment.model_dump(mode="json"),
            finished=finished,
            autoencoder=AutoencoderId(name="identity", scale=1.0),
        ).write(experiment.run_dir)
        folder = RunFolder(experiment.run_dir)
        folder.outbox.create("probes", kind, artifacts=own_folder / "runs/mlartifacts", parameters={}, tags={})
        return experiment.run_dir

    return make


def _put_weights(run_dir: Path, config: ModelConfig) -> None:
    folder = checkpoint_folder(run_dir / "checkpoints", IMAGES)
    torch.manual_seed(1)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save_weights(folder / "weights", config, model.state_dict())
    write_manifest(folder, facts(IMAGES), hash_files(folder))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every curve of the run's page in MLflow: (step, value) in the order of recording."""
    state = RunState.read(run_dir)
    assert state is not None
    assert state.mlflow_run_id is not None
    api = client(state.address)
    names = api.get_run(state.mlflow_run_id).data.metrics
    return {
        name: [(point.step, point.value) for point in api.get_metric_history(state.mlflow_run_id, name)]
        for name in names
        if name.startswith("probe/")
    }


def test_a_run_is_probed_recorded_and_probed_again(run: Run, make_run: MakeRun) -> None:
    """The same call measures nothing twice, and one with more times measures those alone."""
    folder = make_run()
    before = digests(folder / "checkpoints")
    command = ("probe", str(folder), "--rows", "400", "--layers", "1,2", "--json")
    result = run(*command, "--times", "0,50")
    assert result.status == 0, result.err
    assert digests(folder / "checkpoints") == before
    found = json.loads(result.out.splitlines()[-1])
    assert found["provenance"]["rows"] == 400
    assert str(folder.parent) not in json.dumps(found["provenance"])  # a moved run measures nothing again
    assert found["provenance"]["validation_rows"] == 300
    places = {(score["kind"], score["t"], score["layer"], score["random"]) for score in found["scores"]}
    assert len(places) == len(found["scores"]) == 16
    assert {place[:2] for place in places} == {("linear", 0), ("linear", 50), ("knn", 0), ("knn", 50)}
    assert all(score["total"] == 300 for score in found["scores"])
    values = {(s["kind"], s["t"], s["layer"], s["random"]): s["accuracy"] for s in found["scores"]}
    assert f"{values['linear', 0, 1, False]:.3f}" in result.out
    assert max(map(len, result.out.splitlines()[:-3])) <= 80

    out = folder / "probes" / "rows400"
    assert [score["accuracy"] for score in json.loads((out / "probe.json").read_text())["scores"]]
    with Image.open(out / "probe.png") as picture:
        assert picture.width > 1000
    recorded = curves(folder)
    for kind, t, random in {(kind, t, random) for kind, t, _, random in values}:
        name = f"probe/{kind}_t{t}{'_random' if random else ''}_rows400"
        assert recorded[name] == [(layer, values[kind, t, layer, random]) for layer in (1, 2)]
    assert len(recorded) == 8

    again = run(*command, "--times", "0,50,200")
    assert again.status == 0
    more = curves(folder)
    assert {name: more[name] for name in recorded} == recorded
    assert len(more) == 12
    (out / "probe.json").unlink()
    fresh = run(*command, "--times", "0,50,200")
    both = [json.loads(text.out.splitlines()[-1])["scores"] for text in (again, fresh)]
    assert [{**score, "recorded": None} for score in both[0]] == [{**score, "recorded": None} for score in both[1]]


def test_a_dit_has_two_conditions_and_few_labels(run: Run, make_run: MakeRun) -> None:
    folder = make_run("dit")
    found = {}
    for condition in ("none", "null"):
        result = run(
            *("probe", str(folder), "--condition", condition, "--per-class", "10"),
            *("--kinds", "knn", "--layers", "2", "--json"),
        )
        assert result.status == 0, result.err
        found[condition] = json.loads(result.out.splitlines()[-1])
        assert found[condition]["provenance"]["rows"] == 100
        assert found[condition]["provenance"]["knn"].startswith("k = 5 by cosine")
    assert found["none"]["scores"] != found["null"]["scores"]
    assert set(curves(folder)) == {
        f"probe/knn_t0{random}{null}n10" for random in ("_", "_random_") for null in ("", "null-")
    }


@pytest.mark.parametrize("kind", ["text", "transfusion"])
def test_models_of_text_are_probed_by_classes(run: Run, make_run: MakeRun, kind: str) -> None:
    result = run("probe", str(make_run(kind)), "--per-class", "20", "--layers", "2", "--json")
    assert result.status == 0, result.err
    scores = json.loads(result.out.splitlines()[-1])["scores"]
    assert len({score["accuracy"] for score in scores}) == 4
    linear = next(score for score in scores if score["kind"] == "linear")
    assert linear["correct"] > 90  # of 300 digits, 30 by guessing


def test_an_unfinished_run_has_curves_of_its_own(run: Run, make_run: MakeRun) -> None:
    folder = make_run(finished=False)
    result = run("probe", str(folder), "--rows", "100", "--kinds", "knn", "--layers", "0")
    assert result.status == 0, result.err
    assert set(curves(folder)) == {f"probe/knn_t0{random}_images{IMAGES}-rows100" for random in ("", "_random")}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--layers", "1,3"], ["layer must lie in [0, 2]", "got 3", "causalfusion probe "]),
        (["--layers", "last"], ["--layers 'last' are not whole numbers"]),
        (["--times", "0,1000"], ["--times 0,1000", "0 (clean) to 999"]),
        (["--times", "-1"], ["--times '-1' are not whole numbers"]),
        (["--kinds", "svm"], ["--kinds must be linear or knn, got 'svm'"]),
        (["--condition", "null"], ["condition null is that of a DiT's blocks"]),
        (["--per-class", "200"], ["--per-class 200: class '", "ask for at most 1"]),
        (["--per-class", "100", "--rows", "500"], ["asks for 1,000 rows, --rows allows 500", "--rows 1000"]),
        (["--validation", "shards/digits"], ["data.validation: the shards in shards/digits are marked train"]),
        (["--validation", "shards/none"], ["shards/none"]),
    ],
)
def test_wrong_requests_are_refused(run: Run, make_run: MakeRun, arguments: list[str], parts: list[str]) -> None:
    folder = make_run()
    check_refusal(run("probe", str(folder), *arguments), *parts)
    assert not (folder / "probes").exists()


def test_a_run_without_validation_images_is_refused(run: Run, make_run: MakeRun) -> None:
    check_refusal(run("probe", str(make_run(validation=None))), "names no validation images", "--validation FOLDER")


def test_a_model_that_has_seen_the_validation_images_is_refused(run: Run, make_run: MakeRun, shards: Path) -> None:
    """It was trained on all digits, without their labels. Other training rows of the probe do not mend that."""
    folder = str(make_run(path=shards / "all"))
    validation = ("--validation", "shards/digits-validation")
    check_refusal(run("probe", folder, *validation), "300 of 300 rows", "shards/all")
    check_refusal(run("probe", folder, "--data", "shards/digits", *validation), "300 of 300 rows", "shards/all")


def _changed(folder: Path, **changes: Any) -> None:
    Manifest.read(folder).model_copy(update=changes).write(folder)


def test_other_latents_are_refused(run: Run, make_run: MakeRun, shards: Path) -> None:
    folder = str(make_run())
    for part in ("digits", "digits-validation"):
        _changed(shards / part, autoencoder=AutoencoderId(name="kl", scale=0.2, weights_sha256="a" * 64))
    check_refusal(run("probe", folder), "are of the autoencoder kl, scale 0.2, weights aaaa", "identity, scale 1")


def test_shards_without_classes_or_of_another_shape_are_refused(
    run: Run, make_run: MakeRun, own_folder: Path
) -> None:
    folder = str(make_run())
    for name, shape, refusal in (
        ("captioned", (1, 8, 8), "the shards in captioned have no labels"),
        (
            "small",
            (1, 4, 4),
            "hold latents of shape (1, 4, 4), but the model of run 'causalfusion' takes (1, 8, 8)",
        ),
    ):
        rows = Rows(
            row_ids=np.arange(4),
            labels=np.zeros(4, np.int64),
            keys=["a", "b", "c", "d"],
            mean=np.zeros((4, *shape), np.float16),
            std=None,
            mean_flip=None,
            std_flip=None,
        )
        description = description_of(rows).model_copy(update={"class_names": ["image"]})
        write_shards(rows, description, own_folder / name, rows_per_shard=4, rows_per_group=4)
        check_refusal(run("probe", folder, "--data", name), refusal, "--data FOLDER --validation FOLDER")


def test_a_fine_tuned_model_is_refused(run: Run, make_run: MakeRun) -> None:
    folder = make_run()
    weights = checkpoint_folder(folder / "checkpoints", IMAGES) / "weights"
    shutil.rmtree(weights)
    config = ClassifierConfig(backbone=TINY["causalfusion"], num_classes=10)
    save_finetuned(weights, config, Classifier(config).state_dict())
    write_manifest(weights.parent, facts(IMAGES), hash_files(weights.parent))
    check_refusal(
        run("probe", str(folder)), "holds a fine-tuned classifier", "probe the run that it was fine-tuned"
    )


def test_weights_of_no_run_are_refused(run: Run, make_run: MakeRun, own_folder: Path) -> None:
    folder = make_run()
    shutil.copytree(checkpoint_folder(folder / "checkpoints", IMAGES) / "weights", own_folder / "weights")
    check_refusal(run("probe", "weights"), "are of no run", "causalfusion runs list")
