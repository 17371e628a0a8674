"""The model registry, of a real SQLite store and of a real server."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tests.platform.tracking.conftest import Server

from causalfusion import PRESETS, build_model, load_weights, save_weights
from causalfusion_platform.checkpoint.find import find_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.tracking.mlflow import client, open_experiment
from causalfusion_platform.tracking.registry import BEST, model_name, register_weights, set_alias, version_of


@pytest.fixture(scope="module", params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, uri: str, server: Server) -> str:
    """Return the address of a SQLite store, and then of the server of all tests."""
    if request.param == "sqlite":
        return uri
    server.up()
    return server.uri


@pytest.fixture
def run_id(uri: str, tmp_path: Path) -> str:
    api = client(uri)
    return str(api.create_run(open_experiment(api, uri, "registry", tmp_path / "artifacts")).info.run_id)


def weights_in(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = build_model(PRESETS["tiny"])
    save_weights(folder, PRESETS["tiny"], model.state_dict())
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    return folder


def versions_of(uri: str, model: str) -> list[Any]:
    found = client(uri).search_model_versions(f"name = '{model}'")
    return sorted(found, key=lambda version: int(version.version))


def test_what_is_registered_can_be_downloaded_and_sampled(
    uri: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very command that the version's description gives."""
    import mlflow
    from mlflow.cli import cli

    weights = weights_in(tmp_path / "weights")
    version = register_weights(uri, "digits, 8x8", run_id, weights, tags={"fd": "6.5"}, about="The best.")
    set_alias(uri, version, BEST)
    (found,) = versions_of(uri, "digits, 8x8")
    digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
    assert found.tags == {"fd": "6.5", "weights.sha256": digest} == version.tags
    assert (found.run_id, found.status, int(found.version)) == (run_id, "READY", version.number)
    about, _, _, download, sample, _ = found.description.split("\n")
    assert (about, sample) == ("The best.", "causalfusion sample FOLDER")
    files = [Path(file.path).name for file in client(uri).list_artifacts(run_id, f"weights/{digest[:12]}")]
    assert sorted(files) == ["config.json", "diffusion.json", "model.safetensors"]  # no pickle
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _, *command = shlex.split(download.replace("FOLDER", str(tmp_path / "there")))
    downloaded = CliRunner().invoke(cli, command)
    assert downloaded.exit_code == 0, downloaded.output
    loaded = load_weights(find_weights(tmp_path / "there").folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in load_weights(weights).state_dict().items())
    with pytest.raises(mlflow.MlflowException, match="MLmodel"):  # there is nothing that MLflow would unpickle
        mlflow.pyfunc.load_model(f"models:/digits, 8x8@{BEST}")


def test_the_same_weights_of_a_run_get_one_version(uri: str, run_id: str, tmp_path: Path) -> None:
    weights = weights_in(tmp_path / "weights")
    first = register_weights(uri, "once", run_id, weights, tags={"fd": "6.5"})
    again = register_weights(uri, "once", run_id, weights, tags={"fd": "6.4", "sweep": "gamma"})
    assert (first.number, again.number) == (1, 1)
    (found,) = versions_of(uri, "once")
    assert (found.tags["fd"], found.tags["sweep"]) == ("6.4", "gamma")
    other = register_weights(uri, "other", run_id, weights, tags={})
    assert (other.model, other.number) == ("other", 1)
    assert len(versions_of(uri, "once")) == 1


def test_later_weights_leave_those_before(uri: str, run_id: str, tmp_path: Path) -> None:
    """A run that went on after it was registered: two versions, each with files of its own."""
    for seed in (1, 2):
        register_weights(uri, "later", run_id, weights_in(tmp_path / f"{seed}", seed), tags={})
    one, two = versions_of(uri, "later")
    assert one.source != two.source
    for seed, version in ((1, one), (2, two)):
        folder = version.source.split("artifacts/")[-1]
        inside = f"weights/{Path(folder).name}/model.safetensors"
        found = client(uri).download_artifacts(run_id, inside, str(tmp_path))
        assert Path(found).read_bytes() == (tmp_path / f"{seed}" / "model.safetensors").read_bytes()


def test_an_alias_moves(uri: str, run_id: str, tmp_path: Path) -> None:
    assert version_of(uri, "moves", BEST) is None
    first, second = (
        register_weights(uri, "moves", run_id, weights_in(tmp_path / f"{seed}", seed), tags={"seed": str(seed)})
        for seed in (1, 2)
    )
    assert version_of(uri, "moves", BEST) is None
    for version in (first, second, first):
        set_alias(uri, version, BEST)
        assert version_of(uri, "moves", BEST) == version


@pytest.mark.parametrize("name", ["a/b:c", "it's", "x" * 200])
def test_names_of_experiments_as_names_of_models(uri: str, run_id: str, tmp_path: Path, name: str) -> None:
    weights = weights_in(tmp_path / "weights")
    versions = [register_weights(uri, model_name(name), run_id, weights, tags={}) for _ in range(2)]
    set_alias(uri, versions[0], BEST)
    found = version_of(uri, model_name(name), BEST)
    assert found == versions[0] == versions[1]


def test_an_unknown_run_makes_no_model(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'nothing' is not registered: MLflow at {uri} says: .*{'0' * 32}"):
        register_weights(uri, "nothing", "0" * 32, weights_in(tmp_path / "weights"), tags={})
    assert not [model for model in client(uri).search_registered_models() if model.name == "nothing"]


def test_a_server_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLflow does not answer at http://127.0.0.1:9 \(.*refused"):
        version_of("http://127.0.0.1:9", "digits", BEST)
    with pytest.raises(UserError, match="MLflow does not answer"):
        register_weights("http://127.0.0.1:9", "digits", "0" * 32, weights_in(tmp_path / "weights"), tags={})
